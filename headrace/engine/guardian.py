"""Keeps one engine running: starts it, watches it, ends it when it hangs, starts it again."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from headrace.engine.calls import Calls, OnAnswer
from headrace.engine.child import Child, why
from headrace.engine.host_errors import rebuild
from headrace.engine.link import Link, LinkClosed, LinkError, MalformedMessage, Message
from headrace.engine.policy import Backoff, CallKind, Watch
from headrace.engine.settings import EngineFacts, EngineSettings
from stream.errors import EngineError, HeadraceError, NotInstalled

log = logging.getLogger(__name__)

State = Literal["stopped", "starting", "ready", "restarting", "failed"]
StateCallback = Callable[["Engine"], None]
MessageCallback = Callable[[Message], None]

_SHOWN_LINES = 5
_LAST_WORDS = 1.0
"""Seconds for an engine without link to end by itself, so that its exit status is its own."""
_DEATH = 5.0
"""Seconds after SIGKILL until it is worth a line in the log that the process is still there."""


class Engine:
    """One engine process and its guardian. Everything here belongs to the loop of the main thread.

    ``state`` is ``stopped``, ``starting``, ``ready``, ``restarting`` (after an engine that had been ready) or
    ``failed`` (several starts in a row came to nothing; it goes on trying, slowly, unless a package is
    missing). ``generation`` counts the engines that became ready: what was opened in one is gone in the next.
    """

    def __init__(self, settings: EngineSettings | None = None) -> None:
        self.settings = settings or EngineSettings()
        self.state: State = "stopped"
        self.generation = 0
        self.restarts = 0
        self.facts: EngineFacts | None = None
        self.failure: HeadraceError | None = None
        """Why there is no engine at the moment."""
        self.last_exit = ""
        """How the last engine ended, as in ``was killed by SIGKILL``."""
        self.last_lines: list[str] = []
        """The last lines of the log of the engine that ended last."""
        self._calls = self._new_calls()
        self._child: Child | None = None
        self._ready_at: float | None = None
        self._verdict: HeadraceError | None = None
        self._lost = asyncio.Event()
        self._stopping = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._subscribers: list[StateCallback] = []
        self._routes: dict[str, MessageCallback] = {}

    # -- life ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the engine and return at once; `wait_ready` waits. Must be called from the main thread.

        Raises `EngineError` from another thread, or when the interpreter cannot be started at all.
        """
        if self._supervisor is not None and not self._supervisor.done():
            return
        self._stopping.clear()
        self.failure = None
        child = self._spawn()
        self._set_state("starting")
        self._supervisor = asyncio.create_task(self._supervise(child), name=f"engine {self.settings.name}")

    async def stop(self) -> None:
        """End the engine within ``stop_timeout`` and a moment, and reap it. Open calls fail."""
        self._stopping.set()
        if self._supervisor is not None:
            await asyncio.wait({self._supervisor})
            supervisor, self._supervisor = self._supervisor, None
            if not supervisor.cancelled() and (error := supervisor.exception()) is not None:
                raise error

    async def __aenter__(self) -> Engine:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def wait_ready(self, timeout: float) -> None:
        """Return when the engine is ready.

        Raises `EngineError` with the reason after ``timeout`` seconds or when it has failed or is stopped,
        and `NotInstalled` when a package is missing.
        """
        changed = asyncio.Event()
        unsubscribe = self.subscribe(lambda _: changed.set())
        try:
            async with asyncio.timeout(timeout):
                while self.state != "ready":
                    if self.state in ("failed", "stopped"):
                        raise self.failure or EngineError(self.describe())
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            raise EngineError(f"{self.describe()}; not ready within {timeout:g} s") from None
        finally:
            unsubscribe()

    # -- what is to be known ---------------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    @property
    def rss(self) -> int:
        """Resident memory of the engine in bytes; 0 while there is none."""
        return 0 if self._child is None else self._child.resident_bytes()

    @property
    def open_calls(self) -> int:
        """Calls that the engine has not answered yet."""
        return len(self._calls)

    @property
    def missing_package(self) -> bool:
        """Whether no further start can help before something is installed."""
        return isinstance(self.failure, NotInstalled)

    def describe(self) -> str:
        """The state as a sentence for people."""
        reason = "" if self.failure is None else f" ({self.failure.message.splitlines()[0]})"
        if self.state == "ready":
            return "the engine is ready"
        if self.state == "failed":
            return f"the engine failed{reason}"
        return f"the engine is {self.state}{reason}"

    def subscribe(self, callback: StateCallback) -> Callable[[], None]:
        """Call ``callback`` after every change of state; returns what ends that."""
        self._subscribers.append(callback)

        def unsubscribe() -> None:
            if callback in self._subscribers:
                self._subscribers.remove(callback)

        return unsubscribe

    # -- talking to it ---------------------------------------------------------------------------------

    def route(self, session: str, callback: MessageCallback | None) -> None:
        """Where what the engine says of a session by itself goes; None ends it."""
        if callback is None:
            self._routes.pop(session, None)
        else:
            self._routes[session] = callback

    def request(
        self,
        body: Mapping[str, Any],
        on_answer: OnAnswer,
        fds: Sequence[int] = (),
        *,
        kind: CallKind = "call",
    ) -> None:
        """Send a message that will be answered; ``on_answer`` is called once, whatever happens.

        Raises `EngineError` at once, and does not call ``on_answer``, when the engine is not ready.
        """
        link = self._link()
        call = self._calls.begin(on_answer, kind)
        try:
            link.send({**body, "call": call}, fds)
        except LinkError as error:
            self._calls.forget(call)
            if isinstance(error, LinkClosed):
                # Noticed here before the loop has told us.
                self._on_link_closed(error)
            raise

    async def call(
        self, body: Mapping[str, Any], fds: Sequence[int] = (), *, kind: CallKind = "call"
    ) -> dict[str, Any]:
        """The answer to a message that carries no descriptors. Raises the error that came in its place."""
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

        def on_answer(answer: Message | HeadraceError) -> None:
            if future.done():
                return
            if isinstance(answer, HeadraceError):
                future.set_exception(answer)
            else:
                future.set_result(answer.body)

        self.request(body, on_answer, fds, kind=kind)
        return await future

    def _link(self) -> Link:
        child = self._child
        if self.state != "ready" or child is None or child.link.closed:
            raise EngineError(self.describe())
        return child.link

    # -- the supervisor --------------------------------------------------------------------------------

    async def _supervise(self, child: Child | None) -> None:
        settings = self.settings
        backoff = Backoff(
            settings.backoff_first, settings.backoff_ceiling, settings.stable_after, settings.attempts
        )
        try:
            while not self._stopping.is_set():
                if child is None:
                    child = self._try_spawn()
                ready_for = None
                if child is not None:
                    await self._attend(child)
                    ready_for = None if self._ready_at is None else time.monotonic() - self._ready_at
                if self._stopping.is_set():
                    break
                delay = backoff.ended(ready_for)
                self._over(child, failed=backoff.failed)
                child = None
                await self._pause(None if self.missing_package else delay)
                self.restarts += not self._stopping.is_set()
        finally:
            if self._child is not None:
                self._child.end_now()
            self._child = None
            self._calls.fail("the engine was stopped")
            self._set_state("stopped")

    async def _pause(self, delay: float | None) -> None:
        """Wait before the next start; for ever when there is no use in one."""
        try:
            async with asyncio.timeout(delay):
                await self._stopping.wait()
        except TimeoutError:
            pass

    def _spawn(self) -> Child:
        self._ready_at, self._verdict = None, None
        self._lost.clear()
        self._calls = self._new_calls()
        self._child = Child.spawn(self.settings, self._on_message, self._on_link_closed)
        return self._child

    def _try_spawn(self) -> Child | None:
        try:
            return self._spawn()
        except EngineError as error:
            self._verdict = error
            return None

    def _new_calls(self) -> Calls:
        return Calls(Watch(self.settings.call_timeout, self.settings.open_timeout))

    async def _attend(self, child: Child) -> None:
        """Watch an engine until it is gone, by itself or by our hand."""
        settings = self.settings
        begun = before = time.monotonic()
        tick = min(0.5, settings.call_timeout / 4)
        lost, stop = asyncio.create_task(self._lost.wait()), asyncio.create_task(self._stopping.wait())
        events: set[asyncio.Future[Any]] = {child.exited, lost, stop}
        try:
            while not child.exited.done():
                await asyncio.wait(events, timeout=tick, return_when=asyncio.FIRST_COMPLETED)
                if self._stopping.is_set():
                    await self._end_politely(child)
                    break
                now = time.monotonic()
                late, before = now - before - tick, now
                if late > tick:
                    # The worker itself stood still; first hear what the engine has said meanwhile.
                    self._calls.watch.excuse(late)
                    begun += late
                    continue
                if self._is_hung(now, begun) or (self._lost.is_set() and not await child.wait(_LAST_WORDS)):
                    await self._kill(child)
        finally:
            lost.cancel()
            stop.cancel()

    def _is_hung(self, now: float, begun: float) -> bool:
        """Whether our patience has ended; notes the verdict."""
        watch, limit = self._calls.watch, self.settings.start_timeout
        if self._ready_at is None and now - begun > limit:
            self._verdict = EngineError(f"was not ready within {limit:g} s")
            return True
        if watch.hung(now):
            self._verdict = EngineError(f"gave no answer for {watch.limit():g} s")
            return True
        if watch.opening and watch.silent_for(now) > min(0.5, self.settings.call_timeout / 4):
            self._ping()
        return False

    def _ping(self) -> None:
        child = self._child
        if child is not None and not child.link.closed and not child.link.backlog:
            try:
                child.link.send({"op": "ping"})
            except LinkError as error:
                log.debug("no ping: %s", error)

    async def _kill(self, child: Child) -> None:
        child.signal(signal.SIGKILL)
        self._interrupt()
        while not await child.wait(_DEATH) and not self._stopping.is_set():
            log.error("engine %s (process %d) does not die", self.settings.name, child.pid)

    async def _end_politely(self, child: Child) -> None:
        patience = self.settings.stop_timeout
        if not child.link.closed:
            try:
                child.link.send({"op": "stop"})
            except LinkError as error:
                log.debug("the engine cannot be told to stop: %s", error)
        if await child.wait(patience / 2):
            return
        log.warning("engine %s does not stop; ending it", self.settings.name)
        child.signal(signal.SIGTERM)
        if not await child.wait(patience / 4):
            child.signal(signal.SIGKILL)
            if not await child.wait(patience / 4):
                log.error("engine %s (process %d) does not die; leaving it", self.settings.name, child.pid)
                child.abandon()

    def _interrupt(self) -> None:
        """The engine is gone or about to be: nothing that was asked will be answered."""
        if self._stopping.is_set():
            self._calls.fail("the engine was stopped")
            return
        self.failure = self._verdict
        if self._child is not None:
            self.last_lines = self._child.last_lines()
        if self.state == "ready":
            self._set_state("restarting")
        self._calls.fail(self.describe())

    def _over(self, child: Child | None, *, failed: bool) -> None:
        """An engine has ended, or could not even be started: say why, in the state and in the log."""
        name, verdict = self.settings.name, self._verdict
        if child is not None:
            self.last_lines = child.last_lines()
            if verdict is None:
                verdict = EngineError(why(child.exited.result()))
        assert verdict is not None
        self.last_exit = verdict.message
        self._child, self.facts = None, None
        tail = "\n".join(self.last_lines[-_SHOWN_LINES:]) if child is not None else ""
        if isinstance(verdict, NotInstalled):
            self.failure = verdict
        else:
            self.failure = EngineError(f"{verdict.message}\n{tail}" if tail else verdict.message)
        log.error("engine %s %s", name, self.failure.message)
        if failed or self.missing_package:
            self._set_state("failed")
        elif self.state == "ready":
            self._set_state("restarting")
        self._calls.fail(self.describe())

    # -- what the engine says --------------------------------------------------------------------------

    def _on_message(self, message: Message) -> None:
        op, body = message.op, message.body
        self._calls.watch.heard(time.monotonic())
        if op == "answer":
            self._calls.answered(message)
        elif op in ("emit", "progress"):
            callback = self._routes.get(str(body.get("session")))
            if callback is not None:
                callback(message)
        elif op == "ready":
            self._on_ready(body)
        elif op == "failed":
            self._verdict = rebuild(body.get("error"))
            self._lost.set()
        elif op == "fatal":
            self._verdict = EngineError(f"lost its device: {body.get('message')}")
            self._lost.set()
        elif op != "pong":
            self._condemn(f"sent an unknown message {op!r}")

    def _on_ready(self, body: dict[str, Any]) -> None:
        try:
            self.facts = EngineFacts.from_message(body)
        except (KeyError, TypeError, ValueError) as error:
            self._condemn(f"said that it is ready in a way that makes no sense: {error!r}")
            return
        self.failure = None
        self._ready_at = time.monotonic()
        self.generation += 1
        log.info("engine %s is ready: %s", self.settings.name, self.facts)
        self._set_state("ready")

    def _on_link_closed(self, error: LinkError) -> None:
        log.debug("the link to engine %s ended: %s", self.settings.name, error)
        if isinstance(error, MalformedMessage):
            self._condemn(f"sent what is not a message: {error.message}")
        self._interrupt()
        self._lost.set()

    def _condemn(self, reason: str) -> None:
        """What does not keep to the protocol cannot be reasoned with."""
        self._verdict = EngineError(reason)
        self._lost.set()
        if self._child is not None:
            self._child.signal(signal.SIGKILL)

    def _set_state(self, state: State) -> None:
        if state == self.state:
            return
        self.state = state
        for callback in tuple(self._subscribers):
            try:
                callback(self)
            except Exception:  # one subscriber's fault is no reason to leave the engine unwatched
                log.exception("a subscriber of engine %s failed", self.settings.name)

"""Keeps one engine running: starts it, has it watched, starts it again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from headrace.engine.attendance import Attendance
from headrace.engine.calls import OnAnswer
from headrace.engine.launch import Launched
from headrace.engine.link import Message
from headrace.engine.policy import Backoff, CallKind
from headrace.engine.settings import EngineFacts, EngineSettings
from stream.errors import EngineError, HeadraceError, NotInstalled

log = logging.getLogger(__name__)

State = Literal["stopped", "starting", "ready", "restarting", "failed"]
StateCallback = Callable[["Engine"], None]
MessageCallback = Callable[[Message], None]

_SHOWN_LINES = 5


class Engine:
    """One engine process and its guardian. Everything here belongs to the loop of the main thread.

    ``state`` is ``stopped``, ``starting``, ``ready``, ``restarting`` (after an engine that had been ready) or
    ``failed`` (several starts in a row came to nothing; it goes on trying, slowly, unless a package is
    missing). ``generation`` counts the engines that became ready: what was opened in one is gone in the next.
    The first of them may have been ``launched`` with these settings before this object was there.
    """

    def __init__(self, settings: EngineSettings | None = None, launched: Launched | None = None) -> None:
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
        self.suspects = asyncio.Lock()
        """Held while a session is opened whose opening may be what ended an engine: one at a time."""
        self._launched = launched
        self._run: Attendance | None = None
        self._stopping = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._subscribers: list[StateCallback] = []
        self._routes: dict[str, MessageCallback] = {}

    # -- life ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the engine and return at once; `wait_ready` waits. Must be called from the main thread.

        One that is being stopped comes to its end first. Raises `EngineError` from another thread, or when
        the interpreter cannot be started at all.
        """
        while self._supervisor is not None and not self._supervisor.done():
            if not self._stopping.is_set():
                return
            await asyncio.wait({self._supervisor})
        self._stopping.clear()
        self.failure = None
        run = self._spawn()
        self._set_state("starting")
        self._supervisor = asyncio.create_task(self._supervise(run), name=f"engine {self.settings.name}")

    async def stop(self) -> None:
        """End the engine within ``stop_timeout`` and a moment, and reap it. Open calls fail."""
        self._stopping.set()
        supervisor = self._supervisor
        if supervisor is not None:
            await asyncio.wait({supervisor})
            if self._supervisor is supervisor:
                self._supervisor = None
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
                while self.state != "ready" or self.stopping:
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
    def stopping(self) -> bool:
        """Whether it is on its way to its end, by `stop`."""
        return self._stopping.is_set() and self.state != "stopped"

    @property
    def pid(self) -> int | None:
        return None if self._run is None else self._run.child.pid

    @property
    def rss(self) -> int:
        """Resident memory of the engine in bytes; 0 while there is none."""
        return 0 if self._run is None else self._run.child.resident_bytes()

    @property
    def open_calls(self) -> int:
        """Calls that the engine has not answered yet."""
        return 0 if self._run is None else len(self._run.calls)

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
        run = self._run
        if self.state != "ready" or run is None or run.child.link.closed:
            raise EngineError(self.describe())
        run.request(body, on_answer, fds, kind)

    async def call(
        self, body: Mapping[str, Any], fds: Sequence[int] = (), *, kind: CallKind = "call"
    ) -> dict[str, Any]:
        """The answer to a message that brings no descriptors. Raises the error that came in its place."""
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

    def condemn(self, reason: str) -> None:
        """Kill the engine, which is then started again: for those who know that it will not come back."""
        if self._run is not None:
            log.error("engine %s is ended: it %s", self.settings.name, reason)
            self._run.condemn(reason)

    # -- the supervisor --------------------------------------------------------------------------------

    async def _supervise(self, run: Attendance | None) -> None:
        settings = self.settings
        backoff = Backoff(
            settings.backoff_first, settings.backoff_ceiling, settings.stable_after, settings.attempts
        )
        try:
            while not self._stopping.is_set():
                if run is not None:
                    await run.attend(self._stopping)
                    if self._stopping.is_set():
                        break
                    delay = backoff.ended(run.ready_for())
                    self._over(run.ending(), run.child.last_lines(), failed=backoff.failed)
                    await self._pause(None if self.missing_package else delay)
                    self.restarts += not self._stopping.is_set()
                if not self._stopping.is_set():
                    run = await self._spawn_again(backoff)
        finally:
            if self._run is not None:
                self._run.child.end_now()
                self._run.calls.fail("the engine was stopped")
            self._run, self.facts = None, None
            self._set_state("stopped")

    async def _spawn_again(self, backoff: Backoff) -> Attendance | None:
        try:
            return self._spawn()
        except EngineError as error:
            delay = backoff.ended(None)
            self._over(error, [], failed=backoff.failed)
            await self._pause(delay)
            return None

    async def _pause(self, delay: float | None) -> None:
        """Wait before the next start; for ever when there is no use in one."""
        try:
            async with asyncio.timeout(delay):
                await self._stopping.wait()
        except TimeoutError:
            pass

    def _spawn(self) -> Attendance:
        launched, self._launched = self._launched, None
        self._run = Attendance(
            self.settings,
            on_ready=self._ready,
            on_gone=self._gone,
            on_word=self._on_word,
            launched=launched,
        )
        return self._run

    def _ready(self, facts: EngineFacts) -> None:
        self.facts, self.failure = facts, None
        self.generation += 1
        self._set_state("ready")

    def _gone(self) -> None:
        """The engine is gone or about to be: nothing that was asked will be answered."""
        run = self._run
        if run is None:
            return
        if self._stopping.is_set():
            run.calls.fail("the engine was stopped")
            return
        self.failure = run.verdict
        self.last_lines = run.child.last_lines()
        if self.state == "ready":
            self._set_state("restarting")
        run.calls.fail(self.describe())

    def _over(self, ending: HeadraceError, lines: list[str], *, failed: bool) -> None:
        """An engine has ended, or could not even be started: say why, in the state and in the log."""
        self.last_exit, self.last_lines = ending.message, lines
        tail = "\n".join(lines[-_SHOWN_LINES:])
        if isinstance(ending, NotInstalled) or not tail:
            self.failure = ending
        else:
            self.failure = EngineError(f"{ending.message}\n{tail}")
        log.error("engine %s %s", self.settings.name, self.failure.message)
        run, self._run, self.facts = self._run, None, None
        if failed or self.missing_package:
            self._set_state("failed")
        elif self.state == "ready":
            self._set_state("restarting")
        if run is not None:
            run.calls.fail(self.describe())

    def _on_word(self, message: Message) -> None:
        callback = self._routes.get(str(message.body.get("session")))
        if callback is not None:
            callback(message)

    def _set_state(self, state: State) -> None:
        if state == self.state:
            return
        self.state = state
        for callback in tuple(self._subscribers):
            try:
                callback(self)
            except Exception:  # one subscriber's fault is no reason to leave the engine unwatched
                log.exception("a subscriber of engine %s failed", self.settings.name)

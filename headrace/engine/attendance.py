"""One engine process under watch: what it says, what it owes, and its end, by itself or by our hand."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from headrace.engine.calls import Calls, OnAnswer
from headrace.engine.child import Child, why
from headrace.engine.host_errors import rebuild
from headrace.engine.launch import Launched
from headrace.engine.link import LinkClosed, LinkError, MalformedMessage, Message
from headrace.engine.policy import CallKind, Watch
from headrace.engine.settings import EngineFacts, EngineSettings
from stream.errors import EngineError, HeadraceError

log = logging.getLogger(__name__)

_LAST_WORDS = 1.0
"""Seconds for an engine without link to end by itself, so that its exit status is its own."""
_DEATH = 5.0
"""Seconds after SIGKILL until it is worth a line in the log that the process is still there."""


class Attendance:
    """Starts an engine at once (raises `EngineError` as `Child.spawn` does); `attend` watches it to its end.

    ``on_ready`` is called when the engine can be used, ``on_gone`` when it no longer can, which may be before
    the process has ended and more than once. ``on_word`` gets what it says of sessions by itself. One that is
    ``launched`` already is taken in the place of a new one.
    """

    def __init__(
        self,
        settings: EngineSettings,
        *,
        on_ready: Callable[[EngineFacts], None],
        on_gone: Callable[[], None],
        on_word: Callable[[Message], None],
        launched: Launched | None = None,
    ) -> None:
        self.verdict: HeadraceError | None = None
        """What was wrong with it, as far as that is known."""
        self.calls = Calls(Watch(settings.call_timeout, settings.open_timeout))
        self._settings = settings
        self._on_ready, self._on_gone, self._on_word = on_ready, on_gone, on_word
        self._ready_at: float | None = None
        self._lost = asyncio.Event()
        self.child = Child.spawn(settings, self._on_message, self._on_link_closed, launched)

    def ready_for(self) -> float | None:
        """Seconds since it became ready; None when it never did."""
        return None if self._ready_at is None else time.monotonic() - self._ready_at

    def ending(self) -> HeadraceError:
        """Why it ended."""
        return self.verdict or EngineError(why(self.child.exited.result()))

    def request(
        self, body: Mapping[str, Any], on_answer: OnAnswer, fds: Sequence[int], kind: CallKind
    ) -> None:
        """Send a message that will be answered. Raises `LinkError`, and then forgets ``on_answer``."""
        call = self.calls.begin(on_answer, kind)
        try:
            self.child.link.send({**body, "call": call}, fds)
        except LinkError as error:
            self.calls.forget(call)
            if isinstance(error, LinkClosed):
                # Noticed here before the loop has told us.
                self._on_link_closed(error)
            raise

    # -- watching --------------------------------------------------------------------------------------

    async def attend(self, stopping: asyncio.Event) -> None:
        """Return when the process has ended; ends it itself when it hangs or ``stopping`` is set."""
        begun = before = time.monotonic()
        tick = min(0.5, self._settings.call_timeout / 4)
        lost, stop = asyncio.create_task(self._lost.wait()), asyncio.create_task(stopping.wait())
        events: set[asyncio.Future[Any]] = {self.child.exited, lost, stop}
        try:
            while not self.child.exited.done():
                await asyncio.wait(events, timeout=tick, return_when=asyncio.FIRST_COMPLETED)
                if stopping.is_set():
                    await self._end_politely()
                    break
                now = time.monotonic()
                late, before = now - before - tick, now
                if late > tick:
                    # The worker itself stood still; first hear what the engine has said meanwhile.
                    self.calls.watch.excuse(late)
                    begun += late
                    continue
                gone = self._is_hung(now, begun) or (
                    self._lost.is_set() and not await self.child.wait(_LAST_WORDS)
                )
                if gone:
                    await self._kill(stopping)
        finally:
            lost.cancel()
            stop.cancel()

    def _is_hung(self, now: float, begun: float) -> bool:
        """Whether our patience has ended; notes the verdict."""
        watch, limit = self.calls.watch, self._settings.start_timeout
        if self._ready_at is None and now - begun > limit:
            self.verdict = EngineError(f"was not ready within {limit:g} s")
            return True
        if watch.hung(now):
            self.verdict = EngineError(f"gave no answer for {watch.limit():g} s")
            return True
        if watch.opening and watch.silent_for(now) > min(0.5, self._settings.call_timeout / 4):
            self._ping()
        return False

    def _ping(self) -> None:
        link = self.child.link
        if not link.closed and not link.backlog:
            try:
                link.send({"op": "ping"})
            except LinkError as error:
                log.debug("no ping: %s", error)

    async def _kill(self, stopping: asyncio.Event) -> None:
        self.child.signal(signal.SIGKILL)
        self._on_gone()
        while not await self.child.wait(_DEATH) and not stopping.is_set():
            log.error("engine %s (process %d) does not die", self._settings.name, self.child.pid)

    async def _end_politely(self) -> None:
        """Ask, then insist; over within ``stop_timeout``."""
        name, patience, child = self._settings.name, self._settings.stop_timeout, self.child
        if not child.link.closed:
            try:
                child.link.send({"op": "stop"})
            except LinkError as error:
                log.debug("the engine cannot be told to stop: %s", error)
        if await child.wait(patience / 2):
            return
        log.warning("engine %s does not stop; ending it", name)
        child.signal(signal.SIGTERM)
        if await child.wait(patience / 4):
            return
        child.signal(signal.SIGKILL)
        if not await child.wait(patience / 4):
            log.error("engine %s (process %d) does not die; leaving it", name, child.pid)
            child.abandon()

    # -- what the engine says --------------------------------------------------------------------------

    def _on_message(self, message: Message) -> None:
        op, body = message.op, message.body
        self.calls.watch.heard(time.monotonic())
        if op == "answer":
            self.calls.answered(message)
        elif op == "deferred":
            self.calls.deferred(body.get("call"))
        elif op == "working":
            self.calls.watch.working(time.monotonic())
        elif op in ("emit", "progress", "closed", "words"):
            self._on_word(message)
        elif op == "ready":
            self._ready(body)
        elif op == "failed":
            self.verdict = rebuild(body.get("error"))
            self._lost.set()
        elif op == "fatal":
            self.verdict = EngineError(f"lost its device: {body.get('message')}")
            self._lost.set()
        elif op != "pong":
            self.condemn(f"sent an unknown message {op!r}")

    def _ready(self, body: dict[str, Any]) -> None:
        try:
            facts = EngineFacts.from_message(body)
        except (KeyError, TypeError, ValueError) as error:
            self.condemn(f"said that it is ready in a way that makes no sense: {error!r}")
            return
        self._ready_at = time.monotonic()
        log.info("engine %s is ready: %s", self._settings.name, facts)
        self._on_ready(facts)

    def _on_link_closed(self, error: LinkError) -> None:
        log.debug("the link to engine %s ended: %s", self._settings.name, error)
        if isinstance(error, MalformedMessage):
            self.condemn(f"sent what is not a message: {error.message}")
        self._lost.set()
        self._on_gone()

    def condemn(self, reason: str) -> None:
        """What does not keep to the protocol cannot be reasoned with."""
        self.verdict = EngineError(reason)
        self._lost.set()
        self.child.signal(signal.SIGKILL)

"""The engine's home on the link: what it tells of itself, and what the worker asks of it."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from headrace.engine import blobs
from headrace.engine.home import SESSION, Home
from headrace.engine.host_errors import describe
from headrace.engine.host_threads import on_loop
from headrace.engine.link import Link, LinkError, Message
from stream.errors import InvalidInput

log = logging.getLogger(__name__)

OP = "home"
EVERY = 2.0
STEP = 16 * 1024 * 1024
"""Bytes by which what it could give back must differ to be told again."""


class HomeHost:
    """Belongs to the loop. Questions are answered in threads, so that frames do not wait for them."""

    def __init__(self, link: Link, home: Home) -> None:
        self._link = link
        self._home = home
        self._told: dict[str, int] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._introduce(home.blobs())
        self._look()
        home.connect(self._say_from_anywhere, lambda: self._in_loop(self._tell_memory))

    def deliver(self, message: Message) -> None:
        call = message.body.get("call")
        if type(call) is not int:
            raise InvalidInput(f"message {OP!r} has no call number", field="call")
        # What takes long there is no sign of a hung engine.
        self._link.send({"op": "deferred", "call": call})
        task = asyncio.create_task(self._answer(call, message.body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, call: int, body: Mapping[str, Any]) -> None:
        try:
            said: dict[str, Any] = await asyncio.to_thread(self._home.answer, body)
        except Exception as error:  # noqa: BLE001 (the edge to an installation that is not ours)
            said = {"error": describe(error)}
        try:
            self._link.send({"op": "answer", "call": call, **said})
        except LinkError as error:
            log.debug("an answer cannot be sent: %s", error.message)

    def _introduce(self, parts: Mapping[str, bytes]) -> None:
        fd, index = blobs.pack(parts)
        try:
            self._say({"what": "facts", "blobs": index}, [] if fd is None else [fd])
        finally:
            if fd is not None:
                os.close(fd)

    def _look(self) -> None:
        if self._link.closed:
            return
        self._loop.call_later(EVERY, self._look)
        now = dict(self._home.memory())
        if not self._link.backlog and _worth_telling(now, self._told):
            self._tell(now)

    def _tell_memory(self) -> None:
        self._tell(dict(self._home.memory()))

    def _tell(self, now: dict[str, int]) -> None:
        self._say({"what": "memory", **now})
        self._told = now

    def _say_from_anywhere(self, body: Mapping[str, Any]) -> None:
        self._in_loop(lambda: self._say(dict(body)))

    def _in_loop(self, work: Callable[[], None]) -> None:
        if threading.get_ident() == self._thread:
            work()
            return
        on_loop(self._loop, work)

    def _say(self, body: dict[str, Any], fds: list[int] | None = None) -> None:
        try:
            self._link.send({"op": "words", "session": SESSION, **body}, fds or [])
        except LinkError as error:
            log.debug("nothing can be told: %s", error.message)


def _worth_telling(now: Mapping[str, int], told: Mapping[str, int] | None) -> bool:
    if told is None or now["busy"] != told["busy"]:
        return True
    moved = max(abs(now[name] - told[name]) for name in ("held", "reclaimable", "idle"))
    # What is free changes by other programs all the time.
    return moved >= STEP or abs(now["free"] - told["free"]) >= 16 * STEP

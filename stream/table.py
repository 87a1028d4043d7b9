"""The sessions of a worker: admission up to a capacity, look-up, and the end of them all."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from stream.errors import AtCapacity, Conflict, NotFound
from stream.logs import about_session
from stream.session import Session
from stream.states import State

log = logging.getLogger(__name__)

REMEMBERED = 64
"""Ended sessions whose last status can still be asked for."""
STOP_TIMEOUT = 12.0
CANCELLED_TIMEOUT = 1.0
"""Seconds for a session to let go after it was cancelled."""


def new_session_id() -> str:
    """An id that cannot be guessed."""
    return uuid.uuid4().hex


class SessionTable:
    """Live sessions by id, at most ``capacity``, and the last status of those that ended lately."""

    def __init__(self, capacity: int, status: Callable[[Session], dict[str, Any]]) -> None:
        self.capacity = capacity
        self._status = status
        self._sessions: dict[str, Session] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ended: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self.on_ended: list[Callable[[Session], None]] = []
        """Called with each session that has ended."""
        self.closed = False

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Any:
        return iter(list(self._sessions.values()))

    def check_room(self, session_id: str) -> None:
        """Raise `Conflict` or `AtCapacity` when a session of that id could not be added."""
        if self.closed:
            raise AtCapacity("the worker is shutting down")
        if session_id in self._sessions:
            raise Conflict(f"the stream {session_id!r} is already running", field="gateway_request_id")
        if len(self._sessions) >= self.capacity:
            raise AtCapacity(
                f"Pipeline is still in use: {len(self._sessions)} of {self.capacity} sessions are running"
            )

    def add(self, session: Session) -> None:
        """Start ``session``; it leaves the table by itself when it ends."""
        self.check_room(session.id)
        self._sessions[session.id] = session
        self._ended.pop(session.id, None)
        with about_session(session.id):
            task = asyncio.create_task(session.run(), name=f"session {session.id}")
            self._tasks[session.id] = task
            task.add_done_callback(lambda done: self._remove(session, done))

    def _remove(self, session: Session, task: asyncio.Task[None]) -> None:
        self._sessions.pop(session.id, None)
        self._tasks.pop(session.id, None)
        if not task.cancelled() and task.exception() is not None:
            log.error("session %s broke", session.id, exc_info=task.exception())
        self._ended[session.id] = self._status(session)
        for callback in self.on_ended:
            callback(session)
        while len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)

    def find(self, session_id: str | None) -> Session:
        """The live session of that id; without an id, the only one there is."""
        if session_id is None:
            if len(self._sessions) == 1:
                return next(iter(self._sessions.values()))
            if not self._sessions:
                raise NotFound("no stream is running")
            raise NotFound(
                f"{len(self._sessions)} streams are running: name one by X-Stream-Id", field="X-Stream-Id"
            )
        if session_id not in self._sessions:
            raise NotFound(f"there is no stream {session_id!r}", field="X-Stream-Id")
        return self._sessions[session_id]

    def last_status(self, session_id: str) -> dict[str, Any] | None:
        """The final status of a session that ended lately."""
        return self._ended.get(session_id)

    def states(self) -> list[State]:
        return [session.state for session in self._sessions.values()]

    async def wait_ended(self, session_id: str, timeout: float = STOP_TIMEOUT) -> bool:
        """Wait until a session is gone; False when it takes longer than ``timeout`` s."""
        task = self._tasks.get(session_id)
        if task is None:
            return True
        done, _ = await asyncio.wait({task}, timeout=timeout)
        return bool(done)

    async def close(self, reason: str, timeout: float = STOP_TIMEOUT) -> None:
        """End every session within ``timeout`` s and a moment, and take no more."""
        self.closed = True
        for session in self._sessions.values():
            session.stop(reason)
        tasks = list(self._tasks.values())
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=timeout)
        for task in late:
            log.error("%s did not end within %g s and is cancelled", task.get_name(), timeout)
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=CANCELLED_TIMEOUT)

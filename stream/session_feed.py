"""What a session says to whoever follows it: one feed for data channels and server-sent events alike."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from stream.pausing import Pausable
from stream.processor import Emission
from stream.session import Session

log = logging.getLogger(__name__)

LOOK_EVERY = 0.25
"""Seconds between two looks at a session's state, while somebody follows it."""
HELD = 256
"""News that wait for a slow follower; the oldest go."""

_ELSEWHERE = frozenset({"params_updated", "stream_stopped", "status"})
"""Types of events that are told as news of another kind."""


@dataclass(frozen=True, slots=True)
class News:
    """``kind``: ``state`` (``state``, ``message``, ``progress`` 0 to 1, ``hold``), ``params`` (``params``,
    ``frame``), ``text`` and ``data`` (``data``, ``time``), ``error``, ``restart``, ``event`` (what else the
    processor says), ``dropped`` (``count``), ``ended`` (``reason``, ``error``), which is the last."""

    kind: str
    body: dict[str, Any]


Tell = Callable[[News], None]


class SessionFeed:
    """Follows one session while somebody follows it; belongs to the loop."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._followers: dict[object, Tell] = {}
        self._unlisten: Callable[[], None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._said: dict[str, Any] | None = None

    def follow(self, tell: Tell) -> Callable[[], None]:
        """Tell ``tell`` the present state, and all that comes, up to ``ended``; it must neither wait nor
        raise. What is returned ends it and may be called twice."""
        key = object()
        self._followers[key] = tell
        if self._watch is None:
            self._unlisten = self._session.listen(self._heard)
            self._said = self._state()
            self._watch = asyncio.create_task(self._look(), name=f"feed {self._session.id}")
        tell(News("state", self._state()))
        return lambda: self._leave(key)

    def _leave(self, key: object) -> None:
        self._followers.pop(key, None)
        if not self._followers:
            self._stop()

    def _stop(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
        if self._unlisten is not None:
            self._unlisten()
            self._unlisten = None

    def _tell(self, kind: str, body: dict[str, Any]) -> None:
        for tell in list(self._followers.values()):
            tell(News(kind, body))

    def _heard(self, kind: str, what: dict[str, Any] | Emission) -> None:
        if isinstance(what, Emission):
            self._tell(what.kind, {"data": what.data, "time": what.time})
        elif kind == "ended":
            self._end(what)
        elif kind == "params":
            self._tell("params", what)
        elif what.get("type") not in _ELSEWHERE:
            told = what.get("type")
            self._tell(told if told in ("error", "restart") else "event", what)

    def _end(self, body: dict[str, Any]) -> None:
        self._tell("ended", body)
        self._followers.clear()
        self._stop()

    def _state(self) -> dict[str, Any]:
        words, progress = self._session.processor.progress()
        rounded = None if progress is None else round(progress, 2)
        processor = self._session.processor
        hold = processor.hold if isinstance(processor, Pausable) else "running"
        return {"state": str(self._session.state), "message": words, "progress": rounded, "hold": hold}

    async def _look(self) -> None:
        """Nobody says when a state changes, since it follows from the clock."""
        session = self._session
        while True:
            await asyncio.sleep(LOOK_EVERY)
            state = self._state()
            if state != self._said:
                self._said = state
                self._tell("state", state)
            if session.counters().ended:
                # Somebody came after it was told.
                ending = session.ending
                error = ending.error.as_dict() if ending is not None and ending.error is not None else None
                self._end({"reason": ending.reason if ending is not None else "stopped", "error": error})
                return


class Feeds:
    """The feed of each session that is followed."""

    def __init__(self) -> None:
        self._feeds: WeakKeyDictionary[Session, SessionFeed] = WeakKeyDictionary()

    def of(self, session: Session) -> SessionFeed:
        feed = self._feeds.get(session)
        if feed is None:
            feed = self._feeds[session] = SessionFeed(session)
        return feed


class Follower:
    """A bounded queue at the end of a feed: who is too slow loses the oldest news and is told how many."""

    def __init__(self, feed: SessionFeed, *, held: int = HELD) -> None:
        self._news: deque[News] = deque()
        self._held = held
        self._dropped = 0
        self._arrived = asyncio.Event()
        self.close = feed.follow(self._take)

    def _take(self, news: News) -> None:
        self._news.append(news)
        while len(self._news) > self._held:
            self._news.popleft()
            self._dropped += 1
        self._arrived.set()

    async def next(self, timeout: float) -> News | None:
        """The next news; None when there is none within ``timeout`` seconds."""
        if self._dropped:
            count, self._dropped = self._dropped, 0
            return News("dropped", {"count": count})
        if not self._news:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), timeout)
            except TimeoutError:
                return None
        return self._news.popleft()

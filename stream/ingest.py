"""A source whose publisher may come, go and come back, or give way to another one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from stream.errors import Conflict
from stream.mpegts import AccessUnit

log = logging.getLogger(__name__)

KEY_WISH_INTERVAL = 0.5
"""Seconds between two wishes for a key picture that one publisher is told of."""
FIRST = 30.0
"""Seconds in which the first publisher must have come."""
BYE = "bye"
"""The reason of a publisher that has said that it will not come back."""


@dataclass(slots=True)
class Grace:
    """How long a stream waits for its publisher. Pure; moments in seconds.

    ``end_on_bye``: one that says good-bye ends the stream at once. ``first``: the least that the first one is
    waited for, whose connection has yet to be made.
    """

    seconds: float
    since: float | None
    """Since when nobody publishes; None while somebody does."""
    end_on_bye: bool = False
    over: bool = False
    first: float = 0.0
    seen: bool = False

    def came(self) -> None:
        self.since, self.seen = None, True

    def left(self, now: float, reason: str) -> None:
        self.since = now
        self.over = self.over or (self.end_on_bye and reason == BYE)

    def remaining(self, now: float) -> float | None:
        """Seconds until the stream ends, 0 when it is time; None while somebody publishes."""
        if self.over:
            return 0.0
        return None if self.since is None else max(0.0, self.since + self.patience - now)

    @property
    def patience(self) -> float:
        """Seconds for which a publisher is waited for."""
        return self.seconds if self.seen else max(self.seconds, self.first)


class Feed:
    """One publisher's way into an `Ingest`; belongs to the loop.

    What it puts after it was closed or replaced is dropped. ``wants_key``, which the publisher sets, asks it
    for a key picture.
    """

    def __init__(self, ingest: Ingest, name: str, number: int, on_replaced: Callable[[], None]) -> None:
        self.name = name
        self.wants_key: Callable[[], None] | None = None
        self._ingest = ingest
        self._number = number
        self._on_replaced = on_replaced
        self._fresh: set[str] = {"video", "audio"}

    @property
    def active(self) -> bool:
        """Whether this is the one that publishes."""
        return self._ingest.feed is self

    def tracks(self, *, video: bool, audio: bool) -> None:
        """Say which kinds of media will come; may be said again."""
        if self.active:
            self._ingest.announce(video, audio)

    def put(self, unit: AccessUnit) -> None:
        """Hand in an access unit; never waits."""
        if not self.active:
            return
        # What was decoded before says nothing about another publisher's pictures.
        lost = unit.discontinuity or unit.kind in self._fresh
        self._fresh.discard(unit.kind)
        self._ingest.take(replace(unit, discontinuity=lost, epoch=self._number))

    def close(self, reason: str) -> None:
        """The publisher has gone, ``reason`` says why (`BYE`: for good); safe to call twice."""
        if self.active:
            self._ingest.left(reason)

    def replaced(self) -> None:
        """Another publisher has taken over."""
        self._on_replaced()


class Ingest:
    """The `Source` of a session that others publish to. Belongs to the loop.

    `run` ends when nobody has published for ``grace`` seconds (before the first one: for ``first`` seconds at
    least), or when one has said good-bye and ``end_on_bye`` is set. Each unit carries the number of its
    publisher as ``epoch``.
    """

    def __init__(self, *, grace: float, end_on_bye: bool = False, first: float = FIRST) -> None:
        self._grace = Grace(grace, time.monotonic(), end_on_bye, first=first)
        self._changed = asyncio.Event()
        self._put: Callable[[AccessUnit], None] | None = None
        self._tracks: Callable[[bool, bool], None] | None = None
        self._announced: tuple[bool, bool] | None = None
        self._number = 0
        self._asked_at = float("-inf")
        self._ended = False
        self.feed: Feed | None = None
        self.bytes_received = 0
        self.end_reason: str | None = None
        """Why `run` ended, in words."""
        self.present_since = time.monotonic()
        """When the present publisher came, or (there is none) when it left."""
        self.heard_at = float("-inf")
        """When the present publisher's media last came (monotonic, s)."""
        self.taps: list[Callable[[AccessUnit], None]] = []
        """Called with every access unit that comes in; must neither wait nor raise."""

    @property
    def publisher(self) -> str | None:
        """The name of whoever publishes now."""
        return self.feed.name if self.feed is not None else None

    @property
    def had_publisher(self) -> bool:
        """Whether somebody publishes or has published."""
        return self._number > 0

    @property
    def end_on_bye(self) -> bool:
        return self._grace.end_on_bye

    def publish(self, name: str, *, on_replaced: Callable[[], None]) -> Feed:
        """Take the stream over; the publisher before is told by its ``on_replaced``.

        Raises `Conflict` when the stream has ended.
        """
        if self._ended:
            raise Conflict(f"the stream has ended: {self.end_reason or 'it was stopped'}")
        before = self.feed
        self._number += 1
        self.heard_at = float("-inf")
        self.feed = Feed(self, name, self._number, on_replaced)
        self._grace.came()
        self._note_change()
        if before is not None:
            log.info("%s publishes in place of %s", name, before.name)
            before.replaced()
        return self.feed

    def request_key(self) -> None:
        """Ask the publisher for a key picture, twice a second at most."""
        now = time.monotonic()
        feed = self.feed
        if feed is None or feed.wants_key is None or now - self._asked_at < KEY_WISH_INTERVAL:
            return
        self._asked_at = now
        feed.wants_key()

    async def run(self, put: Callable[[AccessUnit], None], tracks: Callable[[bool, bool], None]) -> None:
        """Hand units on until the stream's end."""
        self._put, self._tracks = put, tracks
        try:
            if self._announced is not None:
                tracks(*self._announced)
            # What came before this moment was dropped, key pictures too.
            self.request_key()
            await self._wait_for_the_end()
        finally:
            self._put = self._tracks = None
            self._ended = True
            feed, self.feed = self.feed, None
            if feed is not None:
                feed.replaced()

    async def _wait_for_the_end(self) -> None:
        while True:
            self._changed.clear()
            remaining = self._grace.remaining(time.monotonic())
            if remaining == 0:
                break
            try:
                # Unlike wait_for, it never takes a cancellation for the event.
                async with asyncio.timeout(remaining):
                    await self._changed.wait()
            except TimeoutError:
                continue
        if self.end_reason is None:
            self.end_reason = f"nobody published for {self._grace.patience:g} s"

    # -- for feeds -------------------------------------------------------------------------------------

    def announce(self, video: bool, audio: bool) -> None:
        self._announced = (video, audio)
        if self._tracks is not None:
            self._tracks(video, audio)

    def take(self, unit: AccessUnit) -> None:
        self.bytes_received += len(unit.data)
        self.heard_at = time.monotonic()
        if self._put is not None:
            self._put(unit)
        for tap in tuple(self.taps):
            tap(unit)

    def left(self, reason: str) -> None:
        log.info("%s no longer publishes: %s", self.publisher, reason)
        self.feed = None
        self._grace.left(time.monotonic(), reason)
        if self._grace.over:
            self.end_reason = "the publisher has ended the stream"
        self._note_change()

    def _note_change(self) -> None:
        self.present_since = time.monotonic()
        self._changed.set()

"""Where a recording gets its units: a sink for what goes out, a tap for what comes in."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from stream.mpegts import AccessUnit
from stream.recording.takes import unit_in, unit_out
from stream.recording.writer import RecordingWriter
from stream.units import EncodedUnit, Rendition

KEY_INTERVAL = 1.0
"""Seconds between two wishes for a key picture."""


class _KeyWishes:
    """Asks for a key picture while the writer wants one, every `KEY_INTERVAL` seconds at most."""

    def __init__(self, writer: RecordingWriter) -> None:
        self._writer = writer
        self._asked = 0.0
        self.ask: Callable[[], None] | None = None

    def look(self) -> None:
        now = time.monotonic()
        if self.ask is not None and self._writer.wants_key and now - self._asked >= KEY_INTERVAL:
            self._asked = now
            self.ask()


class RecordingSink:
    """What goes out, in the rendition that trickle has too, so that recording costs no encoding of its own
    beside it. ``request_key`` is set by whoever attaches it."""

    def __init__(self, writer: RecordingWriter) -> None:
        self.rendition: Rendition | None = Rendition(purpose="file")
        self._writer = writer
        self._wishes = _KeyWishes(writer)

    @property
    def request_key(self) -> Callable[[], None] | None:
        return self._wishes.ask

    @request_key.setter
    def request_key(self, ask: Callable[[], None]) -> None:
        self._wishes.ask = ask

    @property
    def dropped(self) -> int:
        return self._writer.dropped

    def expect(self, *, video: bool, audio: bool) -> None:
        self._writer.expect(video=video, audio=audio)

    def offer(self, unit: EncodedUnit) -> None:
        self._writer.put(unit_out(unit))
        self._wishes.look()

    def end(self) -> None:
        self._writer.finish()

    async def run(self) -> None:
        """Until the files are whole; ends by itself when a limit is reached."""
        try:
            await self._writer.done.wait()
        finally:
            self._writer.finish()


class Tapped(Protocol):
    """A stage through which everything that comes in passes."""

    taps: list[Callable[[AccessUnit], None]]


class RecordingTap:
    """What comes in, as it came. ``request_key`` asks the publisher, where there is one to ask."""

    def __init__(
        self, writer: RecordingWriter, tapped: Tapped, request_key: Callable[[], None] | None
    ) -> None:
        self._writer = writer
        self._tapped = tapped
        self._wishes = _KeyWishes(writer)
        self._wishes.ask = request_key
        tapped.taps.append(self._take)

    def _take(self, unit: AccessUnit) -> None:
        self._writer.put(unit_in(unit))
        self._wishes.look()

    def close(self) -> None:
        """Take no more, and finish what there is; safe to call twice."""
        if self._take in self._tapped.taps:
            self._tapped.taps.remove(self._take)
        self._writer.finish()

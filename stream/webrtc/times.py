"""RTP timestamps of two tracks on one timeline of 1/90000 s. Pure; moments are handed in (ns, monotonic).

The picture's timeline is that of its own timestamps, shifted by a constant. Sound is laid beside it by when
both arrived, until the sender's reports say exactly (RFC 3550, 6.4.1); then it moves there once, and later
follows the drift of the two clocks a little at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stream.clock import TICKS, ticks

Kind = Literal["video", "audio"]

SLEW = 200
"""Later corrections: one tick in so many of the time that passes (5 ms a second)."""
NEGLIGIBLE = 2 * TICKS // 1000
"""Two milliseconds: reports are not more exact."""
STEP = TICKS
"""A second: beyond it, the sender's clock was set, and sound moves at once again."""
BOGUS = 5 * TICKS
"""Sound and picture cannot be this far apart: such reports are not believed."""


def unwrapped(value: int, last: int) -> int:
    """32 bits of a timestamp as a number that never wraps, next to the last one."""
    return last + ((value - last + (1 << 31)) & 0xFFFF_FFFF) - (1 << 31)


@dataclass(slots=True)
class _Track:
    rate: int
    last: int | None = None
    offset: int = 0
    pts: int = 0
    moment: int = 0
    report: int | None = None
    """The sender's clock minus this track's own time, by the last report, in ticks."""

    def own(self, timestamp: int) -> int:
        """The timestamp in ticks of this track's own time."""
        value = timestamp if self.last is None else unwrapped(timestamp, self.last)
        return value * TICKS // self.rate


class Timeline:
    """Places the units of one publisher; `place` them in order of arrival."""

    def __init__(self) -> None:
        self._tracks = {"video": _Track(TICKS), "audio": _Track(48_000)}
        self._aligned = False
        self.anchored = 0
        """How often sound was moved at once."""
        self.refused = 0
        """Reports that were not believed."""

    def place(self, kind: Kind, timestamp: int, moment: int) -> int:
        """The time (1/90000 s, never wrapping) of a unit with this RTP timestamp that came at ``moment``."""
        track, other = self._tracks[kind], self._tracks["audio" if kind == "video" else "video"]
        if track.last is None and other.last is not None:
            track.offset = other.pts + ticks(moment - other.moment) - track.own(timestamp)
        if kind == "audio" and track.last is not None:
            self._follow(track, ticks(max(0, moment - track.moment)))
        own = track.own(timestamp)
        track.last = timestamp if track.last is None else unwrapped(timestamp, track.last)
        track.pts, track.moment = own + track.offset, moment
        return track.pts

    def report(self, kind: Kind, ntp: int, timestamp: int) -> None:
        """A sender report: at ``ntp`` (64 bits, RFC 3550, 4) the track's timestamp was ``timestamp``."""
        track = self._tracks[kind]
        if track.last is None or not ntp:
            return
        track.report = (ntp * TICKS >> 32) - track.own(timestamp)
        error = self._error()
        if error is None:
            return
        if abs(error) > BOGUS:
            self.refused += 1
            track.report = None
        elif not self._aligned or abs(error) > STEP:
            self._aligned = True
            if abs(error) > NEGLIGIBLE:
                self.anchored += 1
                self._tracks["audio"].offset += error

    def rtp(self, pts: int) -> int | None:
        """The picture's RTP timestamp as it was sent, by the time that `place` gave it."""
        video = self._tracks["video"]
        return None if video.last is None else (pts - video.offset) & 0xFFFF_FFFF

    def forget(self, kind: Kind) -> None:
        """Another stream takes the track's place: its timestamps have nothing to do with those before."""
        self._tracks[kind] = _Track(self._tracks[kind].rate)
        self._aligned = False

    def _error(self) -> int | None:
        """How far sound must move to stand where the reports say."""
        video, audio = self._tracks["video"], self._tracks["audio"]
        if video.report is None or audio.report is None:
            return None
        return (video.offset - video.report) - (audio.offset - audio.report)

    def _follow(self, audio: _Track, passed: int) -> None:
        error = self._error()
        if not self._aligned or error is None or abs(error) <= NEGLIGIBLE:
            return
        step = min(abs(error), passed // SLEW)
        audio.offset += step if error > 0 else -step

"""The times of a file's packets on one timeline that begins at 0. Pure; everything counts 1/90000 s."""

from __future__ import annotations

from dataclasses import dataclass

from stream.clock import TICKS

BACKWARD = TICKS // 10
"""By how much a track's timestamps may go back before that is a new beginning."""
FORWARD = 10 * TICKS
"""By how much timestamps may leap ahead where a format lets them begin anew anywhere."""


@dataclass(slots=True)
class _Stretch:
    """Packets whose timestamps belong together; the last of them ends at ``end``, as the file counts."""

    shift: int
    end: int


@dataclass(slots=True)
class _Track:
    stretch: _Stretch
    last: int


class FileTimeline:
    """Tells by how much a packet's timestamps are to be shifted.

    A file that was put together from several may begin its timestamps anew: where those of a track go back
    by over `BACKWARD` or, with ``leaps``, go over `FORWARD` beyond those of all tracks. What follows is put
    behind all that was before, and each track joins it where its own timestamps leave their course. Other
    gaps are the file's own, and stay.
    """

    def __init__(self, start: int, *, leaps: bool) -> None:
        self._leaps = leaps
        self._newest = _Stretch(-start, start)
        self._tracks: dict[int, _Track] = {}
        self._end = 0

    def shift(self, track: int, dts: int | None, pts: int | None, duration: int) -> int:
        """For the next packet of ``track``, whose timestamps these are."""
        at, shown = (pts, pts) if dts is None else (dts, dts if pts is None else pts)
        known = self._tracks.get(track)
        if at is None or shown is None:
            return (known.stretch if known is not None else self._newest).shift
        if known is None:
            known = self._tracks[track] = _Track(self._newest, at)
        elif not self._continues(known, at):
            known.stretch = self._joined(known.stretch, at, shown)
        stretch = known.stretch
        known.last = at
        stretch.end = max(stretch.end, shown + duration)
        self._end = max(self._end, stretch.end + stretch.shift)
        return stretch.shift

    def _continues(self, track: _Track, at: int) -> bool:
        return at >= track.last - BACKWARD and not self._is_leap(track.stretch, at)

    def _is_leap(self, stretch: _Stretch, at: int) -> bool:
        return self._leaps and at > stretch.end + FORWARD

    def _joined(self, left: _Stretch, at: int, shown: int) -> _Stretch:
        """The stretch that a packet belongs to whose track has left another one."""
        newest = self._newest
        if newest is left or not -FORWARD <= at - newest.end <= FORWARD:
            newest = self._newest = _Stretch(self._end - shown, shown)
        return newest

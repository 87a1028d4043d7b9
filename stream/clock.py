"""Times of a session: source timestamps to one output timeline, and an even frame rate. Pure; no I/O.

All timestamps count 1/90000 s; moments are nanoseconds of one monotonic clock, handed in by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

TICKS = 90_000
NANOSECONDS = 1_000_000_000


def ticks(nanoseconds: int) -> int:
    """Nanoseconds as 1/90000 s, rounded down."""
    return nanoseconds * TICKS // NANOSECONDS


class Timestamped(Protocol):
    """Anything with a timestamp in units of its time base (seconds)."""

    timestamp: int
    time_base: Fraction


def to_ticks(frame: Timestamped) -> int:
    """The frame's timestamp in 1/90000 s."""
    if frame.time_base.denominator == TICKS and frame.time_base.numerator == 1:
        return frame.timestamp
    return round(frame.timestamp * frame.time_base * TICKS)


@dataclass(slots=True)
class _Epoch:
    """A stretch in which the source's timestamps run on without a jump; it began at ``since``."""

    offset: int
    source: int
    output: int
    moment: int
    since: int


STRAGGLING = 2.0
"""Seconds after a jump in which what belongs before it may still come."""
PAUSE = 0.5
"""Seconds between two pictures, over what their timestamps say, that count."""
CATCHING_UP = 1.0
"""Seconds in which a source that was only held up has to make good for that."""


class SessionClock:
    """Maps the timestamps of a source that may jump, wrap, pause or start again onto one timeline.

    As long as the source runs on, the timeline *is* the source's. A timestamp is a jump when it lies more
    than ``backward`` before the last one, or more than ``forward`` after what the time passed since would
    explain; the timeline then goes on from where it was, by the time that has really passed. Sound and
    pictures share one clock, so they keep their distance; stragglers from before a jump are mapped as
    they would have been. Pictures that come late and stay late are those of a source that has paused, whose
    own time stood still: that time is added.
    """

    def __init__(self, *, backward: float = 1.0, forward: float = 10.0) -> None:
        self._backward = int(backward * TICKS)
        self._forward = int(forward * TICKS)
        self._now: _Epoch | None = None
        self._before: _Epoch | None = None
        self._restarted = False
        self._picture: tuple[int, int] | None = None
        self._late = 0
        self._late_since = 0
        self.jumps = 0

    def restart(self) -> None:
        """The next timestamp is of another source: the timeline goes on by the time that has passed."""
        self._restarted = True

    def map(self, pts: int, moment: int) -> int:
        """The place of ``pts``, which was seen at ``moment``, on the timeline."""
        if self._now is None:
            self._now = _Epoch(0, pts, pts, moment, moment)
            self._restarted = False
            return pts
        if self._restarted:
            self._restarted = False
            output = self._anchor(pts, moment)
            # Of the source before nothing is left.
            self._before = None
            return output
        if self._continues(self._now, pts, moment):
            return self._advance(self._now, pts, moment)
        if self._before is not None and self._straggles(self._before, pts, moment):
            # What the decoder still held back when the source jumped.
            return pts + self._before.offset
        return self._anchor(pts, moment)

    def map_picture(self, pts: int, moment: int) -> int:
        """As `map`, for pictures, whose pauses count."""
        output = self.map(pts, moment)
        if self._picture is not None:
            was, then = self._picture
            if self._stays_late(ticks(moment - then) - (output - was), moment):
                output = self._anchor(pts, moment, output + self._late)
                self._late = 0
        self._picture = (output, moment)
        return output

    def _stays_late(self, step: int, moment: int) -> bool:
        """Whether the source has paused, now that a picture came ``step`` ticks later than it says."""
        if not self._late and step > PAUSE * TICKS:
            self._late, self._late_since = step, moment
            return False
        if self._late:
            self._late += step
        if self._late < PAUSE * TICKS:
            self._late = 0
        return self._late > 0 and moment - self._late_since > CATCHING_UP * NANOSECONDS

    def _continues(self, epoch: _Epoch, pts: int, moment: int) -> bool:
        passed = max(0, ticks(moment - epoch.moment))
        return epoch.source - self._backward <= pts <= epoch.source + passed + self._forward

    def _straggles(self, epoch: _Epoch, pts: int, moment: int) -> bool:
        assert self._now is not None
        in_time = moment - self._now.since <= STRAGGLING * NANOSECONDS
        return in_time and abs(pts - epoch.source) <= self._backward

    def _advance(self, epoch: _Epoch, pts: int, moment: int) -> int:
        output = pts + epoch.offset
        if pts >= epoch.source:
            epoch.source, epoch.output, epoch.moment = pts, output, moment
        return output

    def _anchor(self, pts: int, moment: int, output: int | None = None) -> int:
        assert self._now is not None
        if output is None:
            # At least one picture of 30 fps on, so that a jump within a burst does not pile up at one time.
            output = self._now.output + max(ticks(moment - self._now.moment), TICKS // 30)
        self._before = self._now
        self._now = _Epoch(output - pts, pts, output, moment, moment)
        self.jumps += 1
        return output


class Monotonic:
    """Strictly increasing timestamps: each is what was asked for, or one tick after the last."""

    def __init__(self) -> None:
        self.last: int | None = None

    def next(self, pts: int) -> int:
        if self.last is not None and pts <= self.last:
            pts = self.last + 1
        self.last = pts
        return pts


class EvenRate:
    """Lets through at most ``fps`` frames a second, as evenly as the source's own times allow."""

    def __init__(self, fps: float) -> None:
        if not fps > 0:
            raise ValueError(f"fps must be over 0, not {fps}")
        self._interval = TICKS / fps
        self._due: float | None = None

    def keeps(self, pts: int) -> bool:
        """Whether the frame of ``pts`` goes through. A jump either way starts the count anew."""
        due = self._due
        if due is None or abs(pts - due) > 2 * self._interval + TICKS:
            self._due = pts + self._interval
            return True
        # A quarter of an interval early is nearer than a whole one late.
        if pts < due - self._interval / 4:
            return False
        self._due = max(due + self._interval, pts + self._interval / 2)
        return True

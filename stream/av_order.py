"""In which order, and when, sound and pictures leave. Pure; moments and times count 1/90000 s.

Browsers take the moment at which sound was sent for the moment at which it belongs to the picture, so it has
to leave when the picture of its time leaves, and steadily: neither held back nor let go in a burst because
one picture was late or a notice took the place of a result.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar

from stream.clock import TICKS
from stream.mailbox import Mailbox

FOLLOW = 0.1
"""Seconds by which the delay of the sound may change in a second."""
SETTLE = 2.0
"""Seconds of results at the beginning in which it may jump: a first call is often slow."""
JUMP = 1.0
"""Seconds of difference that are too many to be followed slowly."""
JUMPS = 3
"""Results in a row that must be that far off: a single call that hung is no reason to interrupt the sound."""
PURSUIT = 1.0
"""Seconds after a result for which its delay is still made for."""


class SoundDelay:
    """How long after its timestamp sound leaves: as long as results do, which it follows slowly.

    Times lie on the output timeline and moments on a clock of its own, so what counts is their difference
    and its changes.
    """

    def __init__(self) -> None:
        self._delay: float | None = None
        self._wanted = 0.0
        self._first_result: int | None = None
        self._moved_at = self._pursued_until = 0
        self._far_off = 0

    def picture_leaves(self, pts: int, now: int, *, is_result: bool) -> None:
        """A picture leaves at ``now``. Notices and repeats count only while there is no result."""
        lag = now - pts
        if is_result:
            self._follow(lag, now)
        elif self._delay is None:
            self._delay = self._wanted = lag

    def due(self, pts: int, now: int) -> float | None:
        """The moment at which sound of ``pts`` leaves, as far as is known at ``now``; None before the first
        picture."""
        if self._delay is None:
            return None
        self._move(now)
        return pts + self._delay

    def _follow(self, lag: int, now: int) -> None:
        if self._first_result is None:
            self._first_result = now
        self._move(now)
        if self._delay is None or now - self._first_result <= SETTLE * TICKS:
            self._delay = lag
        self._far_off = self._far_off + 1 if abs(lag - self._delay) > JUMP * TICKS else 0
        if self._far_off >= JUMPS:
            self._delay, self._far_off = lag, 0
        self._wanted = lag
        self._moved_at, self._pursued_until = now, now + int(PURSUIT * TICKS)

    def _move(self, now: int) -> None:
        until = min(now, self._pursued_until)
        if self._delay is None or until <= self._moved_at:
            return
        step = FOLLOW * (until - self._moved_at)
        self._delay += min(max(self._wanted - self._delay, -step), step)
        self._moved_at = until


class Timed(Protocol):
    """What `AvOrder` must know of a picture: its time, and whether it is a result."""

    @property
    def pts(self) -> int: ...
    @property
    def is_result(self) -> bool: ...


class TimedSound(Protocol):
    """What `AvOrder` must know of a stretch of sound: where it begins and how long it is."""

    @property
    def pts(self) -> int: ...
    @property
    def length(self) -> int: ...


V = TypeVar("V", bound=Timed)
A = TypeVar("A", bound=TimedSound)


class AvOrder(Generic[V, A]):
    """What the encoder takes next: sound that is due, else a picture.

    Holds ``max_pictures`` pictures (the newest win) and ``max_sound`` seconds of sound. When there is more
    sound than that it leaves before it is due; before the first picture, or when there is twice as much
    because nothing is taken, the oldest is dropped. Lossless, nothing is dropped (whoever puts waits while
    `sound_is_full`) and sound leaves once the picture of its time has, whenever that is. ``expects_video`` is
    None until it is known whether there will be pictures at all.
    """

    def __init__(self, *, max_pictures: int = 2, max_sound: float = 2.0, lossless: bool = False) -> None:
        self._lossless = lossless
        self._pictures: Mailbox[V] = Mailbox(max_pictures)
        self._sound: deque[A] = deque()
        self._held = 0
        self._max_sound = int(max_sound * TICKS)
        self._shown: int | None = None
        self._delay = SoundDelay()
        self.expects_video: bool | None = None
        self.dropped_audio = 0

    @property
    def dropped_video(self) -> int:
        return self._pictures.dropped

    @property
    def pictures(self) -> int:
        """How many pictures wait."""
        return len(self._pictures)

    def has_room_for(self, count: int) -> bool:
        """Whether so many that belong together push nothing out."""
        return not self._pictures or len(self._pictures) + count <= self._pictures.limit

    @property
    def sound_is_full(self) -> bool:
        return self._held > self._max_sound

    def put_pictures(self, pictures: list[V]) -> list[V]:
        """Add pictures that belong together; returns those that were pushed out."""
        self.expects_video = True
        return self._pictures.put_all(pictures)

    def put_sound(self, sound: A) -> None:
        self._sound.append(sound)
        self._held += sound.length
        early = self._shown is None and self.expects_video is not False
        bound = self._max_sound if early else 2 * self._max_sound
        while self._held > bound and not self._lossless:
            self._pop_sound()
            self.dropped_audio += 1

    def next(self, now: int, *, ending: bool = False) -> V | A | None:
        """What is to be encoded at ``now``; ``ending``: nothing more comes, so sound waits for nothing."""
        sound = self.next_sound(now)
        if sound is not None:
            return sound
        picture = self._pictures.take()
        if picture is not None:
            self._shown = max(picture.pts, self._shown) if self._shown is not None else picture.pts
            self._delay.picture_leaves(picture.pts, now, is_result=picture.is_result)
            return picture
        return self._pop_sound() if self._sound and ending else None

    def next_sound(self, now: int) -> A | None:
        """The sound that may leave by ``now``, if there is any."""
        return self._pop_sound() if self._sound and self._may_leave(self._sound[0], now) else None

    def wait(self, now: int) -> float | None:
        """How long after ``now`` sound becomes due if nothing else happens; None when none does."""
        if not self._sound or self._lossless:
            return None
        due = self._delay.due(self._sound[0].pts, now)
        return None if due is None else max(0.0, due - now)

    def _may_leave(self, sound: A, now: int) -> bool:
        if self.expects_video is False or self._held > self._max_sound:
            return True
        if self._lossless:
            return self._shown is not None and sound.pts <= self._shown
        due = self._delay.due(sound.pts, now)
        return due is not None and due <= now

    def _pop_sound(self) -> A:
        sound = self._sound.popleft()
        self._held -= sound.length
        return sound

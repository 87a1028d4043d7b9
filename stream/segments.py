"""Where a stream of encoded units is cut into segments that can each be decoded alone. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from stream.clock import TICKS
from stream.units import EncodedUnit

TOLERANCE = TICKS // 50


@dataclass(frozen=True, slots=True)
class Cut:
    """A new segment begins; which tracks it declares."""

    video: bool
    audio: bool


class Segmenter:
    """Cuts at the first key picture ``duration`` seconds after the last cut, not at every key picture.

    Sound that comes before the first picture is held, two seconds of it at most, so that no segment is
    sound alone when there are pictures. Sound that first comes in mid-segment waits for a cut too, since a
    segment declares its tracks at its head; `wants_key` says that a key picture would help.
    """

    def __init__(self, *, duration: float = 2.0, max_held: float = 2.0) -> None:
        self._duration = int(duration * TICKS)
        self._max_held = int(max_held * TICKS)
        self._held: deque[EncodedUnit] = deque()
        self._cut_at: int | None = None
        self._declared: Cut | None = None
        self.expects_video: bool | None = None
        self.expects_audio = False
        """Whether the source has sound, so that even a segment that begins before it declares it."""
        self.wants_key = True
        self.dropped = 0

    def put(self, unit: EncodedUnit) -> list[Cut | EncodedUnit]:
        """What to do now, in this order: begin segments, write units."""
        return self._put_picture(unit) if unit.kind == "video" else self._put_sound(unit)

    def abandon(self) -> None:
        """The segment under way is lost; the next key picture begins another."""
        self._cut_at = self._declared = None
        self.wants_key = True

    def _put_picture(self, unit: EncodedUnit) -> list[Cut | EncodedUnit]:
        self.expects_video = True
        if unit.key and self._is_due(unit):
            return [self._cut(unit), unit, *self._release(unit.pts)]
        if self._declared is None or not self._declared.video:
            self.dropped += 1
            return []
        return [unit]

    def _is_due(self, unit: EncodedUnit) -> bool:
        if self._declared is None or self._cut_at is None or not self._declared.video:
            return True
        if self._held and not self._declared.audio:
            return True
        return unit.pts - self._cut_at >= self._duration - TOLERANCE or unit.pts < self._cut_at

    def _put_sound(self, unit: EncodedUnit) -> list[Cut | EncodedUnit]:
        if self.expects_video is False:
            if self._declared is None or self._cut_at is None or unit.pts - self._cut_at >= self._duration:
                return [self._cut(unit), *self._release(0), unit]
            return [unit]
        if self._declared is not None and self._declared.audio:
            return [unit]
        self._held.append(unit)
        self.wants_key = True
        while self._held[-1].pts - self._held[0].pts > self._max_held:
            self._held.popleft()
            self.dropped += 1
        return []

    def _cut(self, unit: EncodedUnit) -> Cut:
        sound = (
            self.expects_audio
            or unit.kind == "audio"
            or bool(self._held)
            or (self._declared is not None and self._declared.audio)
        )
        self._cut_at = unit.pts
        self._declared = Cut(unit.kind == "video", sound)
        self.wants_key = False
        return self._declared

    def _release(self, since: int) -> list[EncodedUnit]:
        """Held sound, without what lies more than half a second before ``since``."""
        units = [unit for unit in self._held if unit.pts >= since - TICKS // 2]
        self.dropped += len(self._held) - len(units)
        self._held.clear()
        return units

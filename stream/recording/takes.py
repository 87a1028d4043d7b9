"""What becomes of a stream's units when they are recorded: which file they go to, and when in it. Pure.

A *take* is a stretch that one file can hold: one size, one set of tracks, one timeline. It begins with a key
picture. Another size or codec, sound that first comes or changes, and a jump of the source's clock each end
it; the next key picture begins the next.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

from stream.clock import TICKS
from stream.mpegts import AccessUnit
from stream.recording.bitstream import (
    AudioFormat,
    PictureFormat,
    audio_format,
    bare_sound,
    picture_format,
)
from stream.units import EncodedUnit

HOLD = TICKS * 3 // 2
"""Ticks for which pictures wait for the first sound, where sound is expected: a file declares its tracks at
its head."""
MAX_HELD = 600
"""Units that are held before a take begins."""
EARLY_SOUND = TICKS * 2
"""Ticks of sound that are kept until the picture of its time has come."""
JUMP = 5.0
"""Seconds by which a source's clock may part from its arrivals."""


@dataclass(frozen=True, slots=True)
class MediaUnit:
    """A coded picture or a frame of sound to be recorded, its times in 1/90000 s.

    ``received`` (ns) is 0 where the timeline is known to be whole, else it is held against it. What has
    another ``epoch`` goes on from nothing before.
    """

    kind: Literal["video", "audio"]
    codec: str
    data: bytes
    pts: int
    dts: int
    duration: int = 0
    key: bool = True
    discontinuity: bool = False
    received: int = 0
    epoch: int = 0


def unit_in(unit: AccessUnit) -> MediaUnit:
    """What came in."""
    return MediaUnit(
        unit.kind,
        unit.codec,
        unit.data,
        unit.pts,
        unit.dts,
        0,
        unit.key,
        unit.discontinuity,
        unit.received,
        getattr(unit, "epoch", 0),
    )


def unit_out(unit: EncodedUnit) -> MediaUnit:
    """What goes out."""
    return MediaUnit(unit.kind, unit.codec, unit.data, unit.pts, unit.pts, unit.duration, unit.key)


@dataclass(frozen=True, slots=True)
class Begin:
    """A new file begins. ``key`` is the picture that it begins with, for a decoder that wants to see it."""

    video: PictureFormat | None
    audio: AudioFormat | None
    key: bytes = b""


@dataclass(frozen=True, slots=True)
class Write:
    """One packet, its times counted from the file's beginning."""

    kind: Literal["video", "audio"]
    data: bytes
    pts: int
    dts: int
    duration: int
    key: bool


@dataclass(slots=True)
class _Take:
    base: int
    video: PictureFormat | None
    audio: AudioFormat | None
    offset: float | None
    last_dts: dict[str, int]
    skipping: bool = False


class Takes:
    """Cuts a stream of units into takes; `put` says what to do, in this order.

    ``wants_key`` says that nothing can be recorded, or not all, until the next key picture.
    """

    def __init__(self, *, expects_video: bool | None = None, expects_audio: bool = False) -> None:
        self.expects_video = expects_video
        self.expects_audio = expects_audio
        self.wants_key = expects_video is not False
        self.dropped = 0
        self._take: _Take | None = None
        self._rotate = False
        self._held: deque[MediaUnit] = deque()
        self._early: deque[MediaUnit] = deque()
        self._audio: AudioFormat | None = None
        self._heard: int | None = None
        self._epoch = 0
        self._format: PictureFormat | None = None

    def put(self, unit: MediaUnit) -> list[Begin | Write]:
        if unit.epoch != self._epoch or self._has_jumped(unit):
            self._epoch = unit.epoch
            self._break_off()
        return self._put_picture(unit) if unit.kind == "video" else self._put_sound(unit)

    def lost(self) -> None:
        """Units before the next one are missing: pictures wait for a key picture."""
        if self._held:
            self._break_off()
        if self._take is not None and self._take.video is not None:
            self._take.skipping = self.wants_key = True

    def end(self) -> list[Begin | Write]:
        """Nothing more comes: what still waits for sound begins without it."""
        return self._begin() if self._held else []

    # -- pictures ----------------------------------------------------------------------------------------

    def _put_picture(self, unit: MediaUnit) -> list[Begin | Write]:
        self.expects_video = True
        if unit.discontinuity and not unit.key:
            self.lost()
        found = picture_format(unit.codec, unit.data) if unit.key else None
        take = self._take
        if take is not None and take.video is not None and not self._ends(take, take.video, unit, found):
            if take.skipping and not unit.key:
                self.dropped += 1
                return []
            if take.skipping:
                take.skipping, self.wants_key = False, self._rotate
            return self._write(take, unit)
        if found is not None:
            self._begin_holding(found, unit.pts)
        elif self._format is None:
            self._take = None
            self.wants_key = True
            self.dropped += 1
            return []
        self._held.append(unit)
        known = self._audio is not None or not self.expects_audio
        waited = unit.pts - self._held[0].pts
        return self._begin() if known or waited >= HOLD or len(self._held) >= MAX_HELD else []

    def _ends(self, take: _Take, video: PictureFormat, unit: MediaUnit, found: PictureFormat | None) -> bool:
        """Whether this picture cannot go on in the take, or is the one that another was waited for with."""
        if video.codec != unit.codec:
            return True
        return found is not None and (self._rotate or found != video)

    def _begin_holding(self, found: PictureFormat, pts: int) -> None:
        """A key picture from which the next take begins, as soon as its tracks are known."""
        if self._heard is None or abs(pts - self._heard) > EARLY_SOUND:
            # A track that nothing comes for would keep a file from being readable before its end.
            self._audio = None
        self.dropped += len(self._held)
        self._held.clear()
        self._take, self._rotate, self._format = None, False, found
        self.wants_key = False

    # -- sound -------------------------------------------------------------------------------------------

    def _put_sound(self, unit: MediaUnit) -> list[Begin | Write]:
        found = audio_format(unit.codec, unit.data)
        if found is None:
            self.dropped += 1
            return []
        if found != self._audio:
            self._early.clear()
        self._audio, self._heard = found, unit.pts
        take = self._take
        if take is not None and take.audio == found:
            return self._write(take, unit)
        if take is not None and take.video is not None:
            self._rotate = self.wants_key = True
        self._early.append(unit)
        while unit.pts - self._early[0].pts > EARLY_SOUND or len(self._early) > MAX_HELD:
            self._early.popleft()
            self.dropped += 1
        if self._held or (self.expects_video is False and (take is None or take.video is None)):
            return self._begin()
        return []

    # -- takes -------------------------------------------------------------------------------------------

    def _begin(self) -> list[Begin | Write]:
        pictures, sounds, video = list(self._held), list(self._early), self._format
        self._held.clear()
        self._early.clear()
        self._format = None
        first = pictures[0] if pictures else sounds[0]
        offset = first.pts / TICKS - first.received / 1e9 if first.received else None
        take = self._take = _Take(first.dts, video, self._audio, offset, {})
        steps: list[Begin | Write] = [Begin(video, take.audio, pictures[0].data if pictures else b"")]
        for unit in sorted(pictures + sounds, key=lambda unit: unit.dts):
            steps += self._write(take, unit)
        return steps

    def _write(self, take: _Take, unit: MediaUnit) -> list[Begin | Write]:
        pts, dts = unit.pts - take.base, unit.dts - take.base
        if dts < 0 or (unit.kind == "audio" and take.audio is None):
            self.dropped += 1
            return []
        last = take.last_dts.get(unit.kind)
        if last is not None and dts <= last:
            dts = last + 1
        take.last_dts[unit.kind] = dts
        data = bare_sound(unit.codec, unit.data) if unit.kind == "audio" else unit.data
        return [Write(unit.kind, data, max(pts, dts), dts, unit.duration, unit.key)]

    def _has_jumped(self, unit: MediaUnit) -> bool:
        """Whether the unit's time and its arrival have parted: another publisher, or a broken clock."""
        take = self._take
        if take is None or take.offset is None or not unit.received:
            return False
        offset = unit.pts / TICKS - unit.received / 1e9
        if abs(offset - take.offset) > JUMP:
            return True
        # Clocks drift apart slowly; only what happens at once is a jump.
        take.offset += (offset - take.offset) / 64
        return False

    def _break_off(self) -> None:
        """The take is over; the next key picture, or sound where there are no pictures, begins another."""
        self._take = self._format = None
        self._rotate = False
        self.dropped += len(self._held)
        self._held.clear()
        self._early.clear()
        self.wants_key = self.expects_video is not False

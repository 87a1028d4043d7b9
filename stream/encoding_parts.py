"""What the encoding stage is told and what it tells: sound, settings, events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from stream.canvas import Shown
from stream.clock import TICKS
from stream.codecs.audio_encoder import AudioEncoderSettings
from stream.codecs.video_encoder import VideoEncoderSettings
from stream.errors import HeadraceError
from stream.frames import AudioFrame, Timeline
from stream.renditions import BitrateRange
from stream.units import EncodedUnit, Rendition

VIEWERS = BitrateRange(2_000_000, 250_000, 6_000_000)
VIEWERS_LOW = BitrateRange(250_000, 80_000, 600_000)


@dataclass(frozen=True, slots=True)
class Heard:
    """Sound to encode; ``frame.timestamp`` counts 1/90000 s of the output timeline."""

    frame: AudioFrame
    pts: int

    @property
    def length(self) -> int:
        return int(self.frame.duration * TICKS)


@dataclass(frozen=True, slots=True)
class EncodingSettings:
    """``video`` holds for every rendition but for the bitrates and key intervals of ``viewers`` (seconds) and
    ``viewers_low``. ``fixed_size``: the first picture's size holds to the end (a file's track cannot change
    it)."""

    video: VideoEncoderSettings = field(default_factory=VideoEncoderSettings)
    audio: AudioEncoderSettings = field(default_factory=AudioEncoderSettings)
    viewers: BitrateRange = VIEWERS
    viewers_low: BitrateRange = VIEWERS_LOW
    viewers_key_interval: float = 10.0
    fixed_size: bool = False
    lossless: bool = False

    def bitrates(self, rendition: Rendition) -> BitrateRange:
        """What a rendition may be set to; a file's stays as it is."""
        if rendition.purpose == "file":
            return BitrateRange(*3 * (self.video.bitrate,))
        return self.viewers if rendition.purpose == "viewers" else self.viewers_low


class EncodingEvents(Protocol):
    """What the stage tells, in its thread."""

    def encoded(self, units: list[EncodedUnit]) -> None:
        """Units of whatever rendition, and of the sound."""
        ...

    def picture_left(self, shown: Shown, timeline: Timeline) -> None:
        """A picture is encoded in every rendition (``timeline``: the first), or ready if there is none."""
        ...

    def sound_left(self, pts: int) -> None: ...
    def rendition_failed(self, rendition: Rendition, error: HeadraceError) -> None: ...
    def encoding_failed(self, error: HeadraceError) -> None: ...

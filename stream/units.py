"""Encoded pictures and sound on their way to the sinks."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from stream.frames import Timeline

TS_TIME_BASE = Fraction(1, 90_000)

VideoCodec = Literal["h264", "vp8"]
Profile = Literal["constrained_baseline", "baseline", "main", "high"]
Purpose = Literal["file", "viewers", "viewers_low"]


@dataclass(frozen=True, slots=True)
class Rendition:
    """The key of one encoding of a session's picture: whoever names the same one gets the same units.

    ``profile`` is H.264's. ``purpose`` is the class of bitrate: ``file`` keeps its own (trickle, recording),
    ``viewers`` follow what their connections carry, ``viewers_low`` are those too slow for the others.
    Pictures larger than ``max_size`` (width, height, either way round) are scaled down.
    """

    codec: VideoCodec = "h264"
    profile: Profile = "high"
    purpose: Purpose = "file"
    max_size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class EncodedUnit:
    """One access unit, shared by every sink and never changed.

    ``data`` is Annex B for H.264 (parameter sets before each key picture), one frame for VP8, one packet for
    Opus. ``pts`` counts 1/90000 s and so does ``duration``; there are no B-frames, so decoding order is
    presentation order. ``repeat`` marks a picture that was shown again because no new one came,
    ``overlay`` one that carries a notice instead of a result. ``rendition`` is None for sound. ``source``
    is the timestamp of the frame that the picture was made from, in 1/90000 s as the source counted; None
    for repeats, overlays and sound.
    """

    kind: Literal["video", "audio"]
    data: bytes
    pts: int
    duration: int
    key: bool = True
    repeat: bool = False
    overlay: bool = False
    timeline: Timeline = field(default_factory=Timeline)
    rendition: Rendition | None = None
    codec: str = "h264"
    source: int | None = None


@dataclass(frozen=True, slots=True)
class VideoParameters:
    """What a muxer must know of the encoded pictures; ``extradata`` are H.264's parameter sets (Annex B)."""

    width: int
    height: int
    codec: VideoCodec = "h264"
    extradata: bytes = b""


@dataclass(frozen=True, slots=True)
class AudioParameters:
    """What a muxer must know of the encoded sound (Opus always runs at 48 kHz)."""

    channels: int
    codec: Literal["opus"] = "opus"
    rate: int = 48_000
    extradata: bytes = b""

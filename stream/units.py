"""Encoded pictures and sound on their way to the sinks."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from stream.frames import Timeline

TS_TIME_BASE = Fraction(1, 90_000)


@dataclass(frozen=True, slots=True)
class EncodedUnit:
    """One access unit, shared by every sink and never changed.

    ``data`` is Annex B for H.264 (parameter sets before each key picture), one packet for Opus.
    ``pts`` counts 1/90000 s and so does ``duration``; there are no B-frames, so decoding order is
    presentation order. ``repeat`` marks a picture that was shown again because no new one came,
    ``overlay`` one that carries a notice instead of a result.
    """

    kind: Literal["video", "audio"]
    data: bytes
    pts: int
    duration: int
    key: bool = True
    repeat: bool = False
    overlay: bool = False
    timeline: Timeline = field(default_factory=Timeline)


@dataclass(frozen=True, slots=True)
class VideoParameters:
    """What a muxer must know of the encoded pictures."""

    width: int
    height: int
    codec: Literal["h264"] = "h264"
    extradata: bytes = b""


@dataclass(frozen=True, slots=True)
class AudioParameters:
    """What a muxer must know of the encoded sound (Opus always runs at 48 kHz)."""

    channels: int
    codec: Literal["opus"] = "opus"
    rate: int = 48_000
    extradata: bytes = b""

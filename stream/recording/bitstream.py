"""As much of coded pictures and sound as a container must know of them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stream.recording.sps import sequence_parameters

_ADTS_RATES = (
    96_000,
    88_200,
    64_000,
    48_000,
    44_100,
    32_000,
    24_000,
    22_050,
    16_000,
    12_000,
    11_025,
    8_000,
    7_350,
)
_ADTS_CHANNELS = (0, 1, 2, 3, 4, 5, 6, 8)
_H264_SPS = 7
_HEVC_PARAMETER_SETS = frozenset({32, 33, 34})


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """``codec`` is ``opus`` or ``aac``; ``rate`` in Hz."""

    codec: str
    rate: int
    channels: int


def audio_format(codec: str, data: bytes) -> AudioFormat | None:
    """The format that a frame of sound tells of itself; None when it cannot be read.

    Opus decodes to whatever number of channels is wanted, whichever its packets have: two.
    """
    if codec == "opus":
        return AudioFormat("opus", 48_000, 2) if data else None
    if codec != "aac" or len(data) < 7 or data[0] != 0xFF or data[1] & 0xF6 != 0xF0:
        return None
    rate, channels = data[2] >> 2 & 0x0F, (data[2] & 1) << 2 | data[3] >> 6
    if rate >= len(_ADTS_RATES) or not channels:
        return None
    return AudioFormat("aac", _ADTS_RATES[rate], _ADTS_CHANNELS[channels])


def bare_sound(codec: str, data: bytes) -> bytes:
    """A frame of sound as files hold it: AAC without its ADTS header (ISO/IEC 14496-3, 1.A.2)."""
    if codec != "aac":
        return data
    return data[7 if data[1] & 1 else 9 :]


@dataclass(frozen=True, slots=True)
class PictureFormat:
    """What must stay the same of key pictures for their track to go on. ``size`` is None where it is only
    known to a decoder; ``coding`` tells formats apart and means nothing else."""

    codec: str
    size: tuple[int, int] | None
    coding: object = None


def picture_format(codec: str, data: bytes) -> PictureFormat | None:
    """The format that a key picture tells of itself; None when it tells none."""
    if codec == "vp8":
        return _vp8_format(data)
    if codec == "hevc":
        sets = tuple(nal for nal in nal_units(data) if nal and nal[0] >> 1 & 0x3F in _HEVC_PARAMETER_SETS)
        return PictureFormat("hevc", None, sets) if sets else None
    for nal in nal_units(data):
        if nal and nal[0] & 0x1F == _H264_SPS:
            try:
                found = sequence_parameters(nal)
            except ValueError:
                return None
            return PictureFormat("h264", (found.width, found.height), (found.profile, found.coding))
    return None


def _vp8_format(data: bytes) -> PictureFormat | None:
    """RFC 6386, 9.1: frame tag, start code, width and height with two bits of scaling each."""
    if len(data) < 10 or data[0] & 1 or data[3:6] != b"\x9d\x01\x2a":
        return None
    width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (6, 8))
    return PictureFormat("vp8", (width, height)) if width and height else None


def nal_units(data: bytes) -> Iterator[bytes]:
    """The NAL units of an Annex B byte stream, without their start codes."""
    start = data.find(b"\x00\x00\x01")
    while start >= 0:
        end = data.find(b"\x00\x00\x01", start + 3)
        unit = data[start + 3 : end if end >= 0 else len(data)]
        yield unit.rstrip(b"\x00") if end >= 0 else unit
        start = end

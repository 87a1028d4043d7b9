"""Which streams a program map lists, and which of them can be used. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from stream.psi import NULL_PID, PAT_PID, ElementaryStream

_STREAM_TYPES: dict[int, tuple[str, Literal["video", "audio"], bool]] = {
    0x01: ("mpeg1video", "video", False),
    0x02: ("mpeg2video", "video", False),
    0x03: ("mp2", "audio", False),
    0x04: ("mp2", "audio", False),
    0x0F: ("aac", "audio", True),
    0x10: ("mpeg4", "video", False),
    0x11: ("aac_latm", "audio", False),
    0x1B: ("h264", "video", True),
    0x24: ("hevc", "video", True),
    0x33: ("vvc", "video", False),
    0x81: ("ac3", "audio", False),
    0x87: ("eac3", "audio", False),
}


@dataclass(frozen=True, slots=True)
class Track:
    """A stream that the program map lists. Of each kind the first that is ``supported`` is ``selected``."""

    pid: int
    stream_type: int
    codec: str
    kind: Literal["video", "audio", "other"]
    supported: bool
    selected: bool = False
    channels: int = 0


def tracks_of(streams: Iterable[ElementaryStream]) -> tuple[Track, ...]:
    """The tracks of a program in the order of its map."""
    tracks: list[Track] = []
    selected: set[str] = set()
    for stream in streams:
        if stream.pid in (PAT_PID, NULL_PID) or any(track.pid == stream.pid for track in tracks):
            continue
        codec, kind, supported = _codec_of(stream)
        chosen = supported and kind not in selected
        if chosen:
            selected.add(kind)
        channels = _opus_channels(stream) if codec == "opus" else 0
        tracks.append(Track(stream.pid, stream.stream_type, codec, kind, supported, chosen, channels))
    return tuple(tracks)


def _codec_of(stream: ElementaryStream) -> tuple[str, Literal["video", "audio", "other"], bool]:
    if stream.stream_type == 0x06:
        if stream.descriptor(0x05) == b"Opus":
            return "opus", "audio", True
        return "private", "other", False
    return _STREAM_TYPES.get(stream.stream_type, (f"type 0x{stream.stream_type:02x}", "other", False))


def _opus_channels(stream: ElementaryStream) -> int:
    """Channels by the Opus descriptor's channel_config_code; 2 when it says nothing or dual mono (0)."""
    extension = stream.descriptor(0x7F)
    if extension is None or len(extension) < 2 or extension[0] != 0x80 or not 1 <= extension[1] <= 8:
        return 2
    return extension[1]

"""What is in a recorded file, by decoding it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av


@dataclass
class Contents:
    """What decoding a file gives."""

    duration: float
    size: tuple[int, int] | None
    codecs: dict[str, str]
    video: list[float]
    audio: list[float]
    """When each frame is to be shown or heard, in seconds."""
    first_is_key: bool


def contents(path: Path) -> Contents:
    with av.open(str(path)) as container:
        codecs = {stream.type: stream.codec_context.name for stream in container.streams}
        times: dict[str, list[float]] = {"video": [], "audio": []}
        size, first_is_key = None, False
        for packet in container.demux():
            frame: Any
            for frame in packet.decode():
                if packet.stream.type == "video" and not times["video"]:
                    size, first_is_key = (frame.width, frame.height), bool(frame.key_frame)
                times[packet.stream.type].append(float(frame.pts * frame.time_base))
        duration = (container.duration or 0) / av.time_base
    return Contents(duration, size, codecs, times["video"], times["audio"], first_is_key)


def boxes(path: Path) -> list[str]:
    """The outermost boxes of an MP4 file (ISO/IEC 14496-12), which has fragments where one is ``moof``."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        found.append(data[at + 4 : at + 8].decode("latin1"))
        at += int.from_bytes(data[at + 8 : at + 16], "big") if size == 1 else size or len(data)
    return found

"""Frames under the names that PyTrickle has for them, and small holders of frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from stream.frames import DEFAULT_HEIGHT, DEFAULT_WIDTH, AudioFrame, InputFrame, SideData, VideoFrame

if TYPE_CHECKING:
    import torch

__all__ = [
    "DEFAULT_HEIGHT",
    "DEFAULT_WIDTH",
    "AudioFrame",
    "AudioOutput",
    "FrameBuffer",
    "InputFrame",
    "OutputFrame",
    "SideData",
    "VideoFrame",
    "VideoOutput",
]


class OutputFrame:
    """Frames on their way out, with the request that they belong to."""

    request_id: str

    @property
    def timestamp(self) -> int:
        raise NotImplementedError


class VideoOutput(OutputFrame):
    """One picture."""

    def __init__(self, frame: VideoFrame, request_id: str = "") -> None:
        self.frame = frame
        self.request_id = request_id

    @property
    def tensor(self) -> torch.Tensor:
        return self.frame.tensor

    @property
    def timestamp(self) -> int:
        return self.frame.timestamp

    @property
    def time_base(self) -> Fraction:
        return self.frame.time_base

    @property
    def log_timestamps(self) -> dict[str, float]:
        return self.frame.log_timestamps

    def replace_tensor(self, tensor: torch.Tensor) -> VideoOutput:
        """The same moment with other pixels."""
        return VideoOutput(self.frame.replace_tensor(tensor), self.request_id)


class AudioOutput(OutputFrame):
    """Stretches of sound that belong together."""

    def __init__(self, frames: Sequence[AudioFrame], request_id: str = "") -> None:
        self.frames = list(frames)
        self.request_id = request_id

    @property
    def timestamp(self) -> int:
        """That of the first; 0 without any."""
        return self.frames[0].timestamp if self.frames else 0


class FrameBuffer:
    """Keeps the newest ``max_frames`` frames."""

    def __init__(self, max_frames: int = 300) -> None:
        self.max_frames = max_frames
        self.frames: deque[VideoFrame | AudioFrame] = deque(maxlen=max_frames)
        self.total_frames_received = 0
        self.total_frames_discarded = 0

    def add_frame(self, frame: VideoFrame | AudioFrame) -> None:
        self.total_frames_discarded += len(self.frames) == self.max_frames
        self.total_frames_received += 1
        self.frames.append(frame)

    def get_frame(self) -> VideoFrame | AudioFrame | None:
        """Take the oldest out; None without any."""
        return self.frames.popleft() if self.frames else None

    def get_all_frames(self) -> list[VideoFrame | AudioFrame]:
        """Take all out, oldest first."""
        frames = list(self.frames)
        self.frames.clear()
        return frames

    def clear(self) -> None:
        self.frames.clear()

    def size(self) -> int:
        return len(self.frames)

    def get_stats(self) -> dict[str, int]:
        return {
            "current_frames": len(self.frames),
            "max_frames": self.max_frames,
            "total_received": self.total_frames_received,
            "total_discarded": self.total_frames_discarded,
        }

"""Processors that the engine of a test runs."""

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from byoc import AudioFrame, FrameProcessor, VideoFrame


class RaisesSometimes(FrameProcessor):
    count = 0

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        self.count += 1
        if self.count % 3 == 0:
            raise ValueError("every third frame")
        return frame


class ReturnsNonsense(FrameProcessor):
    async def process_video_async(self, frame: VideoFrame) -> Any:
        return "a picture"


class ReturnsWrongShape(FrameProcessor):
    async def process_video_async(self, frame: VideoFrame) -> Any:
        return frame.replace_tensor(frame.tensor[0, 0])


class Talks(FrameProcessor):
    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        self.emit("text", f"frame at {frame.time:.3f}")
        return frame


class DiesOnce(FrameProcessor):
    """Kills its own process in mid-file, the first time."""

    count = 0

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        self.count += 1
        mark = Path(os.environ["DIES_ONCE"])
        if self.count == 20:
            _die_once(mark)
        return frame


def _die_once(mark: Path) -> None:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class LeftOnly(FrameProcessor):
    """Silences the right channel."""

    async def process_audio_async(self, frame: AudioFrame) -> list[AudioFrame]:
        samples = frame.samples.copy()
        samples[1] = 0
        return [frame.replace_samples(samples)]


class Slow(FrameProcessor):
    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        time.sleep(0.15)  # noqa: ASYNC251 (a processor may block)
        return frame


class SlowToChange(FrameProcessor):
    """Takes a while to prepare what then holds at once."""

    white = False

    async def prepare_params(self, params: dict[str, Any]) -> None:
        await asyncio.sleep(params["seconds"])

    async def update_params(self, params: dict[str, Any]) -> None:
        self.white = True

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        return frame.replace_tensor(frame.tensor.clamp(min=0.9)) if self.white else frame


class BreaksSound(FrameProcessor):
    """Returns what is no sound."""

    async def process_audio_async(self, frame: AudioFrame) -> Any:
        return [42]


class Withholds(FrameProcessor):
    """Looks at every picture and puts none out."""

    async def process_video_async(self, frame: VideoFrame) -> None:
        self.emit("data", {"seen": frame.time})


class Generates(FrameProcessor):
    """Makes pictures of nothing: a level that grows from one to the next."""

    generates = 25
    count = 0

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        self.count += 1
        return frame.replace_tensor(frame.tensor * 0 + min(1.0, 0.2 + self.count / 100))

    async def update_params(self, params: dict[str, Any]) -> None:
        self.generates = params["rate"]


@dataclass
class Level:
    level: float = 0.2


class TypedWindow(FrameProcessor):
    """Grey of the level that its parameters say, of two pictures at a time."""

    parameters = Level
    generates = 30
    window = 2
    hop = 2

    async def process_video_window(self, frames: Sequence[VideoFrame]) -> list[VideoFrame]:
        return [frame.replace_tensor(frame.tensor * 0 + self.params.level) for frame in frames]

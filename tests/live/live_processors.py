"""Processors that the engine of a test runs."""

from typing import Any

from byoc import FrameProcessor, VideoFrame


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

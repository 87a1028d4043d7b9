"""What a container's author might write."""

from __future__ import annotations

import dataclasses
from typing import Any

from byoc import FrameProcessor, InvalidInput, VideoFrame
from stream.processor import ProcessorInfo


class Dimmed(FrameProcessor):
    strength = 1.0
    count = 0

    async def on_stream_start(self, params: dict[str, Any]) -> None:
        await self.update_params(params)

    async def update_params(self, params: dict[str, Any]) -> None:
        strength = params.get("strength", self.strength)
        if not isinstance(strength, int | float) or not 0 <= strength <= 1:
            raise InvalidInput(f"strength must be from 0 to 1, not {strength!r}", field="strength")
        self.strength = strength

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        self.count += 1
        if self.count % 10 == 0:
            self.emit("data", {"frame": self.count})
        return frame.replace_tensor(frame.tensor * self.strength)

    def info(self) -> ProcessorInfo:
        strength = {"type": "number", "minimum": 0, "maximum": 1, "default": self.strength}
        schema = {"type": "object", "properties": {"strength": strength}}
        return dataclasses.replace(super().info(), schema=schema)

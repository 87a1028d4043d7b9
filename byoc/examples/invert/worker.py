"""Every picture as its negative; `strength` mixes it with the original."""

import asyncio
import os
from typing import Any

import numpy as np

from byoc import FrameProcessor, InvalidInput, Picture, StreamServer, VideoFrame


class Invert(FrameProcessor):
    strength = 1.0

    async def load_model(self, **kwargs: Any) -> None:
        """Nothing to load."""

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        rgb = frame.picture.rgb()  # uint8, height x width x 3
        table = np.arange(256)
        table = table + self.strength * (255 - 2 * table)
        return frame.replace_picture(Picture.from_rgb(table.astype(np.uint8)[rgb]))

    async def on_stream_start(self, params: dict[str, Any]) -> None:
        await self.update_params(params)

    async def update_params(self, params: dict[str, Any]) -> None:
        strength = params.get("strength", self.strength)
        if not isinstance(strength, int | float) or not 0 <= strength <= 1:
            raise InvalidInput(f"strength must be from 0 to 1, not {strength!r}", field="strength")
        self.strength = strength


if __name__ == "__main__":
    port, token = int(os.environ.get("PORT", "8000")), os.environ.get("AUTH_TOKEN") or None
    server = StreamServer(Invert(), port=port, token=token)
    asyncio.run(server.run_forever())

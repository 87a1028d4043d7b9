"""Every picture as its negative; `strength` mixes it with the original."""

import asyncio
import os
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from byoc import FrameProcessor, Picture, StreamServer, VideoFrame


class Params(BaseModel):
    """What can be changed while a stream runs; checked, and a control on the page for each."""

    strength: float = Field(1.0, ge=0, le=1)


class Invert(FrameProcessor):
    parameters = Params
    params: Params

    async def load_model(self, **kwargs: Any) -> None:
        """Nothing to load."""

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        rgb = frame.picture.rgb()  # uint8, height x width x 3
        table = np.arange(256)
        table = table + self.params.strength * (255 - 2 * table)
        return frame.replace_picture(Picture.from_rgb(table.astype(np.uint8)[rgb]))


if __name__ == "__main__":
    port, token = int(os.environ.get("PORT", "8000")), os.environ.get("AUTH_TOKEN") or None
    server = StreamServer(Invert(), port=port, token=token)
    asyncio.run(server.run_forever())

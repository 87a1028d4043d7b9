"""Writes a line of text and the time into every picture."""

import asyncio
import os
import time
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydantic import BaseModel, Field

from byoc import FrameProcessor, Picture, StreamServer, VideoFrame


class Params(BaseModel):
    text: str = Field("live", max_length=200)


class OverlayText(FrameProcessor):
    parameters = Params
    params: Params

    def __init__(self) -> None:
        super().__init__()
        self.fonts: dict[int, Any] = {}

    async def load_model(self, **kwargs: Any) -> None:
        self.font(24)

    def font(self, size: int) -> Any:
        if size not in self.fonts:
            self.fonts[size] = ImageFont.load_default(size)
        return self.fonts[size]

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        picture = Image.fromarray(frame.picture.rgb().copy())
        size = max(10, frame.height // 16)
        line = f"{self.params.text}  {time.strftime('%H:%M:%S')}"
        place = (size // 2, frame.height - 2 * size)
        draw = ImageDraw.Draw(picture)
        draw.text(place, line, font=self.font(size), fill="white", stroke_width=2, stroke_fill="black")
        return frame.replace_picture(Picture.from_rgb(np.asarray(picture)))


if __name__ == "__main__":
    port, token = int(os.environ.get("PORT", "8000")), os.environ.get("AUTH_TOKEN") or None
    server = StreamServer(OverlayText(), port=port, token=token)
    asyncio.run(server.run_forever())

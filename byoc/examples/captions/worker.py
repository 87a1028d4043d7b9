"""Says on the data channel what is to be seen, every few seconds; the video passes untouched.

`CAPTION_URL` is an OpenAI-compatible server with a model that sees pictures (`CAPTION_MODEL`), for example
http://127.0.0.1:11434/v1. Without it the captions tell measured facts alone, and say so.
"""

import asyncio
import base64
import io
import os
import time
from typing import Any

import aiohttp
import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

from byoc import FrameProcessor, StreamServer, VideoFrame

URL, MODEL = os.environ.get("CAPTION_URL", ""), os.environ.get("CAPTION_MODEL", "")
PROMPT = "Describe this picture in one short sentence."
LARGEST = 512
COLOURS = ("red", "green", "blue")


def measured(rgb: np.ndarray) -> str:
    """What can be said of a picture without a model."""
    means = rgb.reshape(-1, 3).mean(0)
    light = "dark" if means.mean() < 64 else "bright" if means.mean() > 160 else "of medium brightness"
    return f"A picture {light}, mostly {COLOURS[int(means.argmax())]}."


def as_data_url(rgb: np.ndarray) -> str:
    picture, file = Image.fromarray(rgb), io.BytesIO()
    picture.thumbnail((LARGEST, LARGEST))
    picture.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


class Params(BaseModel):
    interval: float = Field(2.0, ge=0.5, le=600, description="seconds between captions")


class Captions(FrameProcessor):
    parameters = Params
    params: Params

    def __init__(self) -> None:
        super().__init__()
        self.task: asyncio.Task[None] | None = None
        self.due = 0.0

    async def load_model(self, **kwargs: Any) -> None:
        """The model runs elsewhere."""

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        # One caption at a time: a slow model makes them rarer and delays no frame.
        if time.monotonic() >= self.due and (self.task is None or self.task.done()):
            self.due = time.monotonic() + self.params.interval
            self.task = asyncio.create_task(self.caption(frame.picture.rgb().copy(), frame.time))
        return frame

    async def caption(self, rgb: np.ndarray, at: float) -> None:
        if not URL:
            self.emit("data", {"time": at, "caption": measured(rgb), "model": None})
            return
        try:
            self.emit("data", {"time": at, "caption": await self.ask(rgb), "model": MODEL})
        except (aiohttp.ClientError, TimeoutError, LookupError) as error:
            self.emit("data", {"time": at, "error": f"{type(error).__name__}: {error}"})

    async def ask(self, rgb: np.ndarray) -> str:
        content = [
            {"type": "text", "text": PROMPT},
            {"type": "image_url", "image_url": {"url": as_data_url(rgb)}},
        ]
        body = {"model": MODEL, "max_tokens": 60, "messages": [{"role": "user", "content": content}]}
        headers = {"Authorization": f"Bearer {os.environ.get('CAPTION_TOKEN', '')}"}
        limit = aiohttp.ClientTimeout(total=30)
        async with (
            aiohttp.ClientSession(timeout=limit) as http,
            http.post(f"{URL.rstrip('/')}/chat/completions", json=body, headers=headers) as answer,
        ):
            answer.raise_for_status()
            return str((await answer.json())["choices"][0]["message"]["content"]).strip()

    async def on_stream_start(self, params: dict[str, Any]) -> None:
        await super().on_stream_start(params)
        self.due = 0.0

    async def on_stream_stop(self) -> None:
        if self.task is not None:
            self.task.cancel()


if __name__ == "__main__":
    port, token = int(os.environ.get("PORT", "8000")), os.environ.get("AUTH_TOKEN") or None
    server = StreamServer(Captions(), port=port, token=token)
    asyncio.run(server.run_forever())

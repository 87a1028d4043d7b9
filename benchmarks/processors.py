"""What Headrace's engine runs under test; settings come from the environment, which engines inherit."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.notes import Notes
from byoc.mock import barcode
from stream.frames import VideoFrame
from stream.processor import FrameProcessor, Params, VideoResult

NOTES = "BENCHMARK_NOTES"
TAKE = "BENCHMARK_TAKE"
BLOCK = "BENCHMARK_BLOCK"
LOAD = "BENCHMARK_LOAD"


class Slow(FrameProcessor):
    """Notes each frame's number at its entry and gives it back after a time: `peer_pytrickle.Slow` here."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.notes = Notes(Path(os.environ[NOTES]))
        self.take = float(os.environ[TAKE])
        self.block = bool(os.environ.get(BLOCK))

    async def process_video_async(self, frame: VideoFrame) -> VideoResult:
        taken = time.monotonic_ns()
        number = barcode.read_number(frame.picture.rgb())
        if number is not None:
            self.notes.note(number, taken)
        if self.block:
            time.sleep(self.take)  # noqa: ASYNC251 (a model that holds its thread)
        else:
            await asyncio.sleep(self.take)
        return frame

    async def update_params(self, params: Params) -> None:
        pass


class Busy(FrameProcessor):
    """Keeps two cores at work while it loads and on every frame, as a model on the CPU does."""

    async def load_model(self, **kwargs: Any) -> None:
        _burn(float(os.environ[LOAD]))

    async def process_video_async(self, frame: VideoFrame) -> VideoResult:
        _burn(float(os.environ[TAKE]))
        return frame

    async def update_params(self, params: Params) -> None:
        pass


def _burn(seconds: float) -> None:
    end = time.monotonic() + seconds

    def multiply() -> None:
        matrix = np.ones((256, 256), np.float32)
        while time.monotonic() < end:
            matrix = matrix @ matrix * 0.0 + 1.0

    threads = [threading.Thread(target=multiply) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

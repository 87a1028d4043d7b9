"""Raises or lowers the sound by semitones; pictures pass untouched."""

import asyncio
import os
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from byoc import AudioFrame, FrameProcessor, StreamServer

WINDOW = 2400
"""Samples over which the two delays run, 50 ms at 48 kHz."""


class Shifter:
    """Two delay lines whose delay grows or shrinks steadily, each silent while it jumps back."""

    def __init__(self, channels: int) -> None:
        self.history = np.zeros((channels, WINDOW + 1), np.float32)
        self.phase = 0.0

    def shift(self, samples: np.ndarray, ratio: float) -> np.ndarray:
        """Samples (channels x n) with every frequency multiplied by `ratio`."""
        count, past = samples.shape[1], self.history.shape[1]
        line = np.concatenate([self.history, samples], axis=1)
        moments = np.arange(count)
        phases = self.phase + moments * (1 - ratio) / WINDOW
        result = np.zeros_like(samples)
        for start in (0.0, 0.5):
            phase = (phases + start) % 1.0
            place = past + moments - phase * WINDOW
            whole = np.floor(place).astype(np.int64)
            part = (place - whole).astype(np.float32)
            after = np.minimum(whole + 1, past + count - 1)
            tap = line[:, whole] * (1 - part) + line[:, after] * part
            result += tap * (np.sin(np.pi * phase) ** 2).astype(np.float32)
        self.phase = (self.phase + count * (1 - ratio) / WINDOW) % 1.0
        self.history = line[:, -past:]
        return result


class Params(BaseModel):
    semitones: float = Field(4.0, ge=-12, le=12)


class PitchShift(FrameProcessor):
    parameters = Params
    params: Params
    shifter: Shifter | None = None

    async def load_model(self, **kwargs: Any) -> None:
        """Nothing to load."""

    async def process_audio_async(self, frame: AudioFrame) -> list[AudioFrame]:
        if self.shifter is None or len(self.shifter.history) != frame.channels:
            self.shifter = Shifter(frame.channels)
        shifted = self.shifter.shift(frame.samples, 2 ** (self.params.semitones / 12))
        return [frame.replace_samples(shifted)]

    async def on_stream_start(self, params: dict[str, Any]) -> None:
        await super().on_stream_start(params)
        self.shifter = None


if __name__ == "__main__":
    port, token = int(os.environ.get("PORT", "8000")), os.environ.get("AUTH_TOKEN") or None
    server = StreamServer(PitchShift(), port=port, token=token)
    asyncio.run(server.run_forever())

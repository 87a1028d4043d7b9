"""A live model of a known cost: convolutions on the CPU for some eight milliseconds a frame.

python -m benchmarks.live_model        prints how many convolutions that is on this machine
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from benchmarks.notes import Notes
from stream.frames import VideoFrame
from stream.processor import FrameProcessor, Params, VideoResult

ROUNDS = "BENCHMARK_ROUNDS"
TIMES = "BENCHMARK_TIMES"
TARGET_S = 0.008
CHANNELS, SIDE = 16, 96


class Convolve(FrameProcessor):
    """Does the same work on every frame and notes how long that took, in ns, with the time of its end."""

    async def load_model(self, **kwargs: Any) -> None:
        self.work = _Work()
        self.rounds = int(os.environ[ROUNDS])
        self.notes = Notes(Path(os.environ[TIMES]))
        self.work.run(self.rounds)

    async def process_video_async(self, frame: VideoFrame) -> VideoResult:
        begun = time.monotonic_ns()
        self.work.run(self.rounds)
        ended = time.monotonic_ns()
        self.notes.note(ended - begun, ended)
        return frame

    async def update_params(self, params: Params) -> None:
        pass


class _Work:
    """What is computed: a small stack of convolutions, over and over."""

    def __init__(self) -> None:
        import torch

        generator = torch.Generator().manual_seed(1)
        self._torch: Any = torch
        self._kernel = torch.randn(CHANNELS, CHANNELS, 3, 3, generator=generator) / (3 * CHANNELS**0.5)
        self._start = torch.randn(1, CHANNELS, SIDE, SIDE, generator=generator)

    def run(self, rounds: int) -> None:
        conv2d = self._torch.nn.functional.conv2d
        with self._torch.inference_mode():
            values = self._start
            for _ in range(rounds):
                values = conv2d(values, self._kernel, padding=1).tanh()


def calibrate() -> int:
    """Rounds for `TARGET_S` on one thread, by the fastest of many: others may be using the machine."""
    import torch

    torch.set_num_threads(1)
    work, fastest, rounds = _Work(), float("inf"), 10
    work.run(rounds)
    for _ in range(100):
        begun = time.perf_counter()
        work.run(rounds)
        fastest = min(fastest, time.perf_counter() - begun)
    return max(1, round(TARGET_S / (fastest / rounds)))


if __name__ == "__main__":
    print(calibrate())

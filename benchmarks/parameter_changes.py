"""In how many frames a changed parameter of cost ``frame`` shows in the picture of a live stream.

    python -m benchmarks.parameter_changes [--changes 100] [--size 320x240] [--fps 30]

A generated pattern goes through an engine and an encoder in this process, as in a session. The workflow
blends each picture with its own inverse, and the share (0 or 1) is what changes, at moments that do not keep
step with the frames. Every result is held against its own input. The first picture whose work began after the
request is number 1; the target is that it shows the change.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:
    # Run as a script: the packages lie beside this folder.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from benchmarks.report import Spread
from benchmarks.switching import Outlet, pattern_of, pattern_parser, streaming
from headrace.engine.client import EngineProcessor
from stream.frames import VideoFrame
from stream.pattern import PatternSettings
from stream.processor import VideoResult
from workflows.check import prepare
from workflows.parameters import ParameterTable
from workflows.registry import NodeRegistry

KEY = "3.blend_factor"
WORKFLOW: dict[str, Any] = {
    "1": {"class_type": "LoadTensor", "inputs": {}},
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    "3": {
        "class_type": "ImageBlend",
        "inputs": {"image1": ["1", 0], "image2": ["2", 0], "blend_factor": 0.0, "blend_mode": "normal"},
    },
    "4": {"class_type": "SaveTensor", "inputs": {"images": ["3", 0]}},
}
EVERY = 8
"""Of the pixels of a row and of a column, those that are looked at."""
LONGEST_S = 5.0


@dataclass(frozen=True, slots=True)
class Shown:
    """A result: when work on it began and ended (monotonic seconds), and whether it is the inverse."""

    begun: float
    done: float
    inverse: bool


class Watched(EngineProcessor):
    """Notes what comes out of the engine."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shown: list[Shown] = []

    async def process_video_async(self, frame: VideoFrame) -> VideoResult:
        begun = time.monotonic()
        given = _pixels(frame)
        result = await super().process_video_async(frame)
        done = time.monotonic()
        if isinstance(result, VideoFrame):
            made = _pixels(result)
            inverse = np.abs(made - (255 - given)).mean() < np.abs(made - given).mean()
            self.shown.append(Shown(begun, done, bool(inverse)))
        return result


def _pixels(frame: VideoFrame) -> Any:
    return frame.picture.rgb()[::EVERY, ::EVERY].astype(np.int16)


async def measure(changes: int, pattern: PatternSettings) -> None:
    definitions = NodeRegistry.builtin().definitions
    cost = ParameterTable([prepare(WORKFLOW, definitions)], definitions).parameters[KEY].cost
    numbers, seconds = Counter[int](), list[float]()
    draw = random.Random(1)
    spec = {"kind": "workflow", "workflow": WORKFLOW}
    async with streaming(spec, pattern, Outlet(), Watched) as (pipeline, processor):
        assert isinstance(processor, Watched)
        await asyncio.sleep(1.0)
        for number in range(changes):
            await asyncio.sleep(0.2 + draw.random() / pattern.fps)
            asked = time.monotonic()
            await pipeline.apply({KEY: float(number % 2 == 0)})
            place, first = await _first(processor, asked, number % 2 == 0)
            numbers[place] += 1
            seconds.append(first.done - asked)
    _report(cost, pattern, numbers, seconds)


async def _first(processor: Watched, asked: float, inverse: bool) -> tuple[int, Shown]:
    """The first result that shows it, and its number among those begun after the request."""
    while time.monotonic() - asked < LONGEST_S:
        after = [one for one in processor.shown if one.begun >= asked]
        for place, one in enumerate(after, 1):
            if one.inverse == inverse:
                return place, one
        await asyncio.sleep(0.005)
    raise TimeoutError(f"a change does not show within {LONGEST_S:g} s")


def _report(cost: str, pattern: PatternSettings, numbers: Counter[int], seconds: list[float]) -> None:
    spread = Spread.of(seconds)
    print(
        f"{numbers.total()} changes of {KEY} (cost {cost!r}), {pattern.width} x {pattern.height} at "
        f"{pattern.fps:g} fps"
    )
    told = ", ".join(f"{count} in number {place}" for place, count in sorted(numbers.items()))
    print(f"first picture begun after the request that shows it: {told}")
    print(
        f"from the request to that picture out of the engine: p50 {spread.p50 * 1000:.1f} ms, p95 "
        f"{spread.p95 * 1000:.1f}, max {spread.most * 1000:.1f} (an interval is {1000 / pattern.fps:.1f})"
    )


def main() -> None:
    parser = pattern_parser(__doc__)
    parser.add_argument("--changes", type=int, default=100)
    options = parser.parse_args()
    asyncio.run(measure(options.changes, pattern_of(options)))


if __name__ == "__main__":
    main()

"""A frame from the worker through the engine and back: `python -m benchmarks.engine_roundtrip`.

Two processors: one that makes a tensor of the frame and a frame of the tensor, so that both conversions
count, and one that returns the frame as it came. Frames go one at a time, by default thirty a second, as live
ones do; ``--flat-out`` sends the next as soon as the last is back.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.report import Spread
from headrace.engine.client import EngineProcessor
from headrace.engine.guardian import Engine
from headrace.engine.settings import EngineSettings
from stream.frames import Picture, PixelFormat, Plane, VideoFrame, plane_shapes
from stream.processor import FrameProcessor

SIZES = ((512, 512), (1280, 720))
TARGET_MS = 3.0
WARM_UP = 60


class Touch(FrameProcessor):
    """The same pixels by way of a tensor."""

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        return frame.replace_tensor(frame.tensor)


SPECS = {
    "tensor": {"kind": "class", "target": "benchmarks.engine_roundtrip:Touch"},
    "same": {"kind": "passthrough"},
}


async def measure(engine: Engine, spec: dict[str, str], picture: Picture, frames: int, fps: float) -> Spread:
    """Milliseconds from the call to the result."""
    processor = EngineProcessor(engine, spec, session="benchmark")
    await processor.load_model()
    await processor.on_stream_start({})
    times: list[float] = []
    due = time.monotonic()
    for number in range(WARM_UP + frames):
        if fps:
            due += 1 / fps
            await asyncio.sleep(due - time.monotonic())
        frame = VideoFrame.from_picture(picture, number, Fraction(1, 30))
        begun = time.perf_counter()
        await processor.process_video_async(frame)
        times.append((time.perf_counter() - begun) * 1000)
    await processor.on_stream_stop()
    return Spread.of(times[WARM_UP:])


def noise(format_: PixelFormat, width: int, height: int) -> Picture:
    generator = np.random.default_rng(1)
    planes: list[Plane] = [
        generator.integers(0, 256, shape, np.uint8) for shape in plane_shapes(format_, width, height)
    ]
    return Picture(format_, width, height, planes)


async def run(options: argparse.Namespace) -> bool:
    """Measure all and print the table; whether the target was met."""
    table = Table(title="milliseconds through the engine and back")
    for heading in ("size", "processor", "p50", "p95", "p99", "most"):
        table.add_column(heading, justify="right")
    met = True
    async with Engine(EngineSettings(name="benchmark", device=options.device)) as engine:
        await engine.wait_ready(120)
        assert engine.facts is not None
        for width, height in SIZES:
            for name, spec in SPECS.items():
                picture = noise(
                    "yuv420p" if engine.facts.pixel_format == "yuv420p" else "rgb24", width, height
                )
                fps = 0.0 if options.flat_out else options.fps
                spread = await measure(engine, spec, picture, options.frames, fps)
                figures = (spread.p50, spread.p95, spread.p99, spread.most)
                table.add_row(f"{width} x {height}", name, *(f"{value:.2f}" for value in figures))
                if (width, height) == (512, 512):
                    met = met and spread.p50 <= TARGET_MS
        table.caption = f"{engine.facts.device_name}, torch {engine.facts.torch}; ready after an import of "
        table.caption += f"{engine.facts.import_seconds:.2f} s"
    console = Console()
    console.print(table)
    console.print(f"512 x 512, p50 at most {TARGET_MS:g} ms: {'met' if met else 'MISSED'}")
    return met


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--flat-out", action="store_true")
    parser.add_argument("--device", default="auto")
    return 0 if uvloop.run(run(parser.parse_args(arguments))) else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""How long a live stream stands still while another workflow takes the place of the one that runs.

    python -m benchmarks.switching [--switches 20] [--size 320x240] [--fps 30] [--workflows edges,passthrough]

A generated pattern goes through an engine and an encoder in this process, as in a session. Both workflows
have run before. For each switch, the longest time between two encoded pictures from the request to `SETTLE_S`
after the first frame of the new one; beside it, the same of as long a stretch in which nothing is switched,
which is what the machine does by itself. The target is two frame intervals.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

if not __package__:
    # Run as a script: the packages lie beside this folder.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.report import Spread
from headrace.engine.client import EngineProcessor
from headrace.engine.guardian import Engine
from headrace.engine.settings import EngineSettings
from stream.pattern import PatternDecoding, PatternSettings
from stream.pipeline import Pipeline, PipelineSettings
from stream.units import EncodedUnit, Rendition, VideoParameters
from workflows import library

SETTLE_S = 1.0
READY_S = 300.0
TARGET = 2


@dataclass(slots=True)
class Outlet:
    """Moments (monotonic seconds) at which encoded pictures came out."""

    moments: list[float] = field(default_factory=list)

    def deliver(self, units: list[EncodedUnit], _: VideoParameters | None = None) -> None:
        now = time.monotonic()
        self.moments += [now for unit in units if unit.kind == "video"]

    def longest_gap(self, begin: float, end: float) -> float:
        """Seconds, among the pictures from the last before ``begin`` to the first after ``end``."""
        before = [moment for moment in self.moments if moment < begin][-1:]
        within = [moment for moment in self.moments if begin <= moment <= end]
        after = [moment for moment in self.moments if moment > end][:1]
        seen = [*before, *within, *after]
        return max((later - earlier for earlier, later in pairwise(seen)), default=0.0)


@dataclass(frozen=True, slots=True)
class Stretch:
    begin: float
    end: float


@asynccontextmanager
async def streaming(
    spec: dict[str, Any],
    pattern: PatternSettings,
    outlet: Outlet,
    kind: type[EngineProcessor] = EngineProcessor,
) -> AsyncIterator[tuple[Pipeline, EngineProcessor]]:
    """A pattern through an engine of its own and an encoder, as long as the body takes."""
    engine = Engine(EngineSettings(name="benchmark", device="cpu", threads=1))
    processor = kind(engine, spec, session="benchmark")
    decoding = PatternDecoding(pattern)
    await engine.start()
    try:
        await engine.wait_ready(READY_S)
        await processor.load_model()
        await processor.on_stream_start({})
        pipeline = Pipeline(decoding, processor, PipelineSettings(), outlet.deliver)
        pipeline.encoding.open(Rendition())
        pipeline.ready = True
        work = asyncio.create_task(pipeline.run())
        try:
            yield pipeline, processor
            await asyncio.sleep(SETTLE_S)
        finally:
            decoding.end()
            await work
    finally:
        await processor.on_stream_stop()
        await engine.stop()


async def measure(names: Sequence[str], switches: int, pattern: PatternSettings) -> None:
    outlet = Outlet()
    spec = {"kind": "workflow", "workflow": library.load_bundled(names[0])}
    async with streaming(spec, pattern, outlet) as (pipeline, _):
        switched, quiet, frames = await _switch(pipeline, names, switches)
    _report(names, pattern, outlet, switched, quiet, frames)


async def _switch(
    pipeline: Pipeline, names: Sequence[str], switches: int
) -> tuple[list[Stretch], list[Stretch], list[float]]:
    """Once to each workflow for warmth, then the measured switches, each with a quiet stretch before it."""
    switched, quiet, took = list[Stretch](), list[Stretch](), list[float]()
    workflows = [library.load_bundled(name) for name in names]
    for workflow in (*workflows[1:], workflows[0]):
        await asyncio.sleep(SETTLE_S)
        await pipeline.apply({"workflow": workflow})
    for number in range(switches):
        await asyncio.sleep(SETTLE_S)
        begin = time.monotonic()
        await pipeline.apply({"workflow": workflows[(number + 1) % len(workflows)]})
        took.append(time.monotonic() - begin)
        await asyncio.sleep(SETTLE_S)
        end = time.monotonic()
        switched.append(Stretch(begin, end))
        await asyncio.sleep(end - begin)
        quiet.append(Stretch(end, time.monotonic()))
    return switched, quiet, took


def _report(
    names: Sequence[str],
    pattern: PatternSettings,
    outlet: Outlet,
    switched: Sequence[Stretch],
    quiet: Sequence[Stretch],
    took: Sequence[float],
) -> None:
    interval = 1 / pattern.fps
    print(
        f"{len(switched)} switches among {', '.join(names)}, {pattern.width} x {pattern.height} at "
        f"{pattern.fps:g} fps, target {TARGET * interval * 1000:.0f} ms (two frame intervals)"
    )
    for label, stretches in (("with a switch", switched), ("with none", quiet)):
        gaps = Spread.of([outlet.longest_gap(each.begin, each.end) for each in stretches])
        within = sum(outlet.longest_gap(each.begin, each.end) <= TARGET * interval for each in stretches)
        print(
            f"longest gap of a stretch {label}: p50 {gaps.p50 * 1000:.1f} ms, p95 {gaps.p95 * 1000:.1f}, max "
            f"{gaps.most * 1000:.1f} ({gaps.most / interval:.2f} intervals); {within} of {gaps.count} met it"
        )
    spread = Spread.of(took)
    print(
        f"from the request to the first frame of the new one: p50 {spread.p50 * 1000:.1f} ms, max "
        f"{spread.most * 1000:.1f}"
    )


def pattern_parser(description: str | None) -> argparse.ArgumentParser:
    """A command line with the options that `pattern_of` reads."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", default="320x240", help="WIDTHxHEIGHT of the pictures")
    parser.add_argument("--fps", type=float, default=30.0)
    return parser


def pattern_of(options: argparse.Namespace) -> PatternSettings:
    width, height = map(int, options.size.split("x"))
    return PatternSettings(width=width, height=height, fps=options.fps)


def main() -> None:
    parser = pattern_parser(__doc__)
    parser.add_argument("--switches", type=int, default=20)
    parser.add_argument("--workflows", default="edges,passthrough", help="bundled ones, with commas between")
    options = parser.parse_args()
    asyncio.run(measure(options.workflows.split(","), options.switches, pattern_of(options)))


if __name__ == "__main__":
    main()

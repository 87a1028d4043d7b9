"""Measurements of single parts, in this process: the way through the engine, the overhead of a plan."""

from __future__ import annotations

import asyncio
import time
from fractions import Fraction
from typing import Any

import numpy as np
import uvloop

from benchmarks.measures import INVERT, Bench
from benchmarks.report import Spread
from benchmarks.workers import BenchmarkError
from headrace.engine.client import EngineProcessor
from headrace.engine.guardian import Engine
from headrace.engine.settings import EngineSettings
from stream.errors import HeadraceError
from stream.frames import Picture, VideoFrame
from workflows import library
from workflows.plan import Plan
from workflows.registry import NodeRegistry

FRAMES, WARM_UP, FPS = 300, 60, 30

# -- f: through the engine and back ------------------------------------------------------------------------


def engine_round_trip(bench: Bench) -> None:
    """A 512 x 512 picture through the engine and back, 30 times a second."""
    graphs = {"passthrough": library.load("passthrough"), "invert": INVERT}
    try:
        spreads = uvloop.run(_round_trips(graphs))
    except HeadraceError as error:
        raise BenchmarkError(error.message) from error
    for name, spread in spreads.items():
        target, met = ("p50 <= 3", spread.p50 <= 3) if name == "passthrough" else ("", None)
        value = f"p50 {spread.p50:.2f}  p95 {spread.p95:.2f}  p99 {spread.p99:.2f}"
        bench.report.add(f"f {name} through the engine and back, ms", "headrace", value, target, met)
    bench.report.data["f"] = {name: spread.p50 for name, spread in spreads.items()}


async def _round_trips(graphs: dict[str, Any]) -> dict[str, Spread]:
    async with Engine(EngineSettings(name="benchmark")) as engine:
        await engine.wait_ready(120)
        return {name: await _round_trip(engine, name, graph) for name, graph in graphs.items()}


async def _round_trip(engine: Engine, name: str, graph: Any) -> Spread:
    processor = EngineProcessor(engine, {"kind": "workflow", "workflow": graph}, session=name)
    await processor.load_model()
    await processor.on_stream_start({})
    noise = np.random.default_rng(1)
    picture = Picture.from_rgb(noise.integers(0, 255, (512, 512, 3), np.uint8))
    times: list[float] = []
    due = time.monotonic()
    for number in range(WARM_UP + FRAMES):
        due += 1 / FPS
        await asyncio.sleep(due - time.monotonic())
        frame = VideoFrame.from_picture(picture, number, Fraction(1, FPS))
        begun = time.perf_counter()
        await processor.process_video_async(frame)
        times.append((time.perf_counter() - begun) * 1000)
    await processor.on_stream_stop()
    return Spread.of(times[WARM_UP:])


# -- g: the overhead of a plan -----------------------------------------------------------------------------

NODES = 10


class NoOp:
    """A node that gives its input back."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "benchmark"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (the protocol's name)
        return {"required": {"image": ("IMAGE",), "amount": ("FLOAT", {"default": 1.0})}}

    def run(self, image: Any, amount: float) -> tuple[Any]:
        return (image,)


def plan_overhead(bench: Bench) -> None:
    """A frame through a plan of ten nodes that do nothing."""
    graph: dict[str, Any] = {"in": {"class_type": "LoadTensor", "inputs": {}}}
    last = "in"
    for number in range(NODES):
        graph[str(number)] = {"class_type": "NoOp", "inputs": {"image": [last, 0], "amount": 0.5}}
        last = str(number)
    graph["out"] = {"class_type": "SaveTensor", "inputs": {"images": [last, 0]}}
    plan = asyncio.run(Plan.compile(graph, NodeRegistry.from_mappings({"NoOp": NoOp})))
    assert len(plan.steps) >= NODES
    image, times = object(), []
    for _ in range(5000):
        begun = time.perf_counter()
        plan.run(image)
        times.append((time.perf_counter() - begun) * 1e6)
    spread = Spread.of(times)
    value = f"p50 {spread.p50:.1f}  p99 {spread.p99:.1f}"
    add = bench.report.add
    add(f"g plan of {NODES} no-op nodes, microseconds", "headrace", value, "<= 200", spread.p50 <= 200)
    bench.report.data["g"] = {"p50_us": spread.p50, "p99_us": spread.p99}

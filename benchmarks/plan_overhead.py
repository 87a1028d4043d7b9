"""What the plan of a workflow costs beside its nodes, and what the bundled workflows cost, on one thread.

    python benchmarks/plan_overhead.py [--size 512]

The overhead is that of a graph of ten nodes that do nothing; the times of the nodes are those of the bundled
workflows on a made-up picture, one row a node.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

if not __package__:
    # Run as a script: the packages lie beside this folder.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch

from stream.frames import VideoFrame
from workflows import library
from workflows.plan import Plan
from workflows.processor import WorkflowProcessor
from workflows.registry import NodeRegistry

NODES, RUNS, FRAMES = 10, 5000, 40


class NoOp:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "benchmark"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"image": ("IMAGE",), "amount": ("FLOAT", {"default": 1.0})}}

    def run(self, image: Any, amount: float) -> tuple[Any]:
        return (image,)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="height and width of the picture")
    size = parser.parse_args().size
    torch.set_num_threads(1)
    asyncio.run(overhead())
    for name in library.names():
        asyncio.run(bundled(name, size))


async def overhead() -> None:
    graph: dict[str, Any] = {"in": {"class_type": "LoadTensor", "inputs": {}}}
    for number in range(NODES):
        source = "in" if number == 0 else str(number - 1)
        graph[str(number)] = {"class_type": "NoOp", "inputs": {"image": [source, 0], "amount": 0.5}}
    graph["out"] = {"class_type": "SaveTensor", "inputs": {"images": [str(NODES - 1), 0]}}
    registry = NodeRegistry.from_mappings({"NoOp": NoOp})
    plan = await Plan.compile(graph, registry)
    image = torch.zeros(1, 8, 8, 3)
    report(f"plan of {NODES} no-op nodes", [timed(lambda: plan.run(image)) for _ in range(RUNS)])
    processor = WorkflowProcessor(graph, registry)
    await processor.load_model()
    frame = VideoFrame.from_tensor(image)
    times = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        await processor.process_video_async(frame)
        times.append(time.perf_counter() - begun)
    report("the same through WorkflowProcessor", times)


async def bundled(name: str, size: int) -> None:
    processor = WorkflowProcessor(library.load(name))
    await processor.load_model()
    frame = VideoFrame(picture(size), 0, Fraction(1, 30))
    times = []
    for _ in range(FRAMES):
        begun = time.perf_counter()
        await processor.process_video_async(frame)
        times.append(time.perf_counter() - begun)
    report(f"{name} at {size} x {size}", times)
    plan = await Plan.compile(library.load(name), NodeRegistry.builtin())
    with torch.inference_mode():
        values: dict[int, Any] = {0: frame.tensor}
        for step in plan.steps:
            arguments = step.static | {argument: values[slot] for argument, slot in step.links}
            result = step.call(**arguments)
            values.update((slot, result[index]) for index, slot in step.outputs)
            times = [timed(lambda: step.call(**arguments)) for _ in range(FRAMES // 2)]  # noqa: B023
            report(f"    {step.node.title} ({step.node.class_type})", times)


def picture(size: int) -> torch.Tensor:
    """Soft waves, hard shapes and the noise of a camera."""
    y, x = np.mgrid[:size, :size] / size
    rgb = np.stack([np.sin(9 * x + 4 * y), np.cos(7 * y - 2 * x), np.sin(5 * x * y)], -1) * 0.25 + 0.5
    for number in range(12):
        centre = (np.sin(number * 2.4) * 0.4 + 0.5, np.cos(number * 1.7) * 0.4 + 0.5)
        inside = np.hypot(x - centre[0], y - centre[1]) < 0.03 + 0.008 * number
        rgb[inside] = rgb[inside] * 0.3 + np.array([number % 2, number % 3 / 2, number % 5 / 4]) * 0.7
    rgb += np.random.default_rng(1).normal(0, 0.02, rgb.shape)
    return torch.from_numpy(rgb.clip(0, 1).astype(np.float32))[None]


def timed(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def report(name: str, times: list[float]) -> None:
    ordered = sorted(times)
    p50, p99 = statistics.median(ordered), ordered[int(len(ordered) * 0.99)]
    unit, scale = ("us", 1e6) if p50 < 1e-3 else ("ms", 1e3)
    print(f"{name:<45} p50 {p50 * scale:7.2f} {unit}   p99 {p99 * scale:7.2f} {unit}")


if __name__ == "__main__":
    main()

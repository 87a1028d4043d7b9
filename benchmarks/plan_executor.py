"""What running a graph costs beside its nodes: our plan and ComfyUI's own PromptExecutor, in one process.

    python benchmarks/plan_executor.py --comfyui DIR [--comfyui-python PATH] [--size 512] [--frames 200]

Both run in the interpreter of the installation, on the same node classes, in turns: a graph of ten nodes of
the older kind, of schema classes, and of async ones. ComfyUI's executor gets a prompt of its own for each
frame, in which the source has another number, because it keeps what has not changed; node calls are counted
on both sides. The overhead is that of nodes that return what they get; the whole frame is that of nodes that
multiply and add. All is CPU time of the thread. Without an installation ours is run alone.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:
    # Run as a script: the packages lie beside this folder.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

NODES = 10
calls: Counter[str] = Counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--comfyui", metavar="DIR", help="a ComfyUI installation")
    parser.add_argument("--comfyui-python", metavar="PATH", help="its interpreter")
    parser.add_argument("--size", type=int, default=512, help="height and width of the picture")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.comfyui and not options.inside:
        inside = [
            str(Path(__file__).resolve()),
            "--inside",
            "--comfyui",
            str(Path(options.comfyui).resolve()),
        ]
        sizes = ["--size", str(options.size), "--frames", str(options.frames)]
        python = options.comfyui_python or sys.executable
        sys.exit(subprocess.call([python, *inside, *sizes], cwd=options.comfyui))
    if not options.comfyui:
        print("no ComfyUI is given (--comfyui DIR): ours alone")
    peer = Comfy(options.comfyui) if options.comfyui else None
    torch.set_num_threads(1)
    asyncio.run(compare(peer, options.size, options.frames))


class Comfy:
    """ComfyUI's executor in this process, without its server."""

    client_id = None
    last_node_id = None

    def __init__(self, folder: str) -> None:
        sys.path.insert(0, folder)
        sys.argv = ["main.py", "--cpu"]
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
        options: Any = __import__("comfy.options", fromlist=["options"])
        options.enable_args_parsing()
        self.nodes: Any = __import__("nodes")
        execution: Any = __import__("execution")
        self.api: Any = __import__("comfy_api.latest", fromlist=["io"])
        self.version = __import__("comfyui_version").__version__
        self.executor = execution.PromptExecutor(self)
        self.nodes.NODE_CLASS_MAPPINGS.update({"BenchmarkSource": Source, "BenchmarkSink": Sink})

    def send_sync(self, *message: Any) -> None:
        """Nobody listens."""

    def add(self, classes: dict[str, Any]) -> None:
        self.nodes.NODE_CLASS_MAPPINGS.update(classes)

    async def run(self, prompt: dict[str, Any], number: int, image: Any) -> Any:
        """One frame by a prompt of its own; the picture that arrives."""
        Source.image = image
        own = copy.deepcopy(prompt)
        own["in"]["inputs"]["number"] = number
        begun = time.thread_time()
        await self.executor.execute_async(own, str(number), {}, ["out"])
        taken = time.thread_time() - begun
        if not self.executor.success:
            raise RuntimeError(f"ComfyUI's executor failed: {self.executor.status_messages[-1]}")
        return Sink.image, taken


class Node:
    RETURN_TYPES: tuple[str, ...] = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "benchmark"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"image": ("IMAGE",), "amount": ("FLOAT", {"default": 1.0})}}


class Source(Node):
    image: Any = None

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"number": ("INT", {"default": 0})}}

    def run(self, number: int) -> tuple[Any]:
        return (self.image,)


class Sink(Node):
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    image: Any = None

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"images": ("IMAGE",)}}

    def run(self, images: Any) -> tuple[()]:
        Sink.image = images
        return ()


def works(image: Any, amount: float) -> Any:
    calls["works"] += 1
    return image.mul(amount).add_(0.25)


def nothing(image: Any, amount: float) -> Any:
    calls["nothing"] += 1
    return image


def older(work: Callable[[Any, float], Any]) -> Any:
    class Older(Node):
        def run(self, image: Any, amount: float) -> tuple[Any]:
            return (work(image, amount),)

    return Older


def asynchronous(work: Callable[[Any, float], Any]) -> Any:
    class Asynchronous(Node):
        async def run(self, image: Any, amount: float) -> tuple[Any]:
            return (work(image, amount),)

    return Asynchronous


def schema(work: Callable[[Any, float], Any], io: Any) -> Any:
    class Schema(io.ComfyNode):  # type: ignore[misc]
        @classmethod
        def define_schema(cls) -> Any:
            return io.Schema(
                node_id="BenchmarkSchema",
                category="benchmark",
                inputs=[io.Image.Input("image"), io.Float.Input("amount", default=1.0)],
                outputs=[io.Image.Output()],
            )

        @classmethod
        def execute(cls, image: Any, amount: float) -> Any:
            return io.NodeOutput(work(image, amount))

    return Schema


def chain(class_type: str, first: dict[str, Any], last: str) -> dict[str, Any]:
    graph: dict[str, Any] = {"in": first}
    for number in range(NODES):
        source = "in" if number == 0 else str(number - 1)
        graph[str(number)] = {"class_type": class_type, "inputs": {"image": [source, 0], "amount": 0.75}}
    graph["out"] = {"class_type": last, "inputs": {"images": [str(NODES - 1), 0]}}
    return graph


async def compare(peer: Comfy | None, size: int, frames: int) -> None:
    from workflows.plan import Plan
    from workflows.registry import NodeRegistry

    version = f"ComfyUI {peer.version}, " if peer is not None else ""
    print(f"{version}Python {sys.version.split()[0]}, torch {torch.__version__}, one thread, {frames} frames")
    kinds: list[tuple[str, Callable[[Any], Any]]] = [("older", older)]
    if peer is not None:
        io = peer.api.io
        kinds.append(("schema", lambda work: schema(work, io)))
    kinds.append(("async", asynchronous))
    for name, make in kinds:
        for work, side, title in ((nothing, 8, "overhead"), (works, size, f"whole frame, {size} x {size}")):
            class_type = f"Benchmark{name}{work.__name__}"
            classes = {class_type: make(work)}
            loaded = {"class_type": "LoadTensor", "inputs": {}}
            registry = NodeRegistry.from_mappings(classes)
            plan = await Plan.compile(chain(class_type, loaded, "SaveTensor"), registry)
            prompt = chain(
                class_type, {"class_type": "BenchmarkSource", "inputs": {"number": 0}}, "BenchmarkSink"
            )
            if peer is not None:
                peer.add(classes)
            pictures = [torch.rand(1, side, side, 3) for _ in range(8)]
            ours, theirs = [], []
            counts = {"ours": 0, "theirs": 0}
            with torch.inference_mode():
                for number in range(frames):
                    picture = pictures[number % len(pictures)]
                    calls.clear()
                    begun = time.thread_time()
                    result, _ = await plan.run_async(picture) if plan.is_async else plan.run(picture)
                    ours.append(time.thread_time() - begun)
                    counts["ours"] += calls.total()
                    if peer is not None:
                        calls.clear()
                        expected, taken = await peer.run(prompt, number + 1, picture)
                        theirs.append(taken)
                        counts["theirs"] += calls.total()
                        if not torch.equal(result, expected):
                            raise SystemExit(f"{name}: the pictures of frame {number} differ")
            told(f"{name}: {title}", ours, theirs, counts)


def told(title: str, ours: list[float], theirs: list[float], counts: dict[str, int]) -> None:
    line = f"{title:<36} ours p50 {statistics.median(ours) * 1e6:8.1f} us"
    if theirs:
        ratio = statistics.median(theirs) / statistics.median(ours)
        line += f"   theirs p50 {statistics.median(theirs) * 1e6:8.1f} us   {ratio:6.1f} times"
        line += f"   node calls {counts['ours']} and {counts['theirs']}, pictures equal"
    print(line)


if __name__ == "__main__":
    main()

"""Runs in ComfyUI's own interpreter: random graphs by its executor and by our plan, node classes the same.

    python executor_side.py HEADRACE COMFYUI COUNT

HEADRACE is the root of our tree, put behind everything else on the path. Prints one line of JSON: how many
graphs agreed, how many of them failed in both, and the ones that did not agree. No part of the tests imports
this.
"""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import random
import sys
from typing import Any

headrace, folder, count = sys.argv[1:4]
sys.path[0] = folder
sys.path += [headrace, f"{headrace}/tests/workflows"]
sys.argv = ["main.py", "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import execution  # noqa: E402
import nodes  # noqa: E402
import protocol_pack  # noqa: E402
from comfy_api.latest import io  # noqa: E402
from comfy_execution.graph import ExecutionBlocker  # noqa: E402

from stream.errors import HeadraceError  # noqa: E402
from workflows.plan import Plan  # noqa: E402
from workflows.registry import NodeRegistry  # noqa: E402

FRAMES = (4, 7, 9)


class SchemaAdd(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="SchemaAdd",
            inputs=[io.Image.Input("a"), io.Image.Input("b"), io.Int.Input("n", default=1)],
            outputs=[io.Image.Output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, a: int, b: int, n: int) -> Any:
        protocol_pack.calls[cls.hidden.unique_id] += 1
        return io.NodeOutput((a * 5 + n * b) % protocol_pack.MODULUS)


class Source(protocol_pack.Old):
    LINKS = ()

    def run(self, n: int, me: str) -> tuple[int]:
        return (n,)


class Sink(protocol_pack.Old):
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    LINKS = ("a",)
    INPUT_IS_LIST = False
    got: list[Any] = []  # noqa: RUF012 (of the process)

    def run(self, a: Any, n: int, me: str) -> tuple[()]:
        Sink.got.append(a)
        return ()


class Server:
    client_id = None
    last_node_id = None

    def send_sync(self, *message: Any) -> None:
        """Nobody listens."""


def graph_of(chance: random.Random) -> dict[str, Any]:
    graph: dict[str, Any] = {}
    outputs: list[list[Any]] = [["in", 0]]
    for index in range(chance.randint(1, 9)):
        kind = chance.choice(list(protocol_pack.CLASSES))
        links = getattr(protocol_pack.CLASSES[kind], "LINKS", ("a", "b"))
        inputs: dict[str, Any] = {link: chance.choice(outputs) for link in links}
        graph[f"n{index}"] = {"class_type": kind, "inputs": inputs | {"n": chance.randint(0, 9)}}
        outputs += [[f"n{index}", output] for output in range(2 if kind == "Block" else 1)]
    last = {"a": chance.choice(outputs), "b": ["in", 0], "n": chance.randint(0, 9)}
    graph["last"] = {"class_type": "Add", "inputs": last}
    return graph


async def theirs(executor: Any, graph: dict[str, Any], frame: int) -> Any:
    prompt = copy.deepcopy(graph)
    prompt["in"] = {"class_type": "ProtocolSource", "inputs": {"n": frame}}
    prompt["out"] = {"class_type": "ProtocolSink", "inputs": {"a": ["last", 0], "n": 0}}
    Sink.got.clear()
    await executor.execute_async(prompt, "p", {}, ["out"])
    if not executor.success:
        return "failed"
    return protocol_pack.shown(list(Sink.got)) if Sink.got else protocol_pack.BLOCKED


async def ours(plan: Plan, frame: int) -> Any:
    try:
        result, _ = await plan.run_async(frame) if plan.is_async else plan.run(frame)
    except HeadraceError:
        return "failed"
    return protocol_pack.shown(result)


async def main() -> None:
    protocol_pack.ExecutionBlocker = ExecutionBlocker  # type: ignore[misc]
    protocol_pack.CLASSES["SchemaAdd"] = SchemaAdd
    registry = NodeRegistry.from_mappings(protocol_pack.CLASSES)
    nodes.NODE_CLASS_MAPPINGS.update(protocol_pack.CLASSES)
    nodes.NODE_CLASS_MAPPINGS.update({"ProtocolSource": Source, "ProtocolSink": Sink})
    logging.disable(logging.CRITICAL)
    agreed, failed, wrong = 0, 0, []
    for number in range(int(count)):
        graph = graph_of(random.Random(number))
        whole = {
            "in": {"class_type": "LoadTensor", "inputs": {}},
            **graph,
            "out": {"class_type": "SaveTensor", "inputs": {"images": ["last", 0]}},
        }
        plan = await Plan.compile(whole, registry)
        executor = execution.PromptExecutor(Server())
        for frame in FRAMES:
            expected, result = await theirs(executor, graph, frame), await ours(plan, frame)
            failed += expected == result == "failed"
            if expected == result:
                agreed += 1
            else:
                wrong.append({"graph": graph, "frame": frame, "theirs": expected, "ours": result})
    sys.stdout.write(json.dumps({"agreed": agreed, "failed": failed, "wrong": wrong}) + "\n")


asyncio.run(main())

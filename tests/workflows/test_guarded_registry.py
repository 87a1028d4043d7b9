"""A registry that vets literals and guards what runs outside the frame's path."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import arithmetic_pack
import pytest

from stream.errors import InvalidWorkflow
from workflows.beside import run_beside
from workflows.graph import Graph, Node
from workflows.plan import Plan
from workflows.problems import Problem
from workflows.registry import NodeRegistry

GRAPH = {
    "in": {"class_type": "LoadTensor", "inputs": {}},
    "one": {"class_type": "Constant", "inputs": {"value": 1}},
    "live": {"class_type": "Add", "inputs": {"a": ["in", 0], "b": ["one", 0], "scale": 1}},
    "out": {"class_type": "SaveTensor", "inputs": {"images": ["live", 0]}},
}


class Wary(NodeRegistry):
    """Refuses the constant 13. ``guarded`` counts how often its lock went to somebody; ``asked`` is set when
    another thread than the main one wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.guarded = self._depth = 0
        self._lock = threading.RLock()
        self.asked = threading.Event()

    def refusals(self, graph: Graph, node: Node) -> Iterable[Problem]:
        if node.inputs.get("value") == 13:
            yield node.problem("confined", "13 is not to be had", "value")

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            self.asked.set()
        with self._lock:
            self.guarded += not self._depth
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1


def wary() -> Wary:
    registry = Wary()
    registry.add({name: arithmetic_pack.registry().node_class(name) for name in ("Constant", "Add")})
    return registry


def test_constant_nodes_are_guarded_and_frames_are_not() -> None:
    registry = wary()
    plan = asyncio.run(Plan.compile(GRAPH, registry))
    assert registry.guarded == 1
    assert plan.run(4)[0] == 5
    assert registry.guarded == 1
    plan.commit(asyncio.run(plan.change({("one", "value"): 2})))
    assert registry.guarded == 2


class Read(arithmetic_pack.Node):
    """A constant that is asked about its inputs. ``asked`` says who had the guard meanwhile."""

    FUNCTION = "read"
    registry: ClassVar[Wary]
    asked: ClassVar[list[int]] = []

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"value": ("INT", {"default": 1})}}

    @classmethod
    def VALIDATE_INPUTS(cls, value: int) -> bool:  # noqa: N802
        cls.asked.append(cls.registry._depth)
        return True

    @classmethod
    def IS_CHANGED(cls, value: int) -> int:  # noqa: N802
        cls.asked.append(cls.registry._depth)
        return value

    def read(self, value: int) -> tuple[int]:
        return (value,)


def test_classes_are_asked_without_the_guard() -> None:
    registry = Read.registry = wary()
    registry.add({"Constant": Read})
    Read.asked.clear()
    plan = asyncio.run(Plan.compile(GRAPH, registry))
    assert asyncio.run(plan.recheck()) is None
    plan.commit(asyncio.run(plan.change({("one", "value"): 2})))
    assert Read.asked == [0] * 5
    assert plan.run(4)[0] == 6
    assert registry.guarded == 2


def test_what_the_registry_refuses_is_neither_compiled_nor_changed_to() -> None:
    registry = wary()
    plan = asyncio.run(Plan.compile(GRAPH, registry))
    arithmetic_pack.Node.calls.clear()
    with pytest.raises(InvalidWorkflow, match="13 is not to be had"):
        asyncio.run(plan.change({("one", "value"): 13}))
    bad: dict[str, Any] = {**GRAPH, "one": {"class_type": "Constant", "inputs": {"value": 13}}}
    with pytest.raises(InvalidWorkflow, match="13 is not to be had") as caught:
        asyncio.run(Plan.compile(bad, registry))
    assert caught.value.details[0]["code"] == "confined"
    assert not arithmetic_pack.Node.calls
    assert plan.run(4)[0] == 5


async def test_whoever_has_the_guard_does_not_wait_for_one_who_waits_for_it() -> None:
    """A frame's thread has ComfyUI's lock and needs a constant that a load beside it is about to compute."""
    registry = wary()
    # One that no plan of another test has: constants are shared as long as anybody holds them.
    graph = {**GRAPH, "one": {"class_type": "Constant", "inputs": {"value": 4711}}}
    arithmetic_pack.Node.calls.clear()
    with registry.guard():
        beside = asyncio.create_task(run_beside(lambda: Plan.compile(graph, registry)))
        assert await asyncio.to_thread(registry.asked.wait, 10)
        plan = await asyncio.wait_for(Plan.compile(graph, registry), 5)
    other = await asyncio.wait_for(beside, 10)
    assert plan.run(4)[0] == other.run(4)[0] == 4715
    assert arithmetic_pack.Node.calls["Constant"] == 1, "whoever comes second finds it made"

"""A registry that vets literals and guards what runs outside the frame's path."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import arithmetic_pack
import pytest

from stream.errors import InvalidWorkflow
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
    """Refuses the constant 13."""

    def __init__(self) -> None:
        super().__init__()
        self.guarded = 0

    def refusals(self, graph: Graph, node: Node) -> Iterable[Problem]:
        if node.inputs.get("value") == 13:
            yield node.problem("confined", "13 is not to be had", "value")

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        self.guarded += 1
        yield


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

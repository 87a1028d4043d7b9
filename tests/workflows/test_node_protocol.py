"""Plans of graphs of all kinds of nodes against the smallest interpreter of the protocol."""

from __future__ import annotations

import asyncio
from typing import Any

import protocol_pack
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from stream.errors import ProcessorError
from workflows.plan import NeedsLoop, Plan
from workflows.topology import downstream

LOAD = {"class_type": "LoadTensor", "inputs": {}}


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, Any]:
    """A random graph whose last node depends on the frame."""
    graph: dict[str, Any] = {"in": LOAD}
    outputs: list[list[Any]] = [["in", 0]]
    kinds = st.sampled_from(["Constant", "Constant", *protocol_pack.CLASSES])
    for index in range(draw(st.integers(1, 9))):
        add(graph, outputs, f"n{index}", draw(kinds), draw)
    graph["last"] = {
        "class_type": "Add",
        "inputs": {"a": draw(st.sampled_from(outputs)), "b": ["in", 0], "n": draw(st.integers(0, 9))},
    }
    graph["out"] = {"class_type": "SaveTensor", "inputs": {"images": ["last", 0]}}
    return graph


def add(graph: dict[str, Any], outputs: list[list[Any]], name: str, kind: str, draw: st.DrawFn) -> None:
    node_class = protocol_pack.CLASSES[kind]
    links = getattr(node_class, "LINKS", ("a", "b"))
    inputs = {link: draw(st.sampled_from(outputs)) for link in links} | {"n": draw(st.integers(0, 9))}
    graph[name] = {"class_type": kind, "inputs": inputs}
    outputs += [[name, output] for output in range(2 if kind == "Block" else 1)]


def unchanging(plan: Plan) -> set[str]:
    return set(plan.graph.nodes) - downstream(plan.graph, ["in"])


async def test_a_lazy_input_that_is_not_wanted_blocks_where_its_node_has_run_already() -> None:
    """As in ComfyUI, which takes whatever is known of its inputs to a node."""
    graph = {
        "in": LOAD,
        "block": {"class_type": "Block", "inputs": {"a": ["in", 0], "n": 0}},
        "switch": {
            "class_type": "Switch",
            "inputs": {"a": ["block", 0], "yes": ["in", 0], "no": ["block", 1], "n": 0},
        },
        "out": {"class_type": "SaveTensor", "inputs": {"images": ["switch", 0]}},
    }
    plan = await Plan.compile(graph, protocol_pack.registry())
    shown = [protocol_pack.shown((await plan.run_async(frame))[0]) for frame in range(3)]
    assert shown == [protocol_pack.BLOCKED, 1, 2]


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graphs(), st.lists(st.integers(0, 50), min_size=2, max_size=4))
def test_a_plan_gives_what_the_protocol_gives_and_runs_constants_once(
    graph: dict[str, Any], frames: list[int]
) -> None:
    try:
        expected = [protocol_pack.naive(graph, frame) for frame in frames]
    except protocol_pack.Ambiguous:
        reject()

    async def scenario() -> None:
        protocol_pack.calls.clear()
        plan = await Plan.compile(graph, protocol_pack.registry())
        for frame, wanted in zip(frames, expected, strict=True):
            if plan.is_async:
                result, _ = await plan.run_async(frame)
            else:
                result, _ = plan.run(frame)
            assert protocol_pack.shown(result) == wanted
        for node_id in unchanging(plan) & protocol_pack.calls.keys():
            mapped = protocol_pack.calls[node_id]
            runs = 1 if not lists_into(graph, node_id) else mapped
            assert mapped == runs, f"constant {node_id} ran {mapped} times"

    asyncio.run(scenario())


def lists_into(graph: dict[str, Any], node_id: str) -> bool:
    """Whether a list can reach the node, which is then called once for each element."""
    kinds = {name for name, node in graph.items() if node["class_type"] == "Many"}
    pending, seen = [node_id], set[str]()
    while pending:
        current = pending.pop()
        for value in graph[current]["inputs"].values():
            if isinstance(value, list) and value[0] not in seen:
                seen.add(value[0])
                pending.append(value[0])
    return bool(seen & kinds)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graphs(), st.data())
def test_a_change_equals_compiling_anew(graph: dict[str, Any], data: st.DataObject) -> None:
    async def scenario() -> None:
        plan = await Plan.compile(graph, protocol_pack.registry())
        literals = [(node_id, "n") for node_id, node in graph.items() if "n" in node["inputs"]]
        for _ in range(2):
            chosen = data.draw(st.dictionaries(st.sampled_from(literals), st.integers(0, 9), max_size=3))
            known = {
                (node_id, name): n for (node_id, name), n in chosen.items() if node_id in plan.graph.nodes
            }
            before = protocol_pack.shown((await plan.run_async(5))[0])
            program = await plan.change(known)
            assert protocol_pack.shown((await plan.run_async(5))[0]) == before
            plan.commit(program)
            for (node_id, name), value in known.items():
                graph[node_id]["inputs"][name] = value
            try:
                wanted = await asyncio.to_thread(protocol_pack.naive, graph, 5)
            except protocol_pack.Ambiguous:
                continue
            assert protocol_pack.shown((await plan.run_async(5))[0]) == wanted

    asyncio.run(scenario())


def through(kind: str, **inputs: Any) -> dict[str, Any]:
    return {
        "in": LOAD,
        "one": {"class_type": "Constant", "inputs": {"n": 1}},
        "two": {"class_type": "Constant", "inputs": {"n": 2}},
        "x": {"class_type": kind, "inputs": inputs},
        "out": {"class_type": "SaveTensor", "inputs": {"images": ["x", 0]}},
    }


def test_what_a_constant_decides_of_lazy_inputs_is_planned() -> None:
    graph = through("Switch", a=["one", 0], yes=["in", 0], no=["two", 0], n=0)
    protocol_pack.calls.clear()
    plan = asyncio.run(Plan.compile(graph, protocol_pack.registry()))
    assert not plan.slow_nodes
    assert [plan.run(frame)[0] for frame in (4, 5)] == [4, 5]
    assert "two" not in protocol_pack.calls, "what is not asked for does not run"


def test_what_the_frame_decides_goes_by_the_slow_road_and_says_so() -> None:
    graph = through("Switch", a=["in", 0], yes=["one", 0], no=["two", 0], n=0)
    protocol_pack.calls.clear()
    plan = asyncio.run(Plan.compile(graph, protocol_pack.registry()))
    assert plan.slow_nodes == {"x": "what it wants of its lazy inputs depends on the frame"}
    assert [plan.run(frame)[0] for frame in (1, 3, 4, 5)] == [1, 1, 2, 1]
    assert protocol_pack.calls["one"] == protocol_pack.calls["two"] == 1


def test_a_node_that_expands_is_run_by_the_slow_road_from_then_on() -> None:
    plan = asyncio.run(
        Plan.compile(through("Expand", a=["in", 0], b=["two", 0], n=3), protocol_pack.registry())
    )
    assert not plan.slow_nodes
    graph = through("Expand", a=["in", 0], b=["two", 0], n=3)
    assert [plan.run(frame)[0] for frame in (4, 5)] == [protocol_pack.naive(graph, frame) for frame in (4, 5)]
    assert plan.slow_nodes == {"x": "it expands into other nodes"}


def test_an_async_node_that_another_expands_into_is_awaited_from_then_on() -> None:
    graph = through("ExpandLater", a=["in", 0], b=["two", 0], n=3)

    async def scenario() -> None:
        protocol_pack.calls.clear()
        plan = await Plan.compile(graph, protocol_pack.registry())
        assert not plan.is_async
        with pytest.raises(NeedsLoop):
            plan.run(4)
        assert plan.is_async
        for frame in (4, 5):
            assert (await plan.run_async(frame))[0] == (frame * 3 + 3 * 2) % protocol_pack.MODULUS

    asyncio.run(scenario())


def test_two_plans_of_one_graph_share_their_constants_and_keep_their_instances() -> None:
    graph = through("Add", a=["in", 0], b=["two", 0], n=1)

    async def scenario() -> None:
        protocol_pack.calls.clear()
        registry = protocol_pack.registry()
        first = await Plan.compile(graph, registry)
        second = await Plan.compile(graph, registry)
        assert protocol_pack.calls["two"] == 1
        assert first.steps[0].call.__self__ is not second.steps[0].call.__self__
        entries = [plan.program.kept.entries["two"] for plan in (first, second)]
        assert entries[0] is entries[1]

    asyncio.run(scenario())


class InterruptProcessingException(Exception):
    pass


def failing(error: BaseException, *, later: bool) -> Any:
    class Fails(protocol_pack.Old):
        LINKS = ("a",)

        def run(self, a: int, n: int, me: str) -> Any:
            raise error

        async def run_later(self, a: int, n: int, me: str) -> Any:
            raise error

    Fails.FUNCTION = "run_later" if later else "run"
    return Fails


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (InterruptProcessingException(), "it was interrupted"),
        (SystemExit(3), "SystemExit: 3"),
        (MemoryError(), r"MemoryError: no message \(out of memory\)"),
    ],
)
def test_what_would_end_a_process_is_a_fault_of_the_node(
    error: BaseException, told: str, later: bool
) -> None:
    """Also of async nodes beside each other, whose tasks an exit would leave by the event loop."""
    graph = through("Fails", a=["in", 0], n=0) | {
        "y": {"class_type": "LaterAdd", "inputs": {"a": ["in", 0], "b": ["in", 0], "n": 1}},
        "z": {"class_type": "Add", "inputs": {"a": ["x", 0], "b": ["y", 0], "n": 1}},
        "out": {"class_type": "SaveTensor", "inputs": {"images": ["z", 0]}},
    }
    registry = protocol_pack.registry().add({"Fails": failing(error, later=later)})

    async def scenario() -> None:
        plan = await Plan.compile(graph, registry)
        for _ in range(2):
            with pytest.raises(ProcessorError, match=rf"^node x \(Fails\): {told}"):
                await plan.run_async(4)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())


def test_async_nodes_that_do_not_need_each_other_wait_at_once() -> None:
    class Meets(protocol_pack.Old):
        """Returns only when the other has come as far."""

        LINKS = ("a",)

        async def run(self, a: int, n: int, me: str) -> tuple[int]:
            await barrier.wait()
            return (a + n,)

    graph = through("Meets", a=["in", 0], n=1) | {
        "y": {"class_type": "Meets", "inputs": {"a": ["in", 0], "n": 2}},
        "z": {"class_type": "Add", "inputs": {"a": ["x", 0], "b": ["y", 0], "n": 1}},
        "out": {"class_type": "SaveTensor", "inputs": {"images": ["z", 0]}},
    }

    barrier: Any = None

    async def scenario() -> Any:
        nonlocal barrier
        barrier = asyncio.Barrier(2)
        plan = await Plan.compile(graph, protocol_pack.registry().add({"Meets": Meets}))
        return await asyncio.wait_for(plan.run_async(10), 20)

    assert asyncio.run(scenario()) == (23, [])

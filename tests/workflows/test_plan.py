from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import arithmetic_pack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import InvalidWorkflow, ProcessorError
from workflows.plan import Plan
from workflows.registry import NodeRegistry

LOAD = {"class_type": "LoadTensor", "inputs": {}}


def compiled(graph: dict[str, Any], registry: NodeRegistry) -> Plan:
    return asyncio.run(Plan.compile(graph, registry))


def run(graph: dict[str, Any], registry: NodeRegistry, frame: Any = 7) -> Any:
    return compiled(graph, registry).run(frame)[0]


@st.composite
def dags(draw: st.DrawFn) -> dict[str, Any]:
    """A random graph in which a SaveTensor shows something that depends on the frame."""
    graph: dict[str, Any] = {"in": LOAD}
    outputs: list[list[Any]] = [["in", 0]]
    small = st.integers(0, 50)
    for index in range(draw(st.integers(1, 12))):
        name = f"n{index}"
        kind = draw(st.sampled_from(["Constant", "Add", "Add", "Split"]))
        link = st.sampled_from(outputs)
        if kind == "Constant":
            inputs: dict[str, Any] = {"value": draw(small)}
        elif kind == "Split":
            inputs = {"a": draw(link)}
        else:
            inputs = {"a": draw(link), "b": draw(link), "scale": draw(small)}
            if draw(st.booleans()):
                inputs["offset"] = draw(small)
        graph[name] = {"class_type": kind, "inputs": inputs}
        outputs += [[name, 0], [name, 1]] if kind == "Split" else [[name, 0]]
    graph["last"] = {
        "class_type": "Add",
        "inputs": {"a": draw(st.sampled_from(outputs)), "b": ["in", 0], "scale": draw(small)},
    }
    graph["out"] = {"class_type": "SaveTensor", "inputs": {"images": ["last", 0]}}
    names = draw(st.permutations(list(graph)))
    return {name: graph[name] for name in names}


@given(dags(), st.lists(st.integers(0, 1000), min_size=1, max_size=4))
def test_a_plan_gives_what_recursion_gives(graph: dict[str, Any], frames: list[int]) -> None:
    plan = compiled(graph, arithmetic_pack.registry())
    for frame in frames:
        assert plan.run(frame)[0] == arithmetic_pack.naive(graph, frame)
        assert asyncio.run(plan.run_async(frame))[0] == arithmetic_pack.naive(graph, frame)


@given(dags(), st.data())
def test_a_change_equals_compiling_anew(graph: dict[str, Any], data: st.DataObject) -> None:
    plan = compiled(graph, arithmetic_pack.registry())
    literals = [
        (node_id, name)
        for node_id, node in graph.items()
        for name, value in node["inputs"].items()
        if isinstance(value, int)
    ]
    for _ in range(3):
        chosen = data.draw(st.dictionaries(st.sampled_from(literals), st.integers(0, 50), max_size=3))
        for (node_id, name), value in chosen.items():
            graph[node_id]["inputs"][name] = value
        before = plan.run(5)[0]
        program = asyncio.run(plan.change(chosen))
        assert plan.run(5)[0] == before, "a change that is not committed must not show"
        plan.commit(program)
        assert plan.run(5)[0] == arithmetic_pack.naive(graph, 5)


CHAIN = {
    "in": LOAD,
    "one": {"class_type": "Constant", "inputs": {"value": 1}},
    "two": {"class_type": "Constant", "inputs": {"value": 2}},
    "sum": {"class_type": "Add", "inputs": {"a": ["one", 0], "b": ["two", 0], "scale": 10}},
    "live": {"class_type": "Add", "inputs": {"a": ["in", 0], "b": ["sum", 0], "scale": 1}},
    "dead": {"class_type": "Add", "inputs": {"a": ["in", 0], "b": ["one", 0], "scale": 1}},
    "out": {"class_type": "SaveTensor", "inputs": {"images": ["live", 0]}},
}


def test_constant_nodes_run_once_and_dead_ones_never() -> None:
    registry = arithmetic_pack.registry()
    plan = compiled(CHAIN, registry)
    assert [plan.run(frame)[0] for frame in (0, 1, 2)] == [21, 22, 23]
    calls = arithmetic_pack.Node.calls
    assert calls["Constant"] == 2
    assert calls["Add"] == 1 + 3
    assert calls["created Add"] == 2
    assert plan.constant_nodes() == {"one", "two", "sum"}
    assert [step.node.id for step in plan.steps] == ["live"]


def test_a_change_runs_only_the_constant_nodes_that_depend_on_it() -> None:
    plan = compiled(CHAIN, arithmetic_pack.registry())
    calls = arithmetic_pack.Node.calls
    calls.clear()
    plan.commit(asyncio.run(plan.change({("two", "value"): 3})))
    assert calls == {"Constant": 1, "Add": 1}
    assert plan.run(0)[0] == 31
    calls.clear()
    plan.commit(asyncio.run(plan.change({("live", "scale"): 2})))
    assert not calls
    assert plan.run(0)[0] == 62


class Fails:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"a": ("IMAGE",), "limit": ("INT", {"default": 5})}}

    def run(self, a: Any, limit: int) -> tuple[Any]:
        if a > limit:
            raise ArithmeticError(f"{a} is too much")
        return (a,)


def single(class_type: str, **inputs: Any) -> dict[str, Any]:
    """in -> node "x" -> out, the frame going into input "a"."""
    return {
        "in": LOAD,
        "x": {"class_type": class_type, "inputs": {"a": ["in", 0]} | inputs, "_meta": {"title": "Mine"}},
        "out": {"class_type": "SaveTensor", "inputs": {"images": ["x", 0]}},
    }


def test_a_node_that_raises_is_named_and_the_plan_lives_on() -> None:
    plan = compiled(single("Fails", limit=5), arithmetic_pack.registry(Fails=Fails))
    with pytest.raises(ProcessorError) as caught:
        plan.run(7)
    assert caught.value.message == 'node x "Mine" (Fails): ArithmeticError: 7 is too much'
    assert caught.value.details[0]["node_id"] == "x"
    assert isinstance(caught.value.__cause__, ArithmeticError)
    assert plan.run(3)[0] == 3


def test_a_constant_node_that_raises_stops_the_compilation_or_the_change() -> None:
    graph = {
        "in": LOAD,
        "one": {"class_type": "Constant", "inputs": {"value": 1}},
        "x": {"class_type": "Fails", "inputs": {"a": ["one", 0], "limit": 5}},
        "sum": {"class_type": "Add", "inputs": {"a": ["in", 0], "b": ["x", 0], "scale": 1}},
        "out": {"class_type": "SaveTensor", "inputs": {"images": ["sum", 0]}},
    }
    plan = compiled(graph, arithmetic_pack.registry(Fails=Fails))
    with pytest.raises(ProcessorError, match=r"node x \(Fails\): ArithmeticError: 9 is too much"):
        asyncio.run(plan.change({("one", "value"): 9}))
    assert plan.run(0)[0] == 1
    graph["one"]["inputs"]["value"] = 9
    with pytest.raises(ProcessorError, match="9 is too much"):
        compiled(graph, arithmetic_pack.registry(Fails=Fails))


class Exits(Fails):
    def run(self, a: Any, limit: int) -> tuple[Any]:
        raise SystemExit(3)


class WillNotBeMade(Fails):
    def __init__(self) -> None:
        raise OSError("no licence file")


def test_nodes_that_exit_or_cannot_be_made_do_no_more_than_fail() -> None:
    plan = compiled(single("Exits", limit=1), arithmetic_pack.registry(Exits=Exits))
    with pytest.raises(ProcessorError, match="SystemExit: 3"):
        plan.run(1)
    with pytest.raises(ProcessorError, match="OSError: no licence file"):
        compiled(single("WillNotBeMade", limit=1), arithmetic_pack.registry(WillNotBeMade=WillNotBeMade))


class Returns(Fails):
    what: Any = None

    def run(self, a: Any, limit: int) -> Any:
        return self.what


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (5, "it returned a int, not a tuple of 1"),
        (None, "it returned nothing, not a tuple of 1"),
        ((), "it returned 0 value(s), but output 0 (counted from 0) is used"),
        ({"expand": {"1": {"class_type": "Gone"}}, "result": (1,)}, "it expands into the class Gone"),
    ],
)
def test_a_result_that_is_no_result_is_told_in_words(what: Any, message: str) -> None:
    node_class = type("Returns", (Returns,), {"what": what})
    plan = compiled(single("Returns", limit=1), arithmetic_pack.registry(Returns=node_class))
    with pytest.raises(ProcessorError) as caught:
        plan.run(1)
    assert message in caught.value.message


def test_what_a_node_shows_in_an_editor_is_kept_beside_its_result() -> None:
    node_class = type("Returns", (Returns,), {"what": {"ui": {"text": ["hi"]}, "result": (4,)}})
    plan = compiled(single("Returns", limit=1), arithmetic_pack.registry(Returns=node_class))
    assert plan.run(1)[0] == 4
    assert plan.shown == {"x": {"text": ["hi"]}}


class SideEffect(Fails):
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    seen: list[Any]

    def run(self, a: Any, limit: int) -> Any:
        self.seen.append(a)
        return {"ui": {"seen": [a]}}


def test_output_nodes_of_packs_run_too() -> None:
    seen: list[Any] = []
    node_class = type("SideEffect", (SideEffect,), {"seen": seen})
    graph = CHAIN | {"y": {"class_type": "SideEffect", "inputs": {"a": ["sum", 0], "limit": 1}}}
    graph |= {"z": {"class_type": "SideEffect", "inputs": {"a": ["in", 0], "limit": 1}}}
    plan = compiled(graph, arithmetic_pack.registry(SideEffect=node_class))
    assert seen == [21]
    plan.run(5)
    plan.run(6)
    assert seen == [21, 5, 6]
    assert plan.shown == {"y": {"seen": [21]}, "z": {"seen": [6]}}


@pytest.mark.parametrize("shown", ["live", "in"])
def test_what_goes_out_may_be_used_by_other_nodes_too(shown: str) -> None:
    seen: list[Any] = []
    node_class = type("SideEffect", (SideEffect,), {"seen": seen})
    graph = CHAIN | {
        "out": {"class_type": "SaveTensor", "inputs": {"images": [shown, 0]}},
        "z": {"class_type": "SideEffect", "inputs": {"a": [shown, 0], "limit": 1}},
    }
    result, _ = compiled(graph, arithmetic_pack.registry(SideEffect=node_class)).run(5)
    assert seen == [result] == [26 if shown == "live" else 5]


class Asynchronous(Fails):
    async def run(self, a: Any, limit: int) -> tuple[Any]:  # type: ignore[override]
        await asyncio.sleep(0)
        return (a + limit,)


def test_async_nodes_are_awaited_per_frame_and_as_constants() -> None:
    registry = arithmetic_pack.registry(Asynchronous=Asynchronous)
    plan = compiled(single("Asynchronous", limit=1), registry)
    assert plan.is_async
    assert asyncio.run(plan.run_async(4))[0] == 5
    graph = CHAIN | {
        "two": {"class_type": "Asynchronous", "inputs": {"a": ["one", 0], "limit": 1}},
    }
    plan = compiled(graph, registry)
    assert not plan.is_async
    assert plan.run(0)[0] == 21


class Hidden(Fails):
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {"a": ("IMAGE",)},
            "hidden": {
                "me": "UNIQUE_ID",
                "everything": "PROMPT",
                "info": "EXTRA_PNGINFO",
                "other": "SOMETHING_ELSE",
            },
        }

    def run(self, a: Any, me: str, everything: Any, info: Any, **rest: Any) -> tuple[Any]:  # type: ignore[override]
        return ((me, sorted(everything), info, rest),)


def test_hidden_inputs_are_supplied() -> None:
    assert run(single("Hidden"), arithmetic_pack.registry(Hidden=Hidden)) == (
        "x",
        ["in", "out", "x"],
        None,
        {},
    )


def test_inputs_that_the_class_does_not_have_are_not_handed_over() -> None:
    assert run(single("Fails", limit=9, unknown=3), arithmetic_pack.registry(Fails=Fails)) == 7


class Validates(Fails):
    @classmethod
    def VALIDATE_INPUTS(cls, limit: int, input_types: dict[str, str]) -> bool | str:  # noqa: N802
        assert input_types == {"a": "IMAGE"}
        if limit == 13:
            raise LookupError("unlucky")
        return True if limit % 2 else f"{limit} is even"


def test_what_a_class_refuses_is_a_problem_at_load_and_at_a_change() -> None:
    registry = arithmetic_pack.registry(Validates=Validates)
    for limit, message in ((4, "4 is even"), (13, "its own check failed: LookupError: unlucky")):
        with pytest.raises(InvalidWorkflow) as caught:
            compiled(single("Validates", limit=limit), registry)
        assert caught.value.message == f'node x "Mine" (Validates): {message}'
        assert caught.value.details[0]["code"] == "rejected_by_node"
    plan = compiled(single("Validates", limit=9), registry)
    with pytest.raises(InvalidWorkflow, match="4 is even"):
        asyncio.run(plan.change({("x", "limit"): 4}))
    assert plan.run(8)[0] == 8


class Changing(arithmetic_pack.Constant):
    answer: Any = float("nan")

    @classmethod
    def IS_CHANGED(cls, value: int) -> Any:  # noqa: N802
        if isinstance(cls.answer, Exception):
            raise cls.answer
        return cls.answer


@pytest.mark.parametrize(("answer", "runs"), [(float("nan"), 3), ("abc", 1), (1.5, 1), (OSError("gone"), 1)])
def test_is_changed_decides_whether_a_node_is_constant(answer: Any, runs: int) -> None:
    node_class = type("Changing", (Changing,), {"answer": answer})
    graph = CHAIN | {"one": {"class_type": "Changing", "inputs": {"value": 1}}}
    plan = compiled(graph, arithmetic_pack.registry(Changing=node_class))
    for frame in range(3):
        assert plan.run(frame)[0] == frame + 21
    assert arithmetic_pack.Node.calls["Changing"] == runs


class Listing(Fails):
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_IS_LIST = (True,)

    def run(self, a: Any, limit: int) -> tuple[Any]:
        return ([a + index for index in range(limit)],)


class Gather(Fails):
    INPUT_IS_LIST = True

    def run(self, a: Any, limit: Any) -> tuple[Any]:
        return ((a, limit),)


def test_lists_are_mapped_over_and_gathered() -> None:
    registry = arithmetic_pack.registry(Listing=Listing, Gather=Gather)
    graph = {
        "in": LOAD,
        "many": {"class_type": "Listing", "inputs": {"a": ["in", 0], "limit": 3}},
        "two": {"class_type": "Listing", "inputs": {"a": ["in", 0], "limit": 2}},
        "each": {"class_type": "Add", "inputs": {"a": ["many", 0], "b": ["two", 0], "scale": 100}},
        "all": {"class_type": "Gather", "inputs": {"a": ["each", 0], "limit": 1}},
        "out": {"class_type": "SaveTensor", "inputs": {"images": ["all", 0]}},
    }
    # The shorter list repeats its last element.
    assert run(graph, registry, 5) == ([505, 606, 607], [1])
    graph["out"]["inputs"] = {"images": ["each", 0]}
    assert run(graph, registry, 5) == [505, 606, 607]
    graph["two"]["inputs"] = {"a": ["in", 0], "limit": 0}
    with pytest.raises(ProcessorError, match="its input b is an empty list"):
        run(graph, registry, 5)


class Mark:
    """Something whose life can be watched."""


class MakesMark(Fails):
    marks: list[weakref.ref[Mark]]

    def run(self, a: Any, limit: int) -> tuple[Any]:
        alive = sum(1 for mark in self.marks if mark() is not None)
        assert alive <= 1, f"{alive} values of earlier nodes are still held"
        mark = Mark()
        self.marks.append(weakref.ref(mark))
        return (mark,)


def test_a_value_is_let_go_once_its_last_user_has_run() -> None:
    gc.disable()
    try:
        marks: list[weakref.ref[Mark]] = []
        node_class = type("MakesMark", (MakesMark,), {"marks": marks})
        graph: dict[str, Any] = {"in": LOAD}
        for index in range(6):
            source = ["in", 0] if index == 0 else [f"m{index - 1}", 0]
            graph[f"m{index}"] = {"class_type": "MakesMark", "inputs": {"a": source, "limit": 1}}
        graph["out"] = {"class_type": "SaveTensor", "inputs": {"images": ["m5", 0]}}
        plan = compiled(graph, arithmetic_pack.registry(MakesMark=node_class))
        result = plan.run(1)
        assert result[0] is marks[-1]()
        del result
        assert all(mark() is None for mark in marks)
    finally:
        gc.enable()


def test_a_plan_without_steps_is_a_passthrough() -> None:
    plan = compiled(
        {"in": LOAD, "out": {"class_type": "SaveTensor", "inputs": {"images": ["in", 0]}}},
        arithmetic_pack.registry(),
    )
    assert plan.is_passthrough
    frame = object()
    assert plan.run(frame)[0] is frame
    assert not compiled(CHAIN, arithmetic_pack.registry()).is_passthrough


def test_texts_go_out_with_each_frame_and_constant_ones_once() -> None:
    class Words(Fails):
        RETURN_TYPES = ("STRING",)

        def run(self, a: Any, limit: int) -> tuple[Any]:
            return (f"{a}\n!",)

    graph = {
        "in": LOAD,
        "words": {"class_type": "Words", "inputs": {"a": ["in", 0], "limit": 1}},
        "text": {"class_type": "SaveTextTensor", "inputs": {"data": ["words", 0]}},
        "fixed": {"class_type": "SaveTextTensor", "inputs": {"data": "hello"}},
    }
    plan = compiled(graph, arithmetic_pack.registry(Words=Words))
    assert not plan.has_video_output
    assert [plan.run(frame) for frame in (1, 2)] == [(None, ["hello", "1!"]), (None, ["2!"])]
    plan.commit(asyncio.run(plan.change({("fixed", "data"): "bye"})))
    assert plan.run(3) == (None, ["bye", "3!"])

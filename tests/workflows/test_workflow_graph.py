from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import InvalidWorkflow, TooLarge
from workflows.check import examine
from workflows.graph import (
    Graph,
    Limits,
    Link,
    is_editor_format,
    load_json,
    looks_like_graph,
    parse_graph,
    read_graph,
)
from workflows.registry import NodeRegistry

DEFINITIONS = NodeRegistry.builtin().definitions

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)
class_types = st.sampled_from(
    ["LoadTensor", "LoadImage", "Canny", "ImageBlend", "SaveTensor", "PreviewImage", ""]
)
node_ids = st.sampled_from(["1", "2", "3", "4", "a:b", ""])
near_nodes = st.fixed_dictionaries(
    {},
    optional={
        "class_type": class_types | scalars,
        "inputs": anything
        | st.dictionaries(
            st.sampled_from(["image", "images", "image1", "image2", "low_threshold"]),
            st.tuples(node_ids, st.integers(-1, 2)).map(list) | anything,
            max_size=4,
        ),
        "_meta": anything | st.fixed_dictionaries({"title": anything}),
    },
)
near_graphs = st.dictionaries(node_ids, near_nodes | anything, max_size=6)


@given(anything | near_graphs)
def test_any_json_is_read_and_checked_without_a_crash(data: Any) -> None:
    graph, problems = read_graph(data)
    assert graph.nodes or problems
    _, found = examine(data, DEFINITIONS)
    assert all(problem.code and problem.message and str(problem) for problem in found)
    json.dumps([problem.as_dict() for problem in found])


@given(st.text() | st.binary())
def test_any_text_is_json_or_refused(text: str | bytes) -> None:
    try:
        load_json(text)
    except InvalidWorkflow as error:
        assert error.field == "workflow"


graphs = st.dictionaries(
    st.text(min_size=1, max_size=5),
    st.fixed_dictionaries(
        {
            "class_type": st.text(min_size=1, max_size=8),
            "inputs": st.dictionaries(
                st.text(max_size=8),
                st.tuples(st.text(max_size=5), st.integers(0, 9)).map(list)
                | st.text(max_size=8)
                | st.integers()
                | st.dictionaries(st.text(min_size=1, max_size=4), st.integers(), max_size=2)
                | st.lists(st.integers()).map(lambda value: {"__value__": value}),
                max_size=4,
            ),
            "_meta": st.fixed_dictionaries({"title": st.text(min_size=1, max_size=8)}),
        }
    ),
    min_size=1,
    max_size=6,
)


@given(graphs)
def test_a_well_formed_graph_comes_back_as_it_was(data: dict[str, Any]) -> None:
    if is_editor_format(data) or isinstance(data.get("prompt"), str):
        return
    assert parse_graph(data).to_api() == data


def test_links_titles_and_literals_are_told_apart() -> None:
    graph = parse_graph(
        {
            "7": {
                "class_type": "K",
                "inputs": {"image": ["3", 1], "old": [3, 0], "list": {"__value__": ["3", 1]}, "n": 5},
                "_meta": {"title": "Mine"},
            },
            "3": {"class_type": "L"},
        }
    )
    node = graph.nodes["7"]
    assert node.inputs["image"] == Link("3", 1)
    assert node.inputs["old"] == Link("3", 0)
    assert node.inputs["list"] == ["3", 1]
    assert node.title == "Mine"
    assert node.label == 'node 7 "Mine" (K)'
    assert graph.nodes["3"].label == "node 3 (L)"


def test_all_structural_problems_are_reported_at_once() -> None:
    with pytest.raises(InvalidWorkflow) as caught:
        parse_graph(
            {
                "1": {"inputs": {}},
                "2": [1, 2],
                "3": {"class_type": "A", "inputs": [1]},
                "4": {"class_type": "B", "inputs": {"x": [1, 2, 3], "y": float("nan"), "ok": 1}},
                "5": {"class_type": "C", "inputs": {}},
            }
        )
    found = [(detail.get("node_id"), detail["code"], detail.get("input")) for detail in caught.value.details]
    assert found == [
        ("1", "bad_node", None),
        ("2", "bad_node", None),
        ("3", "bad_node", None),
        ("4", "bad_value", "x"),
        ("4", "bad_value", "y"),
    ]
    assert "5 problems" in str(caught.value)
    assert "node 4 (B), input y: nan is not a finite number" in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        {"nodes": [], "links": [], "last_node_id": 3, "version": 0.4},
        {"nodes": [{"id": 1, "type": "LoadImage"}], "links": []},
        {"nodes": [{"id": 1}], "links": {}, "state": {}},
    ],
)
def test_the_format_of_the_editor_is_recognised_and_named(data: Any) -> None:
    with pytest.raises(InvalidWorkflow, match=r"ComfyUI's editor saves, where the API format is expected"):
        parse_graph(data)


@pytest.mark.parametrize("data", [None, 5, "x", [], [{}], {}, {"a": 1}, True])
def test_what_is_no_graph_is_refused_in_words(data: Any) -> None:
    with pytest.raises(InvalidWorkflow) as caught:
        parse_graph(data)
    assert caught.value.details[0]["code"] in {"not_a_graph", "empty_graph"}


def test_the_body_of_a_prompt_request_is_unwrapped() -> None:
    inner = {"1": {"class_type": "A", "inputs": {}}}
    assert parse_graph({"prompt": inner, "client_id": "x"}) == parse_graph(inner)
    named = {"prompt": {"class_type": "A", "inputs": {}}}
    assert list(parse_graph(named).nodes) == ["prompt"]


def test_endless_nesting_is_no_crash() -> None:
    data: Any = {"class_type": "A"}
    for _ in range(5000):
        data = {"prompt": data, "x": data}
    assert read_graph(data)[1]
    looks_like_graph(data)
    _, problems = examine({"1": {"class_type": "Canny", "inputs": {"low_threshold": data}}}, DEFINITIONS)
    assert "nested deeper than 32 levels" in str(problems[0])
    with pytest.raises(InvalidWorkflow, match="that can be read"):
        load_json("1" * 10_000)


def test_sizes_are_bounded() -> None:
    limits = Limits(text_bytes=50, nodes=2, inputs_per_node=2, string_characters=10, nesting=3)
    node = {"class_type": "A", "inputs": {}}
    deep: Any = 1
    for _ in range(5):
        deep = {"d": deep}
    cases = {
        "3 nodes; the limit is 2": {"1": node, "2": node, "3": node},
        "3 inputs; the limit is 2": {"1": {"class_type": "A", "inputs": {"a": 1, "b": 2, "c": 3}}},
        "11 characters; the limit is 10": {"1": {"class_type": "A", "inputs": {"a": "x" * 11}}},
        "deeper than 3 levels": {"1": {"class_type": "A", "inputs": {"a": deep}}},
    }
    for message, data in cases.items():
        with pytest.raises(InvalidWorkflow, match=message):
            parse_graph(data, limits)
    with pytest.raises(TooLarge, match="at most 50"):
        load_json("[" + " " * 60 + "]", limits=limits)


def test_json_errors_name_line_and_column() -> None:
    with pytest.raises(InvalidWorkflow, match=r"Expecting ',' delimiter at line 3, column 1"):
        load_json('{"1": {\n"class_type": "A"\n"inputs": {}}}')
    with pytest.raises(InvalidWorkflow, match="nested too deeply"):
        load_json("[" * 200_000)
    with pytest.raises(InvalidWorkflow, match="not UTF-8"):
        load_json(b'{"a": "\xff"}')


def test_a_graph_shares_nothing_with_the_data_it_was_read_from() -> None:
    data = {"1": {"class_type": "A", "inputs": {"config": {"deep": [1]}}}}
    graph = parse_graph(data)
    data["1"]["inputs"]["config"]["deep"].append(2)
    assert graph.to_api()["1"]["inputs"]["config"] == {"deep": [1]}
    graph.to_api()["1"]["inputs"]["config"]["deep"].append(3)
    assert graph.to_api()["1"]["inputs"]["config"] == {"deep": [1]}
    with pytest.raises(TypeError):
        graph.nodes["1"].inputs["config"] = 1  # type: ignore[index]


def test_changed_values_leave_the_old_graph_alone() -> None:
    graph = parse_graph({"1": {"class_type": "A", "inputs": {"x": 1, "y": 2}}})
    other = graph.with_values({("1", "x"): 5})
    assert (graph.nodes["1"].inputs["x"], other.nodes["1"].inputs["x"], other.nodes["1"].inputs["y"]) == (
        1,
        5,
        2,
    )
    assert isinstance(other, Graph)


def test_what_becomes_of_a_value_after_a_run_is_kept() -> None:
    meta = {
        "title": "K",
        "control_after_generate": {"seed": "randomize", "steps": "at will", "gone": "fixed", "x": "fixed"},
    }
    data = {"1": {"class_type": "K", "inputs": {"seed": 5, "steps": 20, "x": ["2", 0]}, "_meta": meta}}
    graph = parse_graph(data)
    assert graph.nodes["1"].after_generate == {"seed": "randomize"}
    assert parse_graph(graph.to_api()) == graph
    assert "control_after_generate" not in parse_graph({"1": {"class_type": "K"}}).to_api()["1"]["_meta"]
    other = parse_graph({"1": {**data["1"], "_meta": {"title": "K"}}})
    assert graph.nodes["1"].changed_literals(other.nodes["1"]) is None

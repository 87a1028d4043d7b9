"""Values written back into files of the editor, which stay as they are in everything else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.library.tuned import NoPlace, with_values
from headrace.server.definitions import WorkerDefinitions
from workflows import library
from workflows.graph import Graph
from workflows.reading import read

DEFINITIONS = WorkerDefinitions()


def graph_of(data: Any) -> Graph:
    return read(data, DEFINITIONS)[0]


def canny(number: int, link: int, out: int, **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "type": "Canny",
        "pos": [10.5, 20],
        "inputs": [{"name": "image", "type": "IMAGE", "link": link}],
        "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [out]}],
        "widgets_values": [0.4, 0.4],
        **more,
    }


def ends(last: int) -> list[dict[str, Any]]:
    load = {"id": 1, "type": "LoadImage", "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}]}
    save = {"id": 9, "type": "SaveImage", "inputs": [{"name": "images", "type": "IMAGE", "link": last}]}
    return [{**load, "widgets_values": ["a.png", "image"]}, {**save, "widgets_values": ["out"]}]


def drawn() -> dict[str, Any]:
    """Two equal nodes, of which each value is in the file four times."""
    return {
        "nodes": [
            *ends(3),
            canny(2, 1, 2, widgets_values_named={"low_threshold": 0.4, "high_threshold": 0.4}),
            canny(3, 2, 3, title="Second"),
            {"id": 5, "type": "Note", "widgets_values": [0.4]},
        ],
        "links": [
            [1, 1, 0, 2, 0, "IMAGE"],
            [2, 2, 0, 3, 0, "IMAGE"],
            [3, 3, 0, 9, 0, "IMAGE"],
        ],
        "groups": [{"title": "left alone"}],
        "extra": {"ds": {"scale": 0.4}},
        "version": 0.4,
    }


def in_subgraph(instances: int) -> dict[str, Any]:
    """Instances of one subgraph, in a row, with a Canny inside."""
    uuid = "3f2b8b0e-0c55-4b5f-9d7c-0d7d2f3b1a11"
    inner = {
        "id": uuid,
        "name": "Outlines",
        "inputs": [{"id": "i", "name": "image", "type": "IMAGE", "linkIds": [1]}],
        "outputs": [{"id": "o", "name": "IMAGE", "type": "IMAGE", "linkIds": [2]}],
        "nodes": [canny(4, 1, 2)],
        "links": [
            {"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 4, "target_slot": 0, "type": "IMAGE"},
            {"id": 2, "origin_id": 4, "origin_slot": 0, "target_id": -20, "target_slot": 0, "type": "IMAGE"},
        ],
    }
    nodes = [
        {
            "id": 20 + number,
            "type": uuid,
            "inputs": [{"name": "image", "type": "IMAGE", "link": 1 + number}],
            "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [2 + number]}],
            "widgets_values": [],
        }
        for number in range(instances)
    ]
    ids = [1, *(node["id"] for node in nodes), 9]
    links = [[n + 1, ids[n], 0, ids[n + 1], 0, "IMAGE"] for n in range(instances + 1)]
    return {
        "nodes": [*ends(instances + 1), *nodes],
        "links": links,
        "definitions": {"subgraphs": [inner]},
        "version": 0.4,
    }


@given(
    st.sampled_from(["2", "3"]),
    st.sampled_from(["low_threshold", "high_threshold"]),
    st.floats(0.01, 0.99).map(lambda value: round(value, 3)),
)
def test_one_value_changes_in_its_place_and_everything_else_stays(node: str, name: str, value: float) -> None:
    tuned = with_values(drawn(), {(node, name): value}, graph_of)
    expected = drawn()
    (changed,) = (each for each in expected["nodes"] if str(each["id"]) == node)
    changed["widgets_values"][name == "high_threshold"] = value
    if node == "2":
        changed["widgets_values_named"][name] = value
    assert tuned == expected
    assert graph_of(tuned).nodes[node].inputs[name] == value


def test_what_was_given_is_left_alone_and_several_values_are_written() -> None:
    data = drawn()
    before = copy.deepcopy(data)
    values = {("2", "low_threshold"): 0.1, ("3", "high_threshold"): 0.9, ("9", "filename_prefix"): "b"}
    tuned = with_values(data, values, graph_of)
    assert data == before
    graph = graph_of(tuned)
    assert {place: graph.nodes[place[0]].inputs[place[1]] for place in values} == values


def test_a_value_inside_a_subgraph_is_written_unless_others_would_change_with_it() -> None:
    data = in_subgraph(1)
    key = next(node.id for node in graph_of(data) if node.class_type == "Canny")
    tuned = with_values(data, {(key, "low_threshold"): 0.1}, graph_of)
    (inner,) = tuned["definitions"]["subgraphs"][0]["nodes"]
    assert inner["widgets_values"] == [0.1, 0.4]
    twice = in_subgraph(2)
    keys = [node.id for node in graph_of(twice) if node.class_type == "Canny"]
    assert len(keys) == 2
    with pytest.raises(NoPlace, match="no place of its own") as caught:
        with_values(twice, {(keys[0], "low_threshold"): 0.1}, graph_of)
    assert caught.value.details[0]["node_id"] == keys[0]
    assert caught.value.status == 409


def test_api_format_and_the_body_of_a_prompt_have_one_place_for_each_value() -> None:
    data = library.load("edges")
    tuned = with_values(data, {("2", "low_threshold"): 0.1}, graph_of)
    data["2"]["inputs"]["low_threshold"] = 0.1
    assert tuned == data
    body = {"prompt": data, "client_id": "x"}
    tuned = with_values(body, {("2", "high_threshold"): [0.2]}, graph_of)
    assert tuned["prompt"]["2"]["inputs"]["high_threshold"] == {"__value__": [0.2]}
    assert tuned["client_id"] == "x"
    for place in (("7", "x"), ("2", "x")):
        with pytest.raises(NoPlace):
            with_values(data, {place: 1}, graph_of)

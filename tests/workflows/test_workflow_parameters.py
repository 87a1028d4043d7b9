from __future__ import annotations

from typing import Any

import pytest

from stream.errors import InvalidInput
from workflows.check import prepare
from workflows.library import load
from workflows.parameters import ParameterTable, Place
from workflows.registry import NodeRegistry

DEFINITIONS = NodeRegistry.builtin().definitions


def table(*workflows: Any) -> ParameterTable:
    return ParameterTable([prepare(data, DEFINITIONS) for data in workflows], DEFINITIONS)


EDGES = table(load("edges"))
CARTOON = table(load("cartoon"))
LOW = Place(0, "2", "low_threshold")


@pytest.mark.parametrize(
    "params",
    [
        {"2.low_threshold": 0.1},
        {"Edges.low_threshold": 0.1},
        {"edges.LOW_threshold": 0.1},
        {"canny.low_threshold": 0.1},
        {"2": {"low_threshold": 0.1}},
        {"Edges": {"low_threshold": "0.1"}},
    ],
)
def test_a_parameter_goes_by_id_title_class_and_nested(params: dict[str, Any]) -> None:
    assert EDGES.resolve(params) == {LOW: 0.1}


def test_a_name_that_means_several_is_refused_with_all_of_them() -> None:
    with pytest.raises(InvalidInput, match=r"ImageBlur.sigma could be any of 4.sigma, 6.sigma, 9.sigma"):
        CARTOON.resolve({"ImageBlur.sigma": 1})
    assert CARTOON.resolve({"Pen width.sigma": 1}) == {Place(0, "9", "sigma"): 1.0}


@pytest.mark.parametrize(
    ("params", "message", "field"),
    [
        ({"2.low_threshold": 5}, "2.low_threshold: must be at most 0.99, got 5", "2.low_threshold"),
        (
            {"2.low_treshold": 0.5},
            "no parameter 2.low_treshold (did you mean 2.low_threshold?)",
            "2.low_treshold",
        ),
        ({"2": {"low_threshold": None}}, "2.low_threshold: expected a number", "2.low_threshold"),
        ({"sdkfjh": 1}, "there is no parameter sdkfjh", "sdkfjh"),
        (
            {"2.low_threshold": 0.1, "edges.low_threshold": 0.2},
            "edges.low_threshold and 2.low_threshold are the same parameter",
            "edges.low_threshold",
        ),
    ],
)
def test_refusals_name_field_limit_and_value(params: dict[str, Any], message: str, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        EDGES.resolve(params)
    assert message in caught.value.message
    assert caught.value.field == field


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        EDGES.resolve({"2.low_threshold": 5, "nope": 1, "2.high_threshold": 0.5})
    assert [detail["field"] for detail in caught.value.details] == ["2.low_threshold", "nope"]


def test_the_schema_follows_the_declarations() -> None:
    properties = CARTOON.schema()["properties"]
    assert properties["5.colors"] == {
        "title": "Few colours: colors",
        "default": 20,
        "type": "integer",
        "minimum": 1,
        "maximum": 256,
        "step": 1,
        "cost": "frame",
    }
    assert properties["2.upscale_method"]["enum"] == [
        "nearest-exact",
        "bilinear",
        "area",
        "bicubic",
        "lanczos",
    ]
    assert properties["2.upscale_method"]["type"] == "string"
    assert not any(key.startswith(("1.", "12.")) for key in properties)
    assert CARTOON.schema()["additionalProperties"] is False


def test_several_workflows_are_told_apart_by_number() -> None:
    both = table(load("edges"), load("cartoon"))
    assert "0/2.low_threshold" in both.parameters
    assert both.resolve({"0/2.low_threshold": 0.2, "1/7.low_threshold": 0.3}) == {
        Place(0, "2", "low_threshold"): 0.2,
        Place(1, "7", "low_threshold"): 0.3,
    }
    assert both.resolve({"Edges.high_threshold": 0.9}) == {Place(0, "2", "high_threshold"): 0.9}
    assert both.resolve({"7.low_threshold": 0.2}) == {Place(1, "7", "low_threshold"): 0.2}
    with pytest.raises(InvalidInput, match=r"could be any of 0/2.low_threshold, 1/7.low_threshold"):
        both.resolve({"Canny.low_threshold": 0.2})


def test_text_from_a_command_line_is_coerced_and_checked() -> None:
    assert EDGES.parse_text_value("Edges.low_threshold", "0.3") == 0.3
    assert CARTOON.parse_text_value("5.colors", "8") == 8
    assert CARTOON.parse_text_value("5.dither", "bayer-4") == "bayer-4"
    with pytest.raises(InvalidInput, match=r"2.low_threshold: expected a number \(FLOAT\), got 'low'"):
        EDGES.parse_text_value("2.low_threshold", "low")
    with pytest.raises(InvalidInput, match=r"must be one of 'none'.*got 'bayer-3'"):
        CARTOON.parse_text_value("5.dither", "bayer-3")
    with pytest.raises(InvalidInput, match="there is no parameter"):
        EDGES.parse_text_value("x.y", "1")


def test_ids_with_dots_and_colons_are_found() -> None:
    data = load("edges")
    data["12:3.a"] = data.pop("2")
    data["3"]["inputs"]["images"] = ["12:3.a", 0]
    assert table(data).resolve({"12:3.a.low_threshold": 0.1}) == {Place(0, "12:3.a", "low_threshold"): 0.1}


def test_a_literal_that_is_an_object_is_not_taken_for_a_node() -> None:
    class Configured:
        RETURN_TYPES = ("IMAGE",)
        FUNCTION = "run"

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
            return {"required": {"image": ("IMAGE",), "config": ("MY_CONFIG",)}}

        def run(self, image: Any, config: Any) -> tuple[Any]:
            return (image,)

    definitions = NodeRegistry.builtin().add({"Configured": Configured}).definitions
    data = {
        "1": {"class_type": "LoadTensor", "inputs": {}},
        "2": {"class_type": "Configured", "inputs": {"image": ["1", 0], "config": {"a": 1}}},
        "3": {"class_type": "SaveTensor", "inputs": {"images": ["2", 0]}},
    }
    parameters = ParameterTable([prepare(data, definitions)], definitions)
    assert parameters.resolve({"2.config": {"a": 2}}) == {Place(0, "2", "config"): {"a": 2}}
    assert parameters.resolve({"2": {"config": {"a": 3}}}) == {Place(0, "2", "config"): {"a": 3}}

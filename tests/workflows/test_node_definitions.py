from __future__ import annotations

import json
from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.definitions import BadDefinition, InputDefinition, NodeDefinition, accepts
from workflows.registry import NodeRegistry, definitions_from_object_info
from workflows.values import ValueRefused, check_value, parse_text


class AnyType(str):
    """What many packs use for "any type"."""

    def __ne__(self, other: object) -> bool:
        return False


class Greedy(dict[str, Any]):
    def __contains__(self, key: object) -> bool:
        return True


class Kinds(str, Enum):  # noqa: UP042 (as packs have it: str() of a member is not its value)
    IMAGE = "IMAGE"


class Everything:
    """A node class that uses all of the protocol."""

    RETURN_TYPES = (Kinds.IMAGE, ["a", "b"], AnyType("*"))
    RETURN_NAMES = ("picture", "choice")
    OUTPUT_IS_LIST = (False, True)
    FUNCTION = "go"
    CATEGORY = "test/things"
    DESCRIPTION = "Does all"
    OUTPUT_NODE = True
    INPUT_IS_LIST = True
    PACKAGES = ("json", 3)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "image": ("IMAGE",),
                "mode": (["x", "y", 3], {"default": "y"}),
                "steps": ("INT", {"default": 4, "min": 1, "max": 50, "step": 1, "tooltip": "how often"}),
            },
            "optional": Greedy(
                {"text": ("STRING", {"multiline": True}), "new": ("COMBO", {"options": ["p"]})}
            ),
            "hidden": {"me": "UNIQUE_ID", "all": ("PROMPT",)},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, mode: str) -> bool:  # noqa: N802
        return True

    @classmethod
    def IS_CHANGED(cls, **inputs: Any) -> float:  # noqa: N802
        return float("nan")

    def go(self, **inputs: Any) -> tuple[Any, ...]:
        return ()


def test_a_class_is_read_by_the_public_protocol() -> None:
    definition = NodeDefinition.from_class("Everything", Everything, "All Things")
    assert list(definition.inputs) == ["image", "mode", "steps", "text", "new"]
    assert definition.inputs["mode"].choices == ("x", "y", 3)
    assert not definition.inputs["mode"].checks_range
    assert definition.inputs["new"].choices == ("p",)
    steps = definition.inputs["steps"]
    assert (steps.minimum, steps.maximum, steps.step, steps.default) == (1, 50, 1, 4)
    assert steps.options == {"tooltip": "how often"}
    assert not definition.inputs["text"].required
    assert [(out.name, out.type, out.is_list) for out in definition.outputs] == [
        ("picture", "IMAGE", False),
        ("choice", "COMBO", True),
        ("*", "*", False),
    ]
    assert definition.hidden == {"me": "UNIQUE_ID", "all": "PROMPT"}
    assert definition.is_output
    assert definition.input_is_list
    assert definition.may_change
    assert definition.open_inputs
    assert definition.packages == ("json",)


def test_every_definition_survives_the_way_through_json() -> None:
    registry = NodeRegistry.builtin().add({"Everything": Everything}, {"Everything": "All Things"})
    info = json.loads(json.dumps(registry.object_info()))
    assert definitions_from_object_info(info) == dict(registry.definitions)
    assert info["Everything"]["display_name"] == "All Things"
    assert info["Canny"]["input"]["required"]["low_threshold"] == [
        "FLOAT",
        {"default": 0.4, "min": 0.01, "max": 0.99, "step": 0.01},
    ]
    assert info["ImageScale"]["input"]["required"]["crop"][0] == ["disabled", "center"]


def test_the_answer_of_a_real_comfyui_is_understood() -> None:
    info = {
        "KSampler": {
            "input": {
                "required": {
                    "model": ["MODEL", {"tooltip": "t"}],
                    "seed": [
                        "INT",
                        {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True},
                    ],
                    "sampler_name": [["euler", "lms"], {}],
                    "scheduler": ["COMBO", {"options": ["normal", "karras"], "multiselect": False}],
                }
            },
            "input_order": {"required": ["model", "seed", "sampler_name", "scheduler"]},
            "output": ["LATENT"],
            "output_is_list": [False],
            "output_name": ["LATENT"],
            "name": "KSampler",
            "display_name": "KSampler",
            "category": "sampling",
            "output_node": False,
        },
        "Broken": {"output": []},
        "Nonsense": 5,
    }
    definitions = definitions_from_object_info(info)
    assert "Broken" not in definitions
    assert "Nonsense" not in definitions
    assert "LoadTensor" in definitions
    sampler = definitions["KSampler"]
    assert sampler.inputs["scheduler"].choices == ("normal", "karras")
    assert sampler.inputs["seed"].maximum == 2**64 - 1
    assert sampler.outputs[0].type == "LATENT"


class Raises(Everything):
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        raise FileNotFoundError("no models folder")


class NoFunction(Everything):
    FUNCTION = "missing"


@pytest.mark.parametrize(("node_class", "message"), [(Raises, "no models folder"), (NoFunction, "'missing'")])
def test_a_class_that_cannot_be_read_harms_itself_alone(node_class: Any, message: str) -> None:
    with pytest.raises(BadDefinition, match=message):
        NodeDefinition.from_class("X", node_class)
    registry = NodeRegistry.builtin().add({"X": node_class})
    assert "X" not in registry.definitions
    assert "Canny" in registry.definitions
    assert message in registry.definitions.failures["X"]
    assert "X" not in registry.object_info()


def test_stream_nodes_of_a_pack_do_not_displace_ours() -> None:
    registry = NodeRegistry.builtin().add({"LoadTensor": Everything, "Canny": Everything})
    assert [output.type for output in registry.definitions["LoadTensor"].outputs] == ["IMAGE", "MASK"]
    assert registry.definitions["Canny"].category == "test/things"


@pytest.mark.parametrize(
    ("expected", "given_type", "fits"),
    [
        ("IMAGE", "IMAGE", True),
        ("IMAGE", "MASK", False),
        ("*", "MASK", True),
        ("IMAGE", "*", True),
        ("IMAGE,MASK", "MASK", True),
        ("STRING,INT", "STRING,BOOLEAN", True),
        ("INT", "FLOAT", False),
        ("COMFY_MATCHTYPE_V3", "LATENT", True),
    ],
)
def test_types_fit_as_in_comfyui(expected: str, given_type: str, fits: bool) -> None:
    assert accepts(expected, given_type) is fits


INT = InputDefinition("n", "INT", minimum=0, maximum=10)
FLOAT = InputDefinition("f", "FLOAT", minimum=0.5, maximum=2.0)
TEXT = InputDefinition("t", "STRING")
FLAG = InputDefinition("b", "BOOLEAN")
CHOICE = InputDefinition("c", "COMBO", choices=("sub/a.png", "b", 3))


@pytest.mark.parametrize(
    ("definition", "value", "result"),
    [
        (INT, 5, 5),
        (INT, 5.0, 5),
        (INT, "7", 7),
        (INT, "7.0", 7),
        (FLOAT, 1, 1.0),
        (FLOAT, "0.5", 0.5),
        (TEXT, "x", "x"),
        (TEXT, 5, "5"),
        (FLAG, True, True),
        (FLAG, 0, False),
        (FLAG, "True", True),
        (CHOICE, "sub\\a.png", "sub/a.png"),
        (CHOICE, 3, 3),
        (InputDefinition("x", "MY_TYPE"), {"any": 1}, {"any": 1}),
    ],
)
def test_values_are_coerced(definition: InputDefinition, value: Any, result: Any) -> None:
    checked = check_value(definition, value)
    assert checked == result
    assert type(checked) is type(result)


@pytest.mark.parametrize(
    ("definition", "value", "code", "message"),
    [
        (INT, 11, "above_maximum", "must be at most 10, got 11"),
        (INT, -1, "below_minimum", "must be at least 0, got -1"),
        (INT, 1.5, "wrong_type", "expected a whole number (INT), got 1.5"),
        (INT, True, "wrong_type", "got True"),
        (INT, "many", "wrong_type", "got 'many'"),
        (INT, "nan", "wrong_type", "got 'nan'"),
        (INT, None, "wrong_type", "got None"),
        (FLOAT, "x", "wrong_type", "expected a number (FLOAT), got 'x'"),
        (FLOAT, float("inf"), "wrong_type", "got inf"),
        (FLOAT, 10**400, "wrong_type", "expected a number"),
        (FLOAT, 0.1, "below_minimum", "must be at least 0.5, got 0.1"),
        (TEXT, ["a"], "wrong_type", "expected a text (STRING), got ['a']"),
        (FLAG, 2, "wrong_type", "expected true or false (BOOLEAN), got 2"),
        (CHOICE, "B", "not_a_choice", "must be one of 'sub/a.png', 'b', 3, got 'B' (did you mean b?)"),
        (CHOICE, True, "not_a_choice", "got True"),
        (InputDefinition("i", "IMAGE"), 5, "needs_link", "expects a link to an output of type IMAGE, got 5"),
    ],
)
def test_refusals_say_limit_and_value(
    definition: InputDefinition, value: Any, code: str, message: str
) -> None:
    with pytest.raises(ValueRefused) as caught:
        check_value(definition, value)
    assert caught.value.code == code
    assert message in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)


@given(st.sampled_from([INT, FLOAT, TEXT, FLAG, CHOICE]), json_values)
def test_a_value_is_refused_or_comes_out_right(definition: InputDefinition, value: Any) -> None:
    try:
        checked = check_value(definition, value)
    except ValueRefused:
        return
    kinds: dict[str, type | tuple[type, ...]] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
    assert isinstance(checked, kinds.get(definition.type, (str, int)))
    assert definition.choices is None or checked in definition.choices
    assert definition.minimum is None or checked >= definition.minimum
    assert check_value(definition, checked) == checked


def test_typed_text_becomes_a_value_of_the_input() -> None:
    assert check_value(INT, parse_text(INT, "7")) == 7
    assert check_value(FLOAT, parse_text(FLOAT, "1.5")) == 1.5
    assert parse_text(FLAG, "on") is True
    assert parse_text(FLAG, "No") is False
    assert parse_text(CHOICE, "3") == 3
    assert parse_text(TEXT, "true") == "true"
    with pytest.raises(ValueRefused, match="expected true or false, got 'maybe'"):
        parse_text(FLAG, "maybe")

from __future__ import annotations

from typing import Any

import pytest

from stream.errors import InvalidWorkflow
from workflows.check import examine, prepare
from workflows.description import describe
from workflows.registry import NodeRegistry, definitions_from_object_info

DEFINITIONS = NodeRegistry.builtin().definitions


def edges(**changes: Any) -> dict[str, Any]:
    """A working graph, with inputs of the Canny node (and whole nodes) changed."""
    canny = {"image": ["1", 0], "low_threshold": 0.4, "high_threshold": 0.8}
    nodes = {name: value for name, value in changes.items() if isinstance(value, dict)}
    canny |= {name: value for name, value in changes.items() if not isinstance(value, dict)}
    return {
        "1": {"class_type": "LoadTensor", "inputs": {}, "_meta": {"title": "In"}},
        "2": {
            "class_type": "Canny",
            "inputs": {name: value for name, value in canny.items() if value is not ...},
            "_meta": {"title": "Edges"},
        },
        "3": {"class_type": "SaveTensor", "inputs": {"images": ["2", 0]}},
        **{name.removeprefix("n"): node for name, node in nodes.items()},
    }


def found(data: Any) -> list[str]:
    _, problems = examine(data, DEFINITIONS)
    return [str(problem) for problem in problems]


def test_a_good_graph_has_no_problems() -> None:
    assert found(edges()) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            edges(low_threshold=1.5),
            'node 2 "Edges" (Canny), input low_threshold: must be at most 0.99, got 1.5',
        ),
        (edges(low_threshold="much"), "input low_threshold: expected a number (FLOAT), got 'much'"),
        (edges(low_threshold=...), "the required input low_threshold (FLOAT) is missing"),
        (edges(image=...), "the required input image (IMAGE) is missing"),
        (edges(image=5), "expects a link to an output of type IMAGE, got 5"),
        (edges(image=["9", 0]), "input image: is linked to node 9, which does not exist"),
        (
            edges(image=["1", 5]),
            'is linked to output 5 of node 1 "In" (LoadTensor), which has 2 outputs (counted from 0)',
        ),
        (edges(image=["3", 0]), "of node 3 (SaveTensor), which has no outputs"),
        (edges(image=["1", 1]), 'expects IMAGE, but output 1 of node 1 "In" (LoadTensor) is MASK'),
        (
            edges(n4={"class_type": "Cany", "inputs": {}}),
            "node 4 (Cany): there is no node class Cany (did you mean Canny?)",
        ),
    ],
)  # fmt: skip
def test_each_problem_names_its_place_and_what_was_expected(data: Any, message: str) -> None:
    problems = found(data)
    assert any(message in problem for problem in problems), problems


def test_all_problems_come_at_once_and_as_data() -> None:
    data = edges(
        low_threshold=7, high_threshold=..., n4={"class_type": "Nope", "inputs": {}}, n5={"inputs": {}}
    )
    with pytest.raises(InvalidWorkflow) as caught:
        prepare(data, DEFINITIONS)
    assert {
        (detail["code"], detail.get("node_id"), detail.get("input")) for detail in caught.value.details
    } == {
        ("above_maximum", "2", "low_threshold"),
        ("missing_required_input", "2", "high_threshold"),
        ("unknown_class", "4", None),
        ("bad_node", "5", None),
    }
    assert "the workflow has 4 problems" in caught.value.message
    assert caught.value.details[1]["title"] == "Edges"


def test_stream_problems_and_node_problems_come_together() -> None:
    data = {"1": {"class_type": "Canny", "inputs": {}}}
    text = "\n".join(found(data))
    assert "missing input" in text
    assert "the required input low_threshold" in text


def test_a_link_to_a_node_that_could_not_be_read_is_no_second_problem() -> None:
    problems = found(edges(n1={"inputs": {}}))
    assert any("has no class_type" in problem for problem in problems)
    assert not any("does not exist" in problem for problem in problems)


def test_a_cycle_names_its_nodes_in_order() -> None:
    invert = {"class_type": "ImageInvert", "inputs": {"image": ["5", 0]}}
    blend = {
        "class_type": "ImageBlend",
        "inputs": {"image1": ["4", 0], "image2": ["1", 0], "blend_factor": 0.5, "blend_mode": "normal"},
    }
    (problem,) = found(edges(n4=invert, n5=blend, image=["5", 0]))
    assert "nodes feed each other in a circle" in problem
    assert "node 5 (ImageBlend) -> node 4 (ImageInvert) -> node 5" in problem or (
        "node 4 (ImageInvert) -> node 5 (ImageBlend) -> node 4" in problem
    )


def test_what_no_output_needs_is_not_held_against_the_graph() -> None:
    loose = {"class_type": "ImageInvert", "inputs": {"image": ["77", 0]}}
    assert found(edges(n4=loose)) == []


def test_an_output_that_never_changes_is_a_problem() -> None:
    data = {
        "1": {"class_type": "PrimaryInputLoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "Constant", "inputs": {}},
        "3": {"class_type": "SaveTensor", "inputs": {"images": ["2", 0]}},
    }

    class Constant:
        RETURN_TYPES = ("IMAGE",)
        FUNCTION = "run"

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
            return {"required": {}}

        def run(self) -> tuple[int]:
            return (1,)

    class Changing(Constant):
        @classmethod
        def IS_CHANGED(cls) -> float:  # noqa: N802
            return float("nan")

    definitions = NodeRegistry.builtin().add({"Constant": Constant, "Changing": Changing}).definitions
    _, problems = examine(data | {"2": {"class_type": "Changing", "inputs": {}}}, definitions)
    assert not problems
    _, problems = examine(data, definitions)
    assert [problem.code for problem in problems] == ["constant_output"]
    assert "nothing that goes out changes from frame to frame: node 3" in str(problems[0])


def test_values_are_made_what_the_nodes_want() -> None:
    graph = prepare(edges(low_threshold="0.25", high_threshold=0.5), DEFINITIONS)
    assert graph.nodes["2"].inputs["low_threshold"] == 0.25


def test_null_for_an_optional_input_counts_as_not_given() -> None:
    text = {"class_type": "SaveTextTensor", "inputs": {"data": "x", "remove_linebreaks": None}}
    graph = prepare(edges(n4=text), DEFINITIONS)
    assert "remove_linebreaks" not in graph.nodes["4"].inputs


def test_a_description_tells_roles_media_and_parameters() -> None:
    registry = NodeRegistry.builtin()
    data = edges(
        n4={"class_type": "ImageInvert", "inputs": {"image": ["2", 0]}},
        n3={"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}},
        n5={"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}},
        n6={"class_type": "SaveTextTensor", "inputs": {"data": "hello", "typo": 1}},
    )
    graph = prepare(data, registry.definitions)
    description = describe(graph, registry.definitions)
    assert description.roles == {
        "1": "input",
        "2": "frame",
        "3": "output",
        "4": "unused",
        "5": "unused",
        "6": "output",
    }
    assert description.ignored == [("6", "typo")]
    assert description.modalities.as_dict()["video"] == {"input": True, "output": True}
    properties = description.as_dict()["parameters"]["properties"]
    assert set(properties) == {"2.low_threshold", "2.high_threshold", "6.data"}


def test_the_body_of_the_error_is_json_with_the_problems() -> None:
    with pytest.raises(InvalidWorkflow) as caught:
        prepare(edges(low_threshold=5), DEFINITIONS)
    assert caught.value.as_dict() == {
        "code": "invalid_workflow",
        "message": 'node 2 "Edges" (Canny), input low_threshold: must be at most 0.99, got 5',
        "field": "workflow",
        "details": [
            {
                "code": "above_maximum",
                "node_id": "2",
                "class_type": "Canny",
                "title": "Edges",
                "input": "low_threshold",
                "message": "must be at most 0.99, got 5",
            }
        ],
    }


NODE = {"output": ["IMAGE"], "output_name": ["IMAGE"], "output_is_list": [False]}
OF_COMFYUI = definitions_from_object_info(
    {
        "Load": NODE
        | {
            "input": {
                "required": {
                    "ckpt_name": [["SDXL/base.safetensors", "other.ckpt"], {}],
                    "mode": [["fast", "exact"], {}],
                    "seed": ["INT", {"default": 0, "min": 0, "max": 100}],
                }
            }
        },
        "Reference": NODE | {"input": {"required": {"image": [["a.png"], {"image_upload": True}]}}},
        "Describe": {"input": {"required": {"image": ["IMAGE"]}}, "output": ["STRING"], "output_name": ["s"]},
    }
)


def generative(ckpt: str = "other.ckpt", mode: str = "fast", rule: str = "increment") -> dict[str, Any]:
    return {
        "1": {
            "class_type": "Load",
            "inputs": {"ckpt_name": ckpt, "mode": mode, "seed": 5},
            "_meta": {"title": "Load", "control_after_generate": {"seed": rule}},
        },
        "2": {"class_type": "SaveTensor", "inputs": {"images": ["1", 0]}},
    }


def coded(data: Any, **choices: str) -> list[tuple[str, str | None]]:
    _, problems = examine(data, OF_COMFYUI, **choices)
    return [(problem.code, problem.input) for problem in problems]


def test_a_graph_without_input_needs_something_that_changes() -> None:
    assert coded(generative()) == []
    assert coded(generative(rule="fixed")) == [("missing_input", None)]
    graph = prepare(generative(), OF_COMFYUI)
    described = describe(graph, OF_COMFYUI)
    assert described.roles == {"1": "frame", "2": "output"}
    assert described.parameters.find("1.seed").cost == "frame"
    assert not described.modalities.video_input


@pytest.mark.parametrize("written", ["SDXL/base.safetensors", "SDXL\\base.safetensors"])
def test_folders_are_separated_as_on_either_system(written: str) -> None:
    assert coded(generative(written)) == []
    assert prepare(generative(written), OF_COMFYUI).nodes["1"].inputs["ckpt_name"] == "SDXL/base.safetensors"


@pytest.mark.parametrize(
    ("ckpt", "message"),
    [
        ("bas.safetensors", "missing in the folder models/checkpoints"),
        (
            "base.safetensors",
            "missing in the folder models/checkpoints (did you mean SDXL/base.safetensors?)",
        ),
        ("othr.ckpt", "(did you mean other.ckpt?)"),
    ],
)
def test_a_model_that_is_not_there_is_a_missing_file(ckpt: str, message: str) -> None:
    (problem,) = examine(generative(ckpt), OF_COMFYUI)[1]
    assert problem.code == "missing_file"
    assert message in problem.message
    assert coded(generative(mode="slow")) == [("not_a_choice", "mode")]


def test_pictures_in_other_folders_than_the_one_listed_are_not_held_against_a_graph() -> None:
    def beside(picture: str) -> dict[str, Any]:
        return generative() | {
            "3": {"class_type": "Reference", "inputs": {"image": picture}},
            "4": {"class_type": "SaveTextTensor", "inputs": {"data": ["5", 0]}},
            "5": {"class_type": "Describe", "inputs": {"image": ["3", 0]}},
        }

    assert coded(beside("a.png")) == coded(beside("sub/b.png")) == coded(beside("b.png [output]")) == []
    assert coded(beside("b.png")) == [("missing_file", "image")]


def test_pictures_to_text_and_masks_of_the_stream_pass() -> None:
    data = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
        "2": {"class_type": "MaskToImage", "inputs": {"mask": ["1", 1]}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }
    assert found(data) == []
    text = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
        "2": {"class_type": "Describe", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveTextTensor", "inputs": {"data": ["2", 0]}},
    }
    assert coded(text) == []


def test_a_class_that_cannot_be_read_is_named_with_the_reason() -> None:
    definitions = definitions_from_object_info({"Odd": {"input": 5}})
    problems = examine(edges(n4={"class_type": "Odd", "inputs": {}}), definitions)[1]
    assert ("broken_class", "4") in [(problem.code, problem.node_id) for problem in problems]

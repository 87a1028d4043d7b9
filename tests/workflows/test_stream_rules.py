"""ComfyStream's conversion, by its probe graphs (LoadTensor and SaveTensor stand for the stream)."""

from __future__ import annotations

from typing import Any

import pytest

from workflows.graph import Graph, parse_graph
from workflows.stream_rules import convert, modalities, video_output

LOAD = {"inputs": {}, "class_type": "LoadTensor", "_meta": {"title": "LoadTensor"}}


def node(class_type: str, title: str | None = None, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": title or class_type}}


def graph(**nodes: dict[str, Any]) -> Graph:
    return parse_graph({name.removeprefix("n"): value for name, value in nodes.items()})


def converted(source: Graph, input_node: str | None = None) -> dict[str, Any]:
    result, problems = convert(source, input_node)
    assert not problems, [str(problem) for problem in problems]
    return result.to_api()


def refused(source: Graph, input_node: str | None = None) -> list[str]:
    _, problems = convert(source, input_node)
    return [str(problem) for problem in problems]


OUT = node("SaveTensor", images=["1", 0])


def test_load_image_to_preview_image_becomes_the_stream() -> None:
    assert converted(
        graph(n1=node("LoadImage", "Load Image", image="a.png"), n2=node("PreviewImage", images=["1", 0]))
    ) == {
        "1": LOAD,
        "2": {"inputs": {"images": ["1", 0]}, "class_type": "SaveTensor", "_meta": {"title": "SaveTensor"}},
    }


def test_save_image_keeps_its_inputs() -> None:
    result = converted(graph(n1=LOAD, n2=node("SaveImage", images=["1", 0], filename_prefix="x")))
    assert result["2"]["class_type"] == "SaveTensor"
    assert result["2"]["inputs"] == {"images": ["1", 0], "filename_prefix": "x"}


def test_a_primary_input_leaves_any_number_of_reference_pictures() -> None:
    source = graph(
        n1=node("PrimaryInputLoadImage", image="a.png"),
        **{f"n{number}": node("LoadImage", image="b.png") for number in range(2, 7)},
        n9=OUT,
    )
    result = converted(source)
    assert result["1"] == LOAD
    assert [result[str(number)]["class_type"] for number in range(2, 7)] == ["LoadImage"] * 5


def test_node_ids_and_links_survive_even_to_the_mask() -> None:
    result = converted(graph(n1=node("LoadImage", image="a"), n5=node("X", mask=["1", 1]), n9=OUT))
    assert result["5"]["inputs"]["mask"] == ["1", 1]


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        (["LoadAudioTensor"], ["SaveAudioTensor"], {"audio_input", "audio_output"}),
        (["LoadAudioTensor"], ["SaveTextTensor"], {"audio_input", "text_output"}),
        (
            ["LoadImage", "LoadAudioTensor"],
            ["PreviewImage", "SaveAudioTensor"],
            {"video_input", "video_output", "audio_input", "audio_output"},
        ),
        (["LoadTensor"], ["SaveTensor"], {"video_input", "video_output"}),
    ],
)
def test_modalities_follow_from_the_classes(
    inputs: list[str], outputs: list[str], expected: set[str]
) -> None:
    source = parse_graph({str(index): node(name) for index, name in enumerate([*inputs, *outputs])})
    result, problems = convert(source)
    assert not problems
    found = modalities([result])
    assert {name for name in found.__dataclass_fields__ if getattr(found, name)} == expected
    assert found.as_dict()["text"] == {"input": False, "output": "text_output" in expected}


@pytest.mark.parametrize(
    ("classes", "text"),
    [
        (["PrimaryInputLoadImage"] * 2 + ["SaveTensor"], "too many primary inputs in prompt: node 0"),
        (["LoadImage"] * 3 + ["SaveTensor"], "too many inputs in prompt: node 0"),
        (["LoadTensor", "LoadTensor", "LoadAudioTensor", "SaveTensor"], "too many inputs in prompt"),
        (
            ["LoadTensor", "SaveTensor", "PreviewImage", "SaveImage", "SaveTextTensor"],
            "too many outputs in prompt",
        ),
        (["Whatever", "SaveTensor"], "missing input"),
        (["LoadTensor", "Whatever"], "missing output"),
    ],
)
def test_the_five_refusals_keep_their_texts(classes: list[str], text: str) -> None:
    messages = refused(parse_graph({str(index): node(name) for index, name in enumerate(classes)}))
    assert len(messages) == 1
    assert messages[0].startswith(text)


AMBIGUOUS = {
    "two LoadImage": (graph(n3=node("LoadImage", "A"), n4=node("LoadImage", "B"), n9=OUT), {"3", "4"}),
    "LoadTensor and LoadImage": (graph(n3=LOAD, n4=node("LoadImage", "B"), n9=OUT), {"3", "4"}),
    "primary and LoadTensor": (
        graph(n3=node("PrimaryInputLoadImage", "Primary Input Load Image"), n4=LOAD, n9=OUT),
        {"3", "4"},
    ),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_ambiguous_graphs_are_refused_with_the_node_ids(name: str) -> None:
    source, ids = AMBIGUOUS[name]
    (problem,) = convert(source)[1]
    assert problem.code == "ambiguous_input"
    assert all(f"node {node_id} " in problem.message for node_id in ids)


@pytest.mark.parametrize("name", AMBIGUOUS)
@pytest.mark.parametrize("chosen", ["3", "4"])
def test_an_explicit_choice_resolves_the_ambiguity(name: str, chosen: str) -> None:
    result = converted(AMBIGUOUS[name][0], chosen)
    assert result[chosen]["class_type"] == "LoadTensor"
    (other,) = {"3", "4"} - {chosen}
    was = AMBIGUOUS[name][0].nodes[other].class_type
    assert result[other]["class_type"] == ("LoadImage" if was == "LoadImage" else "LoadTensor")


def test_a_title_resolves_the_ambiguity() -> None:
    result = converted(graph(n3=node("LoadImage", "Style"), n4=node("LoadImage", "Input picture"), n9=OUT))
    assert (result["3"]["class_type"], result["4"]["class_type"]) == ("LoadImage", "LoadTensor")
    both = graph(n3=node("LoadImage", "input 1"), n4=node("LoadImage", "input 2"), n9=OUT)
    assert refused(both)[0].startswith("it is open which LoadImage is the stream")


def test_a_title_makes_room_for_more_reference_pictures() -> None:
    source = graph(
        n3=node("LoadImage", "Style"), n4=node("LoadImage", "INPUT"), n5=node("LoadImage", "Face"), n9=OUT
    )
    result = converted(source)
    assert [result[name]["class_type"] for name in "345"] == ["LoadImage", "LoadTensor", "LoadImage"]


def test_a_choice_that_is_no_input_is_refused() -> None:
    assert "node 9 was chosen" in refused(graph(n1=node("LoadImage"), n9=OUT), "9")[0]


def test_messages_name_nodes_as_the_file_does() -> None:
    result, _ = convert(graph(n1=node("LoadImage", "My picture", image="a"), n9=OUT))
    assert result.nodes["1"].label == 'node 1 "My picture" (LoadImage)'


def output_of(*outputs: tuple[str, str]) -> tuple[str | None, list[str]]:
    nodes = {str(index): node(name, title, images=["in", 0]) for index, (name, title) in enumerate(outputs)}
    result, problems = convert(parse_graph({"in": LOAD, **nodes}))
    assert not problems
    found, ambiguities = video_output(result)
    return (None if found is None else found.id), [problem.code for problem in ambiguities]


def test_of_several_pictures_the_one_meant_for_others_goes_out() -> None:
    assert output_of(("PreviewImage", "Preview"), ("SaveImage", "Save")) == ("1", [])
    assert output_of(("SaveImage", "Save"), ("SaveTensor", "SaveTensor")) == ("1", [])
    assert output_of(("PreviewImage", "My output"), ("SaveImage", "Save")) == ("0", [])
    assert output_of(("PreviewImage", "A"), ("PreviewImage", "B")) == (None, ["ambiguous_output"])
    assert output_of(("SaveTextTensor", "T")) == (None, [])

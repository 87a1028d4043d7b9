from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workflows.editor_files import OBJECT_INFO, Sheet
from workflows.check import examine
from workflows.graph import LIMITS, Limits, parse_graph
from workflows.reading import read, to_api
from workflows.registry import definitions_from_object_info

DEFINITIONS = definitions_from_object_info(OBJECT_INFO)
UID = "11111111-2222-3333-4444-555555555555"
OTHER = "99999999-2222-3333-4444-555555555555"


def api(data: Any) -> dict[str, Any]:
    """The graph of a good file: class, inputs and rules by id."""
    graph, problems = read(data, DEFINITIONS)
    assert not problems
    return {node_id: entry["inputs"] for node_id, entry in graph.to_api().items()}


def problems_of(data: Any) -> list[str]:
    return [problem.code for problem in read(data, DEFINITIONS)[1]]


def chain(**of_noise: Any) -> Sheet:
    """Loader, noise, decoder and saver in a row; what is given changes the node with the seed."""
    return (
        Sheet()
        .node(1, "Loader", ["a.safetensors"], outputs=["MODEL", "VAE"])
        .node(
            2,
            "Noise",
            **{
                "values": [7, "randomize", 25, "ddim"],
                "inputs": ["model:MODEL", "seed:INT:w", "steps:INT:w", "sampler:COMBO:w"],
                "outputs": ["LATENT"],
            }
            | of_noise,
        )
        .node(3, "Decode", inputs=["samples:LATENT", "vae:VAE"], outputs=["IMAGE"])
        .node(4, "SaveImage", ["mine"], inputs=["images:IMAGE", "filename_prefix:STRING:w"])
        .wire(1, 0, 2, "model")
        .wire(2, 0, 3, "samples")
        .wire(1, 1, 3, "vae")
        .wire(3, 0, 4, "images")
    )


CHAIN = {
    "1": {"ckpt_name": "a.safetensors"},
    "2": {"model": ["1", 0], "seed": 7, "steps": 25, "sampler": "ddim"},
    "3": {"samples": ["2", 0], "vae": ["1", 1]},
    "4": {"images": ["3", 0], "filename_prefix": "mine"},
}


@pytest.mark.parametrize("as_objects", [False, True])
def test_wires_are_lists_or_objects(as_objects: bool) -> None:
    assert api(chain().file(as_objects=as_objects)) == CHAIN


def test_what_becomes_of_a_seed_is_kept_and_titles_too() -> None:
    graph, _ = read(chain(title="My noise").file(), DEFINITIONS)
    assert graph.nodes["2"].after_generate == {"seed": "randomize"}
    assert graph.nodes["2"].title == "My noise"
    assert graph.nodes["3"].title == "Decode"
    assert parse_graph(graph.to_api()) == graph


@pytest.mark.parametrize(
    ("of_noise", "seed", "steps", "sampler"),
    [
        ({"values": [9, "fixed", 30, "euler"], "inputs": ["model:MODEL"]}, 9, 30, "euler"),
        # Position counts; the names may be of another version, the values beside them old.
        (
            {
                "values": [30, 9, "fixed", "ddim"],
                "widgets_values_named": {"steps": 0, "seed": 1, "control_after_generate": 2, "sampler": 3},
            },
            9,
            30,
            "ddim",
        ),
        (
            {
                "values": ["x", 9, "fixed", 30, "ddim"],
                "widgets_values_named": {
                    "new": 0,
                    "seed": 0,
                    "control_after_generate": 0,
                    "steps": 0,
                    "sampler": 0,
                },
            },
            9,
            30,
            "ddim",
        ),
        # The class of this file had its widgets in another order and one more.
        (
            {
                "values": ["x", 9, "increment", 30, "ddim"],
                "inputs": ["model:MODEL", "extra:STRING:w", "seed:INT:w", "steps:INT:w", "sampler:COMBO:w"],
            },
            9,
            30,
            "ddim",
        ),
        # The file's own order counts before the class's, though both fit.
        (
            {
                "values": ["ddim", 30, 9, "fixed"],
                "inputs": ["model:MODEL", "sampler:COMBO:w", "steps:INT:w", "seed:INT:w"],
            },
            9,
            30,
            "ddim",
        ),
        # What reads like the rule of a seed may be a value.
        (
            {
                "values": ["ddim", "fixed", 9, "randomize", 30],
                "inputs": ["model:MODEL", "sampler:COMBO:w", "extra:STRING:w", "seed:INT:w", "steps:INT:w"],
            },
            9,
            30,
            "ddim",
        ),
        # Only what an older editor turned into an input is one.
        ({"values": [9, "fixed", 30, "ddim"], "inputs": ["model:MODEL", "steps:INT:w"]}, 9, 30, "ddim"),
        ({"values": [9, True, 30, "ddim"]}, 9, 30, "ddim"),
        ({"values": [9, 30, "ddim"]}, 9, 30, "ddim"),
        ({"values": {"seed": 9, "steps": 30, "sampler": "ddim", "videopreview": {}}}, 9, 30, "ddim"),
        ({"values": [9, "fixed"]}, 9, 20, "euler"),
        ({"values": []}, 0, 20, "euler"),
    ],
)
def test_values_find_their_inputs(of_noise: dict[str, Any], seed: int, steps: int, sampler: str) -> None:
    noise = api(chain(**of_noise).file())["2"]
    assert (noise["seed"], noise["steps"], noise["sampler"]) == (seed, steps, sampler)
    assert set(noise) == {"model", "seed", "steps", "sampler"}


def test_the_upload_button_is_no_value() -> None:
    sheet = (
        Sheet()
        .node(1, "LoadImage", ["x.png", "image"], outputs=["IMAGE", "MASK"])
        .node(2, "SaveImage", ["p"], inputs=["images:IMAGE"])
        .wire(1, 0, 2, "images")
    )
    assert api(sheet.file())["1"] == {"image": "x.png"}


def test_reroutes_notes_and_groups_leave_no_trace() -> None:
    sheet = (
        chain()
        .node(10, "Reroute", inputs=[":*"], outputs=["*"])
        .node(11, "Reroute", inputs=[":*"], outputs=["*"])
    )
    sheet.node(12, "MarkdownNote", ["# text"]).node(13, "Note", ["text"])
    sheet.nodes[2]["inputs"][1]["link"] = None
    sheet.wire(1, 1, 10, "").wire(10, 0, 11, "").wire(11, 0, 3, "vae")
    data = sheet.file() | {"groups": [{"title": "g"}], "extra": {"reroutes": [{"id": 1, "pos": [0, 0]}]}}
    assert api(data) == CHAIN


def test_a_primitive_gives_value_and_rule_to_all_that_it_feeds() -> None:
    sheet = chain(values=[7, "randomize", 25, "ddim"]).node(
        8, "PrimitiveNode", [42, "increment"], outputs=["INT"]
    )
    sheet.node(9, "Blur", [5], inputs=["image:IMAGE", "radius:INT:w"], outputs=["IMAGE"])
    sheet.node(14, "SaveImage", ["p"], inputs=["images:IMAGE"])
    sheet.wire(8, 0, 2, "seed").wire(8, 0, 9, "radius").wire(3, 0, 9, "image").wire(9, 0, 14, "images")
    graph, _ = read(sheet.file(), DEFINITIONS)
    assert graph.nodes["2"].inputs["seed"] == 42
    assert graph.nodes["9"].inputs["radius"] == 42
    assert graph.nodes["2"].after_generate == {"seed": "increment"}
    assert graph.nodes["9"].after_generate == {"radius": "increment"}
    assert (graph.nodes["2"].shared, graph.nodes["9"].shared) == ({"seed": "8"}, {"radius": "8"})
    assert "8" not in graph.nodes


def test_a_seed_that_another_node_feeds_has_no_rule() -> None:
    sheet = chain().node(8, "Noise", [1, "fixed", 2, "ddim"], outputs=["LATENT"])
    sheet.wire(8, 0, 2, "seed")
    graph, _ = read(sheet.file(), DEFINITIONS)
    assert graph.nodes["2"].after_generate == {}


def test_what_is_muted_is_gone_with_its_wires() -> None:
    sheet = chain()
    sheet.nodes[2]["mode"] = 2
    assert api(sheet.file()) == {"1": CHAIN["1"], "2": CHAIN["2"], "4": {"filename_prefix": "mine"}}


def bypassed(kind: str, **node: Any) -> dict[str, Any]:
    sheet = (
        Sheet()
        .node(1, "LoadImage", ["x.png"], outputs=["IMAGE", "MASK"])
        .node(2, kind, mode=4, **node)
        .node(3, "SaveImage", ["p"], inputs=["images:IMAGE"])
    )
    for name in ("image", "a"):
        if any(slot["name"] == name for slot in sheet.nodes[1]["inputs"]):
            sheet.wire(1, 0, 2, name)
    return sheet.wire(2, len(sheet.nodes[1]["outputs"]) - 1, 3, "images").file()


@pytest.mark.parametrize(
    ("kind", "node"),
    [
        ("Blur", {"values": [3], "inputs": ["image:IMAGE"], "outputs": ["IMAGE"]}),
        ("Mix", {"values": [1], "inputs": ["a:IMAGE", "b:IMAGE"], "outputs": ["IMAGE"]}),
        # The picture goes out at the second output; the input that fits is the first.
        ("Split", {"inputs": ["image:IMAGE"], "outputs": ["MASK", "IMAGE"]}),
    ],
)
def test_what_goes_into_a_bypassed_node_comes_out_again(kind: str, node: dict[str, Any]) -> None:
    data = bypassed(kind, **node)
    assert api(data)["3"]["images"] == ["1", 0]
    assert "2" not in api(data)


def test_a_bypassed_node_without_a_fitting_input_gives_nothing() -> None:
    sheet = chain()
    sheet.nodes[2]["mode"] = 4
    assert "images" not in api(sheet.file())["4"]


def test_a_dynamic_choice_brings_its_inputs() -> None:
    def picked(values: list[Any], *wires: str) -> Any:
        sheet = Sheet().node(1, "LoadImage", ["x.png"], outputs=["IMAGE", "MASK"])
        names = ["how:COMBO:w", "image:IMAGE", *(f"{name}:IMAGE" for name in wires)]
        sheet.node(2, "Pick", values, inputs=names, outputs=["IMAGE"])
        sheet.node(3, "SaveImage", ["p"], inputs=["images:IMAGE"])
        for name in ("image", *wires):
            sheet.wire(1, 0, 2, name)
        return sheet.wire(2, 0, 3, "images").file()

    assert api(picked(["scale", 1.5, 9, "fixed"]))["2"] == {
        "how": "scale", "how.factor": 1.5, "seed": 9, "image": ["1", 0],
    }  # fmt: skip
    data = picked(["size", 640, 480, 9, "fixed"], "how.like")
    assert api(data)["2"] == {
        "how": "size", "how.width": 640, "how.height": 480, "seed": 9,
        "how.like": ["1", 0], "image": ["1", 0],
    }  # fmt: skip
    _, problems = examine(picked(["size", 640, 480, 9, "fixed"]), DEFINITIONS)
    assert [(p.code, p.input) for p in problems] == [("missing_required_input", "how.like")]
    _, problems = examine(picked(["sise", 9, "fixed"]), DEFINITIONS)
    assert [(p.code, p.input) for p in problems] == [("not_a_choice", "how")]


def test_a_growing_row_has_as_many_inputs_as_are_wired() -> None:
    def batch(*names: str) -> dict[str, Any]:
        sheet = Sheet().node(1, "LoadImage", ["x.png"], outputs=["IMAGE", "MASK"])
        sheet.node(2, "Batch", inputs=[f"{name}:IMAGE" for name in names], outputs=["IMAGE"])
        sheet.node(3, "SaveImage", ["p"], inputs=["images:IMAGE"]).wire(2, 0, 3, "images")
        for name in names:
            sheet.wire(1, 0, 2, name)
        return sheet.file()

    full = batch("images.image0", "images.image1", "images.image2")
    assert set(api(full)["2"]) == {"images.image0", "images.image1", "images.image2"}
    assert not examine(full, DEFINITIONS)[1]
    (problem,) = examine(batch("images.image0"), DEFINITIONS)[1]
    assert (problem.code, problem.input) == ("missing_required_input", "images.image1")


def noise_subgraph() -> dict[str, Any]:
    inside = Sheet().node(
        5, "Noise", [1, "increment", 2, "euler"],
        inputs=["model:MODEL", "seed:INT:w", "steps:INT:w", "sampler:COMBO:w"], outputs=["LATENT"],
    )  # fmt: skip
    inside.wire(-10, 0, 5, "model").wire(-10, 1, 5, "seed").wire(5, 0, -20, 0)
    return inside.subgraph(UID, ["model:MODEL", "seed:INT"], ["LATENT:LATENT"])


def with_instance(**more: Any) -> Sheet:
    sheet = chain()
    sheet.nodes[1] = Sheet().node(
        2, UID, inputs=["model:MODEL", "seed:INT:w"], outputs=["LATENT"], **more
    ).nodes[0]  # fmt: skip
    sheet.nodes[1]["inputs"][0]["link"] = 1
    return sheet


def test_a_subgraph_becomes_its_nodes_under_the_ids_of_the_way_to_them() -> None:
    graph, problems = read(with_instance(values=[77]).file(noise_subgraph()), DEFINITIONS)
    assert not problems
    assert set(graph.nodes) == {"1", "2:5", "3", "4"}
    data = graph.to_api()
    assert data["2:5"]["inputs"] == {"model": ["1", 0], "seed": 77, "steps": 2, "sampler": "euler"}
    assert data["3"]["inputs"]["samples"] == ["2:5", 0]
    assert graph.nodes["2:5"].after_generate == {"seed": "increment"}


def test_two_instances_have_values_of_their_own() -> None:
    sheet = with_instance(values=[77])
    sheet.node(6, UID, [88], inputs=["model:MODEL", "seed:INT:w"], outputs=["LATENT"]).wire(1, 0, 6, "model")
    data = api(sheet.file(noise_subgraph()))
    assert (data["2:5"]["seed"], data["6:5"]["seed"]) == (77, 88)


@pytest.mark.parametrize(
    ("more", "seed", "steps"),
    [
        ({}, 1, 2),
        ({"values": []}, 1, 2),
        ({"values": [5], "properties": {"proxyWidgets": [["-1", "seed"]]}}, 5, 2),
        ({"values": [5], "properties": {"proxyWidgets": [["5", "seed"]]}}, 5, 2),
        ({"values": [5, 50], "properties": {"proxyWidgets": [["5", "seed"], ["5", "steps"]]}}, 5, 50),
        ({"values": [5], "widgets_values_named": {"seed": 4}}, 5, 2),
        ({"values": [5, 50], "properties": {"proxyWidgets": [["9", "seed"], ["5", "no"], 3, None]}}, 5, 2),
    ],
)
def test_promoted_widgets_have_the_values_of_the_instance(
    more: dict[str, Any], seed: int, steps: int
) -> None:
    noise = api(with_instance(**more).file(noise_subgraph()))["2:5"]
    assert (noise["seed"], noise["steps"]) == (seed, steps)


def test_a_promoted_seed_that_feeds_two_nodes_is_one_value_with_one_rule() -> None:
    inside = Sheet()
    for number, rule in ((5, "randomize"), (6, "fixed")):
        inside.node(
            number, "Noise", [1, rule, 2, "euler"],
            inputs=["model:MODEL", "seed:INT:w"], outputs=["LATENT"],
        )  # fmt: skip
        inside.wire(-10, 0, number, "model").wire(-10, 1, number, "seed")
    inside.wire(5, 0, -20, 0)
    definition = inside.subgraph(UID, ["model:MODEL", "seed:INT"], ["LATENT:LATENT"])
    graph, problems = read(with_instance(values=[77]).file(definition), DEFINITIONS)
    assert not problems
    for number in ("2:5", "2:6"):
        assert graph.nodes[number].inputs["seed"] == 77
        assert graph.nodes[number].after_generate == {"seed": "randomize"}, "of the widget that is shown"
        assert graph.nodes[number].shared == {"seed": "2.seed"}
    assert read(graph.to_api(), DEFINITIONS) == (graph, []), "API format says it too"
    assert not any(node.shared for node in read(with_instance().file(noise_subgraph()), DEFINITIONS)[0])


def test_a_subgraph_in_a_subgraph() -> None:
    outer = Sheet().node(7, UID, [31], inputs=["model:MODEL", "seed:INT:w"], outputs=["LATENT"])
    outer.wire(-10, 0, 7, "model").wire(-10, 1, 7, "seed").wire(7, 0, -20, 0)
    definition = outer.subgraph(OTHER, ["model:MODEL", "seed:INT"], ["LATENT:LATENT"])
    for values, seed in (([77], 77), ([], 31)):
        sheet = with_instance(values=values)
        sheet.nodes[1]["type"] = OTHER
        data = api(sheet.file(definition, noise_subgraph()))
        assert data["2:7:5"] == {"model": ["1", 0], "seed": seed, "steps": 2, "sampler": "euler"}
        assert data["3"]["samples"] == ["2:7:5", 0]


def test_a_bypassed_or_muted_instance_takes_its_inside_along() -> None:
    inside = Sheet().node(5, "Blur", [9], inputs=["image:IMAGE", "radius:INT:w"], outputs=["IMAGE"])
    inside.wire(-10, 0, 5, "image").wire(5, 0, -20, 0)
    definition = inside.subgraph(UID, ["image:IMAGE"], ["IMAGE:IMAGE"])
    sheet = Sheet().node(1, "LoadImage", ["x.png"], outputs=["IMAGE", "MASK"])
    sheet.node(2, UID, inputs=["image:IMAGE"], outputs=["IMAGE"]).node(
        3, "SaveImage", ["p"], inputs=["images:IMAGE"]
    )
    sheet.wire(1, 0, 2, "image").wire(2, 0, 3, "images")
    assert api(sheet.file(definition))["3"]["images"] == ["2:5", 0]
    sheet.nodes[1]["mode"] = 4
    assert api(sheet.file(definition)) == {
        "1": {"image": "x.png"},
        "3": {"images": ["1", 0], "filename_prefix": "p"},
    }
    sheet.nodes[1]["mode"] = 2
    assert api(sheet.file(definition)) == {"1": {"image": "x.png"}, "3": {"filename_prefix": "p"}}


def test_an_input_that_a_subgraph_only_passes_on() -> None:
    definition = Sheet().subgraph(UID, ["image:IMAGE"], ["IMAGE:IMAGE"])
    definition["links"] = [{"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": -20, "target_slot": 0}]
    sheet = Sheet().node(1, "LoadImage", ["x.png"], outputs=["IMAGE", "MASK"])
    sheet.node(2, UID, inputs=["image:IMAGE"], outputs=["IMAGE"]).node(
        3, "SaveImage", ["p"], inputs=["images:IMAGE"]
    )
    sheet.wire(1, 0, 2, "image").wire(2, 0, 3, "images")
    assert api(sheet.file(definition))["3"]["images"] == ["1", 0]


def test_set_and_get_meet_by_name() -> None:
    sheet = chain().node(20, "SetNode", ["vae"], inputs=["VAE:VAE"], outputs=["*"])
    sheet.node(21, "GetNode", ["vae"], outputs=["VAE"])
    sheet.wire(1, 1, 20, "VAE").wire(21, 0, 3, "vae")
    assert api(sheet.file()) == CHAIN


def test_what_cannot_be_read_says_why() -> None:
    assert problems_of(with_instance().file()) == ["missing_subgraph"]
    assert problems_of(chain().node(30, "workflow>old", []).file()) == ["group_node"]
    selfish = Sheet().node(5, UID, inputs=[], outputs=[])
    assert "nested_subgraph" in problems_of(with_instance().file(selfish.subgraph(UID, [], [])))
    circle = (
        chain()
        .node(8, "Reroute", inputs=[":*"], outputs=["*"])
        .node(9, "Reroute", inputs=[":*"], outputs=["*"])
    )
    circle.wire(8, 0, 9, "").wire(9, 0, 8, "").wire(9, 0, 3, "vae")
    assert problems_of(circle.file()) == ["endless_wire"]
    broken = chain().file()
    broken["nodes"] += [5, {"type": "Blur"}, {"id": 60}, {"id": 61, "type": ""}]
    graph, problems = read(broken, DEFINITIONS)
    assert [problem.code for problem in problems] == ["bad_node"] * 4
    assert set(graph.nodes) == set(CHAIN)
    assert problems_of({"nodes": [], "links": [], "version": 0.4}) == ["empty_graph"]


def test_subgraphs_that_multiply_are_stopped() -> None:
    levels = []
    for level in range(12):
        inside = Sheet()
        for number in range(10):
            inside.node(number, f"{level + 1:08d}-0000-0000-0000-000000000000" if level < 11 else "Blur")
        levels.append(inside.subgraph(f"{level:08d}-0000-0000-0000-000000000000", [], []))
    top = Sheet().node(1, "00000000-0000-0000-0000-000000000000")
    assert problems_of(top.file(*levels)) == ["too_large"]


def test_of_both_formats_the_api_format_counts_and_the_other_gives_the_rules() -> None:
    drawn = chain().file()
    prompt = to_api(drawn, DEFINITIONS)
    for entry in prompt.values():
        entry.pop("_meta")
    prompt["2"]["inputs"]["seed"] = 99
    body = {"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": drawn}}}
    graph, problems = read(body, DEFINITIONS)
    assert not problems
    assert graph.nodes["2"].inputs["seed"] == 99
    assert graph.nodes["2"].after_generate == {"seed": "randomize"}


def test_where_the_api_format_is_of_no_use_the_editors_counts() -> None:
    body = {"prompt": {}, "extra_data": {"extra_pnginfo": {"workflow": chain().file()}}}
    assert api(body) == CHAIN


def test_an_unknown_class_keeps_what_the_file_says_of_it() -> None:
    graph, problems = read(chain(values=[7, "fixed", 25, "ddim"]).file(), {})
    assert not problems
    assert dict(graph.nodes["2"].inputs) | {"model": None} == {
        "model": None, "seed": 7, "steps": 25, "sampler": "ddim",
    }  # fmt: skip
    assert graph.nodes["2"].after_generate == {"seed": "fixed"}


scalars = st.none() | st.booleans() | st.integers(-30, 2**70) | st.floats() | st.text(max_size=8)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
ids = st.sampled_from([1, 2, 3, "4", -10, -20]) | anything
kinds = st.sampled_from([*OBJECT_INFO, "Reroute", "PrimitiveNode", "SetNode", "GetNode", UID, OTHER, "?"])
names = st.sampled_from(["image", "images", "model", "seed", "how", "how.like", "images.image0", ""])
slots = st.fixed_dictionaries(
    {},
    optional={
        "name": names | anything,
        "type": st.sampled_from(["IMAGE", "*", "INT", "IMAGE,MASK"]) | anything,
        "link": st.integers(0, 6) | anything,
        "linkIds": st.lists(st.integers(0, 6) | anything, max_size=3) | anything,
        "widget": st.fixed_dictionaries({"name": names}) | anything,
    },
)
drawn_nodes = st.fixed_dictionaries(
    {"id": ids, "type": kinds},
    optional={
        "mode": st.sampled_from([0, 2, 4]) | anything,
        "inputs": st.lists(slots | anything, max_size=4) | anything,
        "outputs": st.lists(slots | anything, max_size=3) | anything,
        "widgets_values": st.lists(scalars | st.sampled_from(["fixed", "size", "scale"]), max_size=5)
        | anything,
        "widgets_values_named": st.dictionaries(names, anything, max_size=4) | anything,
        "properties": anything
        | st.fixed_dictionaries(
            {
                "proxyWidgets": st.lists(
                    st.tuples(st.sampled_from(["-1", "1", "2"]), names).map(list), max_size=3
                )
            }
        ),
    },
)
links = st.tuples(st.integers(0, 6), ids, st.integers(0, 3), ids, st.integers(0, 3)).map(list) | anything
drawings = st.fixed_dictionaries(
    {"nodes": st.lists(drawn_nodes | anything, max_size=6), "links": st.lists(links, max_size=8)},
    optional={
        "id": st.sampled_from([UID, OTHER]) | anything,
        "inputs": st.lists(slots, max_size=3) | anything,
        "outputs": st.lists(slots, max_size=3) | anything,
        "version": anything,
    },
)
files = st.tuples(drawings, st.lists(drawings | anything, max_size=3) | anything).map(
    lambda both: both[0] | {"definitions": {"subgraphs": both[1]}}
)


@settings(max_examples=100)
@given(files)
def test_any_file_is_read_or_refused_in_words(data: dict[str, Any]) -> None:
    graph, problems = read(data, DEFINITIONS, Limits(nodes=50))
    assert graph.nodes or problems
    assert len(graph) <= 50
    _, found = examine(data, DEFINITIONS, limits=Limits(nodes=50))
    json.dumps([problem.as_dict() for problem in found])
    assert all(str(problem) for problem in found)


def test_long_rows_of_reroutes_are_followed() -> None:
    sheet = chain()
    sheet.nodes[2]["inputs"][1]["link"] = None
    count = LIMITS.nodes - 10
    for number in range(count):
        sheet.node(100 + number, "Reroute", inputs=[":*"], outputs=["*"])
        sheet.links.append(
            [1000 + number, 99 + number if number else 1, 0 if number else 1, 100 + number, 0, "*"]
        )
        sheet.nodes[-1]["inputs"][0]["link"] = 1000 + number
    sheet.wire(99 + count, 0, 3, "vae")
    assert api(sheet.file()) == CHAIN

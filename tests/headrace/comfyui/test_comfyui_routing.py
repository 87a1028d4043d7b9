"""In which engine a workflow runs, and what files its literals may name: the pure parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.comfyui.host.options import ComfyOptions
from headrace.comfyui.host.paths import chooses_file, may_be_computed, trouble_with
from headrace.comfyui.installation import Installation
from headrace.comfyui.known import definitions_of
from headrace.comfyui.memory import RESERVE, room_for_another
from headrace.comfyui.routing import Used, place_of, used_classes
from headrace.comfyui.service import _arguments
from stream.errors import InvalidInput, InvalidWorkflow
from workflows.check import examine

OURS = {"LoadTensor", "SaveTensor", "Edges", "ImageInvert"}
THEIRS = {"LoadTensor", "SaveTensor", "KSampler", "ImageInvert"}


def place(*classes: str, prefer: bool = False) -> str:
    used = [Used(name, str(number)) for number, name in enumerate(classes)]
    return place_of(used, OURS, THEIRS, prefer_comfyui=prefer)


def test_a_workflow_runs_where_its_classes_are() -> None:
    assert place("LoadTensor", "ImageInvert") == "builtin"
    assert place("LoadTensor", "ImageInvert", prefer=True) == "comfyui"
    assert place("LoadTensor", "ImageInvert", "Edges", prefer=True) == "builtin"
    assert place("LoadTensor", "KSampler") == "comfyui"
    assert place("Nonsense") == "builtin"
    assert place() == "builtin"


def test_a_mixture_is_refused_by_the_names_of_its_nodes() -> None:
    with pytest.raises(InvalidWorkflow) as caught:
        place("LoadTensor", "Edges", "KSampler", "Edges")
    assert [detail["node_id"] for detail in caught.value.details] == ["1", "3"]
    assert {detail["code"] for detail in caught.value.details} == {"mixed_engines"}
    assert "KSampler (node 2)" in caught.value.message


def test_classes_are_found_in_both_formats_and_in_subgraphs() -> None:
    api = {"1": {"class_type": "A", "inputs": {}}, "2": {"class_type": "B"}}
    editor = {
        "nodes": [{"id": 7, "type": "A"}, {"id": 8, "type": "some-uuid"}],
        "definitions": {"subgraphs": [{"id": "some-uuid", "nodes": [{"id": 1, "type": "B"}]}]},
    }
    assert [one.class_type for one in used_classes(api)] == ["A", "B"]
    assert [one.class_type for one in used_classes(editor)] == ["A", "some-uuid", "B"]
    assert [one.class_type for one in used_classes([api, {"prompt": api}])] == ["A", "B", "A", "B"]


KEYS = ["nodes", "type", "class_type", "definitions", "subgraphs", "x"]
json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=20,
)


@given(json_like)
def test_whatever_is_no_workflow_names_no_class_and_raises_nothing(data: Any) -> None:
    assert all(isinstance(one.class_type, str) for one in used_classes(data))


ROOTS = ("/comfy/input", "/comfy/models/checkpoints")


@pytest.mark.parametrize(
    ("value", "named", "fine"),
    [
        ("cat.png", True, True),
        ("folder/cat.png [input]", True, True),
        ("folder\\cat.png", True, True),
        ("../cat.png", True, False),
        ("a/../../cat.png", True, False),
        ("..\\cat.png [output]", True, False),
        ("/comfy/input/cat.png", True, True),
        ("/comfy/input", True, True),
        ("/comfy/input/../secret", True, False),
        ("/comfy/inputs/cat.png", True, False),
        ("/etc/passwd", True, False),
        ("/etc/passwd", False, False),
        ("~/secret", False, False),
        ("~root/secret", True, False),
        ("C:\\secret", False, False),
        ("\\\\server\\share\\x", False, False),
        ("../../secret", False, False),
        ("file:///etc/passwd", True, False),
        ("https://example.org/cat.png", True, False),
        ("https://example.org/cat.png", False, False),
        ("file:///etc/passwd", False, False),
        ("File:/etc/passwd", True, False),
        ("as on https://example.org/cat.png", False, True),
        ("profile: a cat", False, True),
        ("cat\0.png", True, False),
        ("cat\0.png", False, False),
        ("a cat, with / without a hat...", False, True),
        ("a/b testing of 1.5/2", False, True),
        ("first line\n/etc/passwd", False, True),
        ("(masterpiece:1.2), /style of old/", False, True),
        ("nearest-exact", False, True),
        ("", True, True),
    ],
)
def test_paths_are_confined_and_prompts_are_left_alone(value: str, named: bool, fine: bool) -> None:
    assert (trouble_with(value, ROOTS, network=False, named=named) is None) == fine


def test_urls_may_be_named_where_the_network_is_allowed_but_never_files_by_them() -> None:
    assert trouble_with("https://example.org/x.png", ROOTS, network=True, named=True) is None
    assert trouble_with("file:///etc/passwd", ROOTS, network=True, named=True) is not None


@given(st.lists(st.sampled_from(["..", ".", "a", "input", "comfy", ""]), min_size=1, max_size=8))
def test_no_absolute_path_that_is_let_through_leaves_the_roots(parts: list[str]) -> None:
    text = "/" + "/".join(parts)
    if trouble_with(text, ROOTS, network=False, named=True) is None:
        real = Path(text).resolve()
        assert any(real.is_relative_to(Path(root)) for root in ROOTS) or not text.strip("/.")


@pytest.mark.parametrize("name", ["path", "file_path", "image_folder", "directory", "url", "filename_prefix"])
def test_inputs_that_choose_files_are_told_by_their_names(name: str) -> None:
    assert chooses_file(name)


@pytest.mark.parametrize("name", ["text", "profile", "pathos", "sampler_name", "filer", "curl"])
def test_other_inputs_are_not(name: str) -> None:
    assert not chooses_file(name)
    assert chooses_file(name, {"image_upload": True})


def test_only_prefixes_and_the_like_may_be_computed() -> None:
    assert may_be_computed("filename_prefix")
    assert not may_be_computed("file_path")


def test_an_installation_is_told_from_another_folder_and_has_an_interpreter(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"not a ComfyUI installation: main.py"):
        Installation.at(tmp_path, "python3")
    for name in ("main.py", "folder_paths.py", "nodes.py"):
        (tmp_path / name).touch()
    with pytest.raises(InvalidInput, match="--comfyui-python"):
        Installation.at(tmp_path)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.touch(mode=0o755)
    assert Installation.at(tmp_path).python == str(python)
    assert Installation.at(tmp_path, "/usr/bin/other").python == "/usr/bin/other"
    assert Installation.at(tmp_path).version == "unknown"
    (tmp_path / "comfyui_version.py").write_text('__version__ = "1.2.3"\n')
    assert Installation.at(tmp_path).version == "1.2.3"


@pytest.mark.parametrize(
    ("given", "device", "wanted"),
    [
        ((), "cpu", ("--cpu",)),
        ((), "cuda:1", ("--cuda-device", "1")),
        ((), "cuda", ()),
        (("--cpu",), "cuda:1", ("--cpu",)),
        (("--cuda-device=2",), "cuda:1", ("--cuda-device=2",)),
    ],
)
def test_comfyui_is_told_the_device_of_the_engine(
    given: tuple[str, ...], device: str, wanted: tuple[str, ...]
) -> None:
    assert _arguments(given, device) == wanted


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_a_second_engine_needs_what_the_first_has_and_a_reserve(held: int, free: int) -> None:
    if room_for_another(held, free):
        assert free - held >= RESERVE


def test_options_survive_the_command_line() -> None:
    options = ComfyOptions("/comfy", "/tmp/x", ("--cpu",), classes=("A*",), network=True)
    assert ComfyOptions.from_dict(options.as_dict()) == options
    listed = {**options.as_dict(), "arguments": ["--cpu"], "classes": ["A*"], "unknown": 1}
    assert ComfyOptions.from_dict(listed) == options


@pytest.mark.parametrize(
    ("picture", "fine"),
    [
        ("listed.png", True),
        ("sub/there.png", True),
        ("there.png [input]", True),
        ("x.png [output]", True),
        ("/elsewhere/x.png", True),
        ("none.png", False),
        ("sub/none.png", False),
        ("none.png [input]", False),
        ("../out.png", False),
    ],
)
def test_pictures_below_the_input_folder_are_looked_for_before_anything_runs(
    tmp_path: Path, picture: str, fine: bool
) -> None:
    """ComfyUI lists what lies directly in the folder, and takes names of all that lies below it."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name in ("in/there.png", "in/sub/there.png", "out.png"):
        (tmp_path / name).touch()
    masks = {"input": {"required": {"image": [["listed.png"], {"image_upload": True}]}}, "output": ["MASK"]}
    paste = {"input": {"required": {"image": ["IMAGE"], "mask": ["MASK"]}}, "output": ["IMAGE"]}
    info = {"LoadImageMask": masks, "Paste": paste}
    graph = {
        "1": {"class_type": "LoadTensor", "inputs": {}},
        "2": {"class_type": "LoadImageMask", "inputs": {"image": picture}},
        "3": {"class_type": "Paste", "inputs": {"image": ["1", 0], "mask": ["2", 0]}},
        "4": {"class_type": "SaveTensor", "inputs": {"images": ["3", 0]}},
    }
    _, problems = examine(graph, definitions_of(info, {"input_folder": str(tmp_path / "in")}))
    assert [(one.code, one.node_id) for one in problems] == ([] if fine else [("missing_file", "2")])
    _, problems = examine(graph, definitions_of(info, {}))
    assert not problems or picture == "none.png", "where that folder is not known, only the list is"

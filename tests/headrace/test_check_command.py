"""``headrace check`` as a person or a program calls it."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from headrace.checking.object_info import load_object_info
from headrace.cli import app
from stream.errors import InvalidInput, NotFound, SourceError
from tests.workflows.editor_files import OBJECT_INFO, Sheet

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["check", *map(str, arguments)])
    return result.exit_code, result.output


def generator(seed_rule: str = "randomize") -> dict[str, Any]:
    sheet = (
        Sheet()
        .node(1, "Loader", ["sub\\b.safetensors"], outputs=["MODEL", "VAE"])
        .node(
            2,
            "Noise",
            [7, seed_rule, 25, "ddim"],
            inputs=["model:MODEL"],
            outputs=["LATENT"],
            title="My noise",
        )
        .node(3, "Decode", inputs=["samples:LATENT", "vae:VAE"], outputs=["IMAGE"])
        .node(4, "SaveImage", ["mine"], inputs=["images:IMAGE"])
    )
    return (
        sheet.wire(1, 0, 2, "model")
        .wire(2, 0, 3, "samples")
        .wire(1, 1, 3, "vae")
        .wire(3, 0, 4, "images")
        .file()
    )


@pytest.fixture
def info(tmp_path: Path) -> Path:
    path = tmp_path / "object_info.json"
    path.write_text(json.dumps(OBJECT_INFO))
    return path


def written(folder: Path, data: Any, name: str = "w.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(data))
    return path


def test_a_bundled_workflow_is_told_in_words() -> None:
    status, text = run("edges")
    assert status == 0
    for words in (
        'video in    node 1 "Stream in"',
        "2.low_threshold",
        "number, 0.01 to 0.99 by 0.01",
        "it can run",
    ):
        assert words in text


def test_a_file_of_the_editor_with_the_nodes_of_a_comfyui(tmp_path: Path, info: Path) -> None:
    status, text = run(written(tmp_path, generator()), "--object-info", info)
    assert status == 0, text
    for words in ("ComfyUI's editor", "makes its own pictures", "My noise (2).seed (randomize)", "0 to 2^64"):
        assert words in text


def test_problems_are_told_by_node_and_input(tmp_path: Path, info: Path) -> None:
    data = generator("fixed")
    data["nodes"][0]["widgets_values"] = ["c.safetensors"]
    data["nodes"][1]["widgets_values"][2] = 5000
    status, text = run(written(tmp_path, data), "--object-info", info)
    assert status == 1
    for words in (
        "3 problems",
        "missing input",
        "node 1 (Loader)",
        "ckpt_name: the file 'c.safetensors' is missing in the folder models/checkpoints (did you mean",
        'node 2 "My noise" (Noise)',
        "steps: must be at most 100, got 5000",
    ):
        assert words in text


def test_programs_get_json(tmp_path: Path) -> None:
    status, text = run("edges", written(tmp_path, {"1": {"class_type": "Cany", "inputs": {}}}), "--json")
    assert status == 1
    good, bad = json.loads(text)
    assert good["ok"]
    assert good["workflows"][0]["modalities"]["video"] == {"input": True, "output": True}
    assert set(good["workflows"][0]["parameters"]["properties"]) == {"2.low_threshold", "2.high_threshold"}
    assert not bad["ok"]
    assert {problem["code"] for problem in bad["workflows"][0]["problems"]} >= {"unknown_class"}


def test_what_cannot_be_planned_is_told_with_the_reason(tmp_path: Path) -> None:
    """Lazy inputs of which the frame decides, and a class that says that it expands into others."""
    lazy = {"lazy": True}
    switch = {"on": ["MASK", {}], "yes": ["IMAGE", lazy], "no": ["IMAGE", lazy]}
    info = {
        "Pick": {"input": {"required": switch}, "output": ["IMAGE"]},
        "Grow": {
            "input": {"required": {"image": ["IMAGE", {}]}},
            "output": ["IMAGE"],
            "headrace": {"expands": True},
        },
    }
    (tmp_path / "info.json").write_text(json.dumps(info))
    data = {
        "1": {"class_type": "LoadTensor", "inputs": {}},
        "2": {"class_type": "Pick", "inputs": {"on": ["1", 1], "yes": ["1", 0], "no": ["1", 0]}},
        "3": {"class_type": "Grow", "inputs": {"image": ["2", 0]}, "_meta": {"title": "My tree"}},
        "4": {"class_type": "SaveTensor", "inputs": {"images": ["3", 0]}},
    }
    path = written(tmp_path, data)
    status, text = run(path, "--object-info", tmp_path / "info.json")
    assert status == 0, text
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("slow road")]
    assert lines == [
        "slow road   node 2 (Pick): what it wants of its lazy inputs depends on the frame",
        'slow road   node 3 "My tree" (Grow): it expands into other nodes',
    ]
    _, text = run(path, "--object-info", tmp_path / "info.json", "--json")
    assert set(json.loads(text)[0]["workflows"][0]["slow_nodes"]) == {"2", "3"}
    assert "slow road" not in run("edges")[1]


def test_choices_settle_what_is_open(tmp_path: Path) -> None:
    data = {
        "1": {"class_type": "LoadTensor", "inputs": {}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
        "3": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
        "5": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    path = written(tmp_path, data)
    assert run(path)[0] == 1
    status, text = run(path, "--input-node", "1", "--output-node", "4")
    assert "node 5 (PreviewImage)" not in text
    assert status == 0, text
    assert "video out   node 4 (PreviewImage)" in text


def test_several_in_a_row(tmp_path: Path) -> None:
    from workflows import library

    status, text = run(written(tmp_path, [library.load("edges"), library.load("passthrough")]))
    assert status == 0
    assert "workflow 1 of 2 in a row" in text


def test_what_cannot_be_read_is_status_2(tmp_path: Path) -> None:
    (tmp_path / "no.json").write_text("{no")
    for arguments in (
        (tmp_path / "no.json",),
        ("nothing-of-that-name",),
        ("edges", "--object-info", tmp_path / "gone"),
    ):
        command = [sys.executable, "-m", "headrace", "check", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
        assert done.returncode == 2
        assert done.stderr.startswith("headrace: error: ")
        assert "Traceback" not in done.stderr


class ComfyUI(http.server.BaseHTTPRequestHandler):
    answer: bytes = json.dumps(OBJECT_INFO).encode()

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/object_info" else 404)
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def comfyui() -> Iterator[http.server.HTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), ComfyUI)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_what_a_running_comfyui_said_is_kept_for_when_it_is_off(
    comfyui: http.server.HTTPServer, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{comfyui.server_address[1]}"
    first = load_object_info(url, tmp_path)
    assert first.data == OBJECT_INFO
    assert first.age is None
    assert load_object_info(f"{url}/object_info", tmp_path).data == OBJECT_INFO
    assert len(list(tmp_path.iterdir())) == 1
    comfyui.shutdown()
    comfyui.server_close()
    kept = load_object_info(url, tmp_path)
    assert kept.data == OBJECT_INFO
    assert kept.age is not None
    with pytest.raises(SourceError, match="no ComfyUI answers"):
        load_object_info(url, tmp_path / "other")


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"A": 5}', "[" * 100_000])
def test_what_is_no_object_info_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "info.json"
    path.write_text(text)
    with pytest.raises(InvalidInput):
        load_object_info(str(path))
    with pytest.raises(NotFound, match="No such file"):
        load_object_info(str(tmp_path / "gone"))


def test_a_picture_tells_of_the_workflow_in_it(tmp_path: Path, info: Path) -> None:
    details = PngInfo()
    details.add_text("workflow", json.dumps(generator()))
    Image.new("RGB", (4, 4)).save(tmp_path / "made.png", pnginfo=details)
    status, text = run(tmp_path / "made.png", "--object-info", info)
    assert status == 0, text
    assert "made.png" in text
    Image.new("RGB", (4, 4)).save(tmp_path / "bare.png")
    assert run(tmp_path / "bare.png")[0] == 2


def test_a_kept_workflow_is_known_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workflows import library

    monkeypatch.setenv("HEADRACE_WORKFLOWS", str(tmp_path))
    written(tmp_path, library.load("edges"), "mine.json")
    status, text = run("mine")
    assert status == 0, text
    assert "2.low_threshold" in text


def test_words_out_of_a_file_cannot_steer_the_terminal(tmp_path: Path) -> None:
    data = {
        "1": {"class_type": "LoadTensor", "inputs": {}, "_meta": {"title": "a\x1b[2Jb"}},
        "2": {"class_type": "No\x1b]0;x\x07pe", "inputs": {"i\x1b": ["1", 0]}},
        "3": {"class_type": "SaveTensor", "inputs": {"images": ["1", 7]}},
    }
    status, text = run(written(tmp_path, data))
    assert status == 1
    assert "\x1b" not in text
    assert "\x07" not in text


def test_sound_is_told_apart(tmp_path: Path) -> None:
    data = {
        "1": {"class_type": "LoadAudioTensor", "inputs": {"buffer_size": 500.0}},
        "2": {"class_type": "SaveAudioTensor", "inputs": {"audio": ["1", 0]}},
        "3": {"class_type": "SaveTextTensor", "inputs": {"data": "words"}},
    }
    status, text = run(written(tmp_path, data))
    assert status == 0, text
    for words in ("sound in   node 1", "sound out  node 2", "text out   node 3"):
        assert words in text

"""``headrace byoc new`` and ``check`` on real programs, and what a check finds in a bad one."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from byoc.check import run
from byoc.check.findings import Verdict
from byoc.check.plan import read_plan
from byoc.check.run import CheckOptions, check
from byoc.check.templates import described, make, names
from stream.errors import Conflict, InvalidInput, NotFound

ROOT = Path(__file__).resolve().parents[2]
SHORT = CheckOptions(seconds=2, size=128, fps=20)

BAD = """
import asyncio, os, signal, time
from aiohttp import ClientSession, web

async def health(request):
    return web.json_response({"status": "IDLE"})

async def status(request):
    counts = {"frames_in": 40, "audio_in": 20, "failed": 39, "overlaid": 0}
    report = {"counts": counts, "error": {"message": "no such weights"}, "works_on": ["video", "audio"]}
    return web.json_response({"session": report})

async def start(request):
    body = await request.json()
    async with ClientSession() as http:
        # Two documents in one segment, and a line that is too long.
        await http.post(body["events_url"] + "/0", data=b'{"type": "a"}\\n{"type": "b"}')
        error = b'{"event": {"type": "error", "message": "no such file"}}'
        await http.post(body["events_url"] + "/1", data=error)
        await http.post(body["data_url"] + "/0", data=b'"' + b"x" * 70000 + b'"')
    return web.json_response({})

async def params(request):
    return web.json_response({})

async def stop(request):
    await request.json()
    return web.json_response({})

app = web.Application()
app.router.add_get("/health", health)
app.router.add_get("/stream/status", status)
for name, handler in {"start": start, "params": params, "stop": stop}.items():
    app.router.add_post(f"/stream/{name}", handler)
web.run_app(app, host="127.0.0.1", port=int(os.environ["PORT"]), print=None)
"""


def test_a_new_folder_passes_its_check(tmp_path):
    command = [sys.executable, "-m", "headrace", "byoc"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "new", "mine", "--template", "batch", "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "mine"
    assert "CAPABILITY_NAME=mine" in (folder / "Dockerfile").read_text()
    assert (folder / "README.md").read_text().startswith("# mine\n")
    done = subprocess.run(
        [*command, "check", str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "everything as it should be" in done.stdout
    assert "unregistered" in done.stdout


async def test_a_program_that_errs_is_told_of_each_error(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "REGISTER", 0.2)
    (tmp_path / "worker.py").write_text(BAD)
    (tmp_path / "check.toml").write_text("refused = {a = 1}\n")
    found = await check(tmp_path, read_plan(tmp_path), SHORT)
    assert not found.passed
    wrong = {row.what: row.seen for row in found.rows if row.verdict is Verdict.WRONG}
    text = str([row for row in found.rows if row.what == "protocol"])
    assert "not one JSON document" in text
    assert "70002 bytes" in text
    assert "answered with [500, 500, 500]" in wrong["stop, with junk, three times"]
    assert wrong["frames"] == "39 of 60 failed: no such weights"
    assert wrong["event of type error"] == "no such file"
    assert {"wrong params", "params that are junk", "pictures", "protocol"} <= wrong.keys()
    assert any(row.what == "registration" and row.verdict is Verdict.NOTE for row in found.rows)


async def test_a_program_that_ends_at_once_shows_what_it_wrote(tmp_path):
    (tmp_path / "worker.py").write_text("raise SystemExit('no model here')")
    found = await check(tmp_path, read_plan(tmp_path), SHORT)
    assert "no model here" in found.log
    assert not found.passed
    (tmp_path / "worker.py").write_text("import os; os.abort()")
    found = await check(tmp_path, read_plan(tmp_path), SHORT)
    assert found.rows[0].seen == "the program ended by SIGABRT"


def test_the_examples_are_all_there():
    assert names() == [
        "batch",
        "captions",
        "invert",
        "onnx-model",
        "overlay-text",
        "pitch-shift",
        "torch-model",
    ]
    assert all(described().values())
    for name in names():
        folder = ROOT / "byoc" / "examples" / name
        assert len((folder / "README.md").read_text().splitlines()) <= 12
        read_plan(folder)
        text = (folder / "Dockerfile").read_text()
        assert f"CAPABILITY_NAME={name}" in text
        assert "HEALTHCHECK" in text
        assert "== 'ERROR'" in text, "a program whose model did not load is not healthy"
        assert "\nUSER 10001\n" in text


EACH_IN_TURN = """
import sys, pytest
for folder in sys.argv[1:]:
    for module in ("worker", "test_worker"):
        sys.modules.pop(module, None)
    options = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", folder]
    if status := pytest.main([*options, folder]):
        sys.exit(f"{folder}: {status}")
"""


def test_the_tests_of_the_examples_pass():
    folders = [str(ROOT / "byoc" / "examples" / name) for name in names()]
    if importlib.util.find_spec("onnxruntime") is None:
        folders = [folder for folder in folders if not folder.endswith("onnx-model")]
    done = subprocess.run(
        [sys.executable, "-c", EACH_IN_TURN, *folders],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_cannot_be_made_or_read_is_named(tmp_path):
    with pytest.raises(NotFound, match="known are batch"):
        make("mine", "nothing", tmp_path)
    with pytest.raises(InvalidInput, match="small letters"):
        make("../mine", "invert", tmp_path)
    make("mine", "invert", tmp_path)
    with pytest.raises(Conflict, match="there already"):
        make("mine", "invert", tmp_path)
    with pytest.raises(NotFound, match=r"has no worker\.py"):
        read_plan(tmp_path)
    (tmp_path / "check.toml").write_text("colour = 1")
    with pytest.raises(InvalidInput, match="colour"):
        read_plan(tmp_path)
    with pytest.raises(NotFound, match="not a folder"):
        read_plan(tmp_path / "none")


@pytest.mark.parametrize("number", range(5))
def test_the_programs_of_the_documentation_can_be_loaded_as_they_stand(number):
    text = (ROOT / "docs" / "byoc.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    exec(compile(blocks[number], f"block {number} of docs/byoc.md", "exec"), {"__name__": "documented"})

"""How an engine is started in interpreters that are not ours, and in such as lack what it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from headrace.engine.client import EngineProcessor
from headrace.engine.guardian import Engine
from headrace.engine.launch import command, environment
from headrace.engine.link import Link
from headrace.engine.settings import EngineSettings
from stream.errors import NotInstalled
from stream.frames import Picture, VideoFrame
from stream.processor import Emission

HERE = Path(__file__).parent
ROOT = HERE.parents[2]

# Loads the finder by its file, as the bootstrap does, in an interpreter without any packages.
PROBE = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("bootstrap", sys.argv[1])
bootstrap = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bootstrap)
sys.meta_path.insert(0, bootstrap.RoomFinder(sys.argv[2]))
found = []
for name in sys.argv[3:]:
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        assert error.name == name, error
    else:
        found.append(name)
print(json.dumps([found, sys.path]))
"""


def found_by(root: Path, *names: str) -> list[str]:
    bootstrap = ROOT / "headrace/engine/bootstrap.py"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PROBE, str(bootstrap), str(root), *names],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found, path = json.loads(done.stdout)
    assert str(root) not in path
    assert isinstance(found, list)
    return found


def test_a_foreign_interpreter_is_lent_the_named_modules_and_nothing_beside_them() -> None:
    lent = ["stream.errors", "headrace.engine.link", "headrace.engine.memory", "headrace.engine.host"]
    refused = [
        "headrace.cli",
        "headrace.settings",
        "headrace.server",
        "stream.units",
        "stream.pipeline",
        "byoc",
    ]
    for name in refused:
        base = ROOT.joinpath(*name.split("."))
        assert base.with_suffix(".py").exists() or (base / "__init__.py").exists() or name == "byoc"
    assert found_by(ROOT, *lent, *refused) == lent


def test_what_lies_beside_our_packages_stays_hidden(tmp_path: Path) -> None:
    """As in a folder of installed packages, where the worker's own dependencies lie next to it."""
    for room in ("stream", "headrace", "workflows"):
        (tmp_path / room).symlink_to(ROOT / room)
    for package in ("aiohttp", "numpy"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    assert found_by(tmp_path, "aiohttp", "numpy", "stream.errors") == ["stream.errors"]


def test_every_module_of_the_workflows_is_lent() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "workflows").rglob("*.py")
    ]
    names = [name for name in modules if name in ("workflows", "workflows.nodes", "workflows.problems")]
    assert found_by(ROOT, *names) == names


async def test_an_engine_runs_in_a_foreign_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    settings = EngineSettings(python=(sys.executable,), extra_path=(str(HERE),), device="cpu")
    async with Engine(settings) as engine:
        await engine.wait_ready(60)
        spec = {"kind": "class", "target": "engine_processors:Surroundings"}
        processor = EngineProcessor(engine, spec, session="s")
        told: list[Emission] = []
        processor.bind(told.append)
        await processor.load_model()
        await processor.on_stream_start({})
        picture = Picture.from_rgb(np.zeros((8, 8, 3), np.uint8))
        await processor.process_video_async(VideoFrame.from_picture(picture, 0, Fraction(1, 30)))
        await processor.on_stream_stop()
    assert {"stream.frames", "headrace.engine.slots"} <= set(told[0].data["found"])
    assert not {"stream.units", "headrace.server"} & set(told[0].data["found"])
    assert str(ROOT) not in told[0].data["path"]


async def test_an_interpreter_without_torch_names_the_extra() -> None:
    engine = Engine(EngineSettings(python=(sys.executable, "-I", "-S")))
    await engine.start()
    try:
        with pytest.raises(NotInstalled, match=r"torch is not installed.*headrace\[engine\]"):
            await engine.wait_ready(60)
        assert engine.state == "failed"
        processor = EngineProcessor(engine, {"kind": "passthrough"}, session="s")
        with pytest.raises(NotInstalled, match="torch"):
            await processor.load_model()
        assert engine.restarts == 0
    finally:
        await engine.stop()


def run_bootstrap(version: str) -> tuple[subprocess.CompletedProcess[str], Link]:
    """Run the bootstrap in an interpreter that says it is of that version."""
    ours, theirs = Link.sockets()
    lie = f"import runpy, sys; sys.version_info = {version}; sys.argv[0] = sys.argv.pop(1);"
    lie += "runpy.run_path(sys.argv[0], run_name='__main__')"
    fd = theirs.fileno()
    path = str(ROOT / "headrace/engine/bootstrap.py")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", lie, path, "--foreign", f"--fd={fd}"],
        pass_fds=(fd,),
        capture_output=True,
        text=True,
        timeout=60,
    )
    theirs.close()
    return done, Link(ours)


def test_an_interpreter_that_is_too_old_says_so() -> None:
    done, link = run_bootstrap("(3, 9, 1)")
    message = link.receive()
    link.close()
    assert done.returncode == 3
    assert message is not None
    assert message.op == "failed"
    assert message.body["error"]["code"] == "not_installed"
    assert "needs 3.10" in message.body["error"]["message"]


def test_an_engine_whose_worker_is_gone_already_does_not_start() -> None:
    ours, theirs = Link.sockets()
    fd = theirs.fileno()
    done = subprocess.run(
        [*command(EngineSettings(), fd), "--parent=1"],
        pass_fds=(fd,),
        capture_output=True,
        env=environment(EngineSettings()),
        timeout=60,
    )
    theirs.close()
    link = Link(ours)
    assert done.returncode == 0
    with pytest.raises(Exception, match="closed"):
        link.receive()
    link.close()


def test_the_working_directory_is_searched_by_our_own_interpreter_alone() -> None:
    own, foreign = command(EngineSettings(), 3), command(EngineSettings(python=("/x/python", "-q")), 3)
    assert own[0] == sys.executable
    assert f"--path={os.getcwd()}" in own
    assert foreign[:2] == ["/x/python", "-q"]
    assert "--foreign" in foreign
    assert not any(part.startswith("--path") for part in foreign)
    given = command(EngineSettings(extra_path=("/a", "b")), 3)
    assert [part for part in given if part.startswith("--path")] == [
        "--path=/a",
        f"--path={os.path.abspath('b')}",
    ]


def test_a_foreign_interpreter_keeps_to_its_own_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    assert environment(EngineSettings())["PYTHONPATH"] == "/somewhere"
    settings = EngineSettings(python=("/x/python",), threads=3, env={"A": "b"})
    foreign = environment(settings)
    assert "PYTHONPATH" not in foreign
    assert foreign["A"] == "b"


def test_the_host_starts_as_a_module_too() -> None:
    ours, theirs = Link.sockets()
    fd = theirs.fileno()
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace.engine.host", f"--fd={fd}", "--device=cpu"], pass_fds=(fd,), cwd=ROOT
    )
    theirs.close()
    link = Link(ours)
    message = None
    for _ in range(6000):
        if (message := link.receive()) is not None:
            break
        try:
            process.wait(0.01)
        except subprocess.TimeoutExpired:
            continue
    assert message is not None
    assert message.op == "ready"
    assert message.body["pid"] == process.pid
    link.close()
    assert process.wait(20) == 1, "the end of the link ends the engine"

"""What ``headrace doctor`` finds on machines that lack something."""

import json
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from headrace.comfyui.known import KnownClasses
from headrace.comfyui.service import state_of
from headrace.comfyui.setup import comfy_settings
from headrace.doctor import machine, media, report
from headrace.doctor.findings import Finding, Level, ok, problem, warning
from headrace.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
H200 = "0, GPU-8d2c, NVIDIA H200, 143771, 142000, 9.0, 37, 12, 570.86.15"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("HEADRACE_", "COMFYUI"))]:
        monkeypatch.delenv(name)


def script(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def with_gpu(monkeypatch, tmp_path):
    """A machine whose nvidia-smi tells of a GPU."""
    (tmp_path / "bin").mkdir()
    script(tmp_path / "bin", "nvidia-smi", f"echo '{H200}'")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


def worst(findings):
    assert findings
    return max((finding.level for finding in findings), key=list(Level).index)


def texts(findings):
    return " | ".join(finding.text for finding in findings)


def test_this_machine_can_do_what_the_tests_do():
    for check in (machine.system, machine.packages, machine.memory_files, machine.settings, media.codecs):
        assert worst(check()) is not Level.PROBLEM, texts(check())
    assert "PyAV" in texts(media.codecs())


def test_a_port_that_is_taken_is_a_warning(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("HEADRACE_PORT", str(taken.getsockname()[1]))
        found = machine.port()
    assert worst(found) is Level.WARNING
    assert "HEADRACE_PORT" in found[0].advice
    assert worst(machine.port()) is Level.OK


@pytest.mark.parametrize(
    ("variables", "level", "words"),
    [
        ({"HEADRACE_PORT": "many"}, Level.PROBLEM, "port"),
        ({"HEADRACE_HOST": "0.0.0.0"}, Level.PROBLEM, "set a token"),
        ({"HEADRACE_ALLOWED_HOSTS": "http://x"}, Level.PROBLEM, "is not a host"),
        ({"HEADRACE_TLS_KEY": "/no", "HEADRACE_TLS_CERTIFICATE": "/no"}, Level.PROBLEM, "cannot be used"),
        ({"HEADRACE_CONFIG": "/no.toml"}, Level.PROBLEM, "cannot be read"),
        ({"HEADRACE_PROT": "1"}, Level.WARNING, "did you mean HEADRACE_PORT"),
        ({"HEADRACE_TOKEN": "s3cret"}, Level.OK, "given: token"),
    ],
)
def test_settings_that_would_stop_a_worker_are_found_before_it_starts(monkeypatch, variables, level, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = machine.settings()
    assert worst(found) is level
    assert words in texts(found)
    assert "s3cret" not in texts(found)


def test_an_engine_without_torch_is_a_problem(monkeypatch, tmp_path):
    # Without its site-packages the interpreter has no torch.
    python = script(tmp_path, "python", f'exec {sys.executable} -S "$@"')
    monkeypatch.setenv("HEADRACE_ENGINE_PYTHON", str(python))
    found = media.torch()
    assert worst(found) is Level.PROBLEM
    assert "torch is not installed" in texts(found)
    assert "headrace[engine]" in found[0].advice


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo 'libcudart is missing' >&2; exit 1", "cannot be imported: libcudart is missing"),
        ("true", "cannot be imported: it printed nothing"),
        (
            'echo \'{"version": "9.9", "built_for": "12.8", "devices": ["X"], "threads": 1}\';'
            " echo 'no kernel image' >&2; exit 1",
            "cannot compute on the GPU: no kernel image",
        ),
    ],
)
def test_a_torch_that_does_not_work_is_a_problem(monkeypatch, tmp_path, text, words):
    monkeypatch.setenv("HEADRACE_ENGINE_PYTHON", str(script(tmp_path, "python", text)))
    found = media.torch()
    assert worst(found) is Level.PROBLEM
    assert words in texts(found)


def test_an_interpreter_that_is_not_there_is_a_problem(monkeypatch):
    monkeypatch.setenv("HEADRACE_ENGINE_PYTHON", "/no/python")
    assert worst(media.torch()) is Level.PROBLEM


def test_a_gpu_that_neither_codecs_nor_torch_can_use_is_a_warning(monkeypatch, tmp_path, with_gpu):
    assert "NVIDIA H200" in texts(media.gpus())
    assert "driver 570.86.15" in texts(media.gpus())
    facts = {"version": "2.13.0+cpu", "built_for": None, "devices": [], "threads": 1}
    monkeypatch.setenv(
        "HEADRACE_ENGINE_PYTHON", str(script(tmp_path, "python", f"echo '{json.dumps(facts)}'"))
    )
    found = media.torch()
    assert worst(found) is Level.WARNING
    assert "does not see the GPU" in texts(found)


def test_comfyui_is_found_by_variable_and_by_place(monkeypatch, tmp_path):
    assert "none found" in texts(media.comfyui([]))
    folder = tmp_path / "ComfyUI"
    (folder / "comfy").mkdir(parents=True)
    for name in ("main.py", "nodes.py"):
        (folder / name).write_text("")
    assert str(folder) in texts(media.comfyui([str(folder)]))
    monkeypatch.setenv("COMFYUI", str(folder))
    assert texts(media.comfyui([])) == f"ComfyUI in {folder} (COMFYUI)"
    monkeypatch.setenv("COMFYUI", str(tmp_path))
    found = media.comfyui([str(folder)])
    assert [finding.level for finding in found] == [Level.WARNING, Level.OK]


def test_of_the_comfyui_of_the_settings_interpreter_and_packs_are_told(monkeypatch, tmp_path):
    folder = tmp_path / "ComfyUI"
    (folder / "comfy").mkdir(parents=True)
    for name in ("main.py", "nodes.py", "folder_paths.py"):
        (folder / name).write_text("")
    monkeypatch.setenv("HEADRACE_COMFYUI", str(folder))
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    assert worst(media.comfyui([])) is Level.PROBLEM
    monkeypatch.setenv("HEADRACE_COMFYUI_PYTHON", "/usr/bin/python3")
    found = media.comfyui([])
    assert worst(found) is Level.OK
    assert "has not been started" in texts(found)
    settings = comfy_settings(load_settings({}))
    packs = [
        {"name": "good", "loaded": True},
        {"name": "bad", "loaded": False, "reason": "No module named 'x'"},
        {"name": "unwanted", "loaded": False, "skipped": True, "reason": "is left out"},
    ]
    facts = json.dumps({"packs": packs}).encode()
    KnownClasses(settings.cache).save(state_of(settings), b"{}", facts)
    found = media.comfyui([])
    assert worst(found) is Level.WARNING
    assert "bad is not loaded: No module named 'x'" in texts(found)
    assert "unwanted" not in texts(found)


def test_a_package_that_is_missing_or_too_old_is_a_problem(monkeypatch):
    monkeypatch.setattr(
        machine, "requirements", lambda: [("no-such-package-here", "1.0"), ("numpy", "999.1")]
    )
    found = machine.packages()
    assert [finding.level for finding in found][:2] == [Level.PROBLEM, Level.PROBLEM]
    assert "pip install 'no-such-package-here>=1.0'" in found[0].advice
    assert "too old; 999.1 is needed" in found[1].text


def test_what_headrace_requires_is_known():
    names = {name.lower() for name, _ in machine.requirements()}
    if names:
        assert {"aiohttp", "av", "numpy"} <= names
        assert "torch" not in names


def test_one_checks_fault_or_hang_hides_nothing(monkeypatch):
    monkeypatch.setattr(report, "LIMIT", 0.2)
    stuck = threading.Event()

    def broken():
        raise OSError("no")

    def hangs():
        stuck.wait(30)
        return []

    checks = {"a": lambda: [ok("fine")], "b": broken, "c": hangs, "d": lambda: [warning("so-so", "try")]}
    found = report.examine(checks, lambda area: None)
    stuck.set()
    levels = [(finding.area, finding.level) for finding in found]
    assert levels == [("a", "ok"), ("b", "problem"), ("c", "problem"), ("d", "warning")]
    assert "OSError: no" in found[1].text
    assert "hangs" in found[2].text


def test_the_report_is_read_by_people_and_keeps_brackets(capsys, monkeypatch):
    checks = {"x": lambda: [problem("[Errno 1] no [bold]", "pip install 'headrace[engine]'"), ok("fine")]}
    monkeypatch.setattr(report, "CHECKS", checks)
    assert report.run_doctor(as_json=False) is False
    shown = capsys.readouterr().out
    assert "[Errno 1] no [bold]" in shown
    assert "'headrace[engine]'" in shown
    assert "1 problem to be solved first" in shown


def test_findings_are_data_for_programs():
    finding = Finding(Level.WARNING, "text", "advice", "area")
    assert finding.as_dict() == {"level": "warning", "area": "area", "text": "text", "advice": "advice"}


def test_the_command_ends_with_1_when_there_is_a_problem():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HEADRACE_ENGINE_PYTHON": "/no/python"}
    command = [sys.executable, "-m", "headrace", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    findings = json.loads(done.stdout)
    assert done.returncode == 1, done.stderr
    problems = [finding for finding in findings if finding["level"] == "problem"]
    assert [finding["area"] for finding in problems] == ["torch"]
    assert {finding["area"] for finding in findings} == set(report.CHECKS)

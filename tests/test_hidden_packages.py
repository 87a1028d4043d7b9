"""Another package of the name of one of ours is noticed before it does harm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from byoc.packages import ROOMS, hidden

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "from headrace.cli import main; main()"


def run(
    code: str, *path: Path, cwd: Path, arguments: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=60)


def foreign(folder: Path, room: str, text: str = "raise RuntimeError('must not be imported')") -> Path:
    """A package of that name in a folder of its own, which is returned."""
    (folder / "elsewhere" / room).mkdir(parents=True)
    (folder / "elsewhere" / room / "__init__.py").write_text(text)
    return folder / "elsewhere"


def test_nothing_hides_our_packages_here():
    assert hidden() == []


@pytest.mark.parametrize("room", ["stream", "workflows"])
def test_the_command_line_names_what_hides_a_package(tmp_path, room):
    elsewhere = foreign(tmp_path, room)
    done = run(COMMAND, elsewhere, ROOT, cwd=tmp_path, arguments=("serve", "--help"))
    assert done.returncode == 2
    assert done.stderr.startswith(f"headrace: error: {elsewhere / room} hides Headrace's package {room!r}")
    assert "Traceback" not in done.stderr


def test_the_command_line_names_a_foreign_byoc(tmp_path):
    done = run(COMMAND, foreign(tmp_path, "byoc", ""), ROOT, cwd=tmp_path, arguments=("serve", "--help"))
    assert done.returncode == 2
    assert "package 'byoc'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_container_author_who_has_a_file_of_that_name_is_told(tmp_path):
    (tmp_path / "stream.py").write_text("x = 1")
    done = run("from byoc import VideoFrame", ROOT, cwd=tmp_path)
    assert done.returncode == 1
    assert f"{tmp_path / 'stream.py'} hides Headrace's package 'stream'" in done.stderr.splitlines()[-1]


def test_a_package_that_was_installed_over_ours_is_noticed(tmp_path):
    for room in ROOMS:
        ignored = shutil.ignore_patterns("__pycache__", "node_modules")
        shutil.copytree(ROOT / room, tmp_path / room, ignore=ignored)
    (tmp_path / "workflows" / "__init__.py").write_text("from .workflow import Workflow")
    done = run(COMMAND, tmp_path, cwd=tmp_path, arguments=("serve", "--help"))
    assert done.returncode == 2
    assert "another package 'workflows' was installed over Headrace's" in done.stderr


def test_a_package_that_is_already_imported_is_noticed(tmp_path):
    elsewhere = foreign(tmp_path, "stream", "")
    code = f"""
import sys
sys.path.insert(0, {str(elsewhere)!r})
import stream
sys.path.pop(0)
from byoc.packages import hidden
print(hidden(["stream"]))
"""
    done = run(code, ROOT, cwd=tmp_path)
    assert str(elsewhere / "stream") in done.stdout, done.stderr

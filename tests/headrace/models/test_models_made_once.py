"""Folders that are made once: by several at a time, by one that is killed, by one that fails."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headrace.models.made_once import made_once


def test_several_who_want_it_at_once_get_the_one_that_is_made(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(work: Path) -> None:
        made.append(work)
        time.sleep(0.05)
        (work / "whole").write_text("x")

    target = tmp_path / "cache" / "model-1.5"
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: made_once(target, make), range(4))) == [target] * 4
    assert len(made) == 1
    assert [path.name for path in target.iterdir()] == ["whole"]


def test_what_a_process_that_was_killed_has_left_goes_with_the_next(tmp_path: Path) -> None:
    target = tmp_path / "model"

    code = f"""
import os, signal
from pathlib import Path
from headrace.models.made_once import made_once

def die(work):
    (work / "half").write_bytes(bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)

made_once(Path({str(target)!r}), die)
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    assert not target.exists()
    made_once(target, lambda work: (work / "whole").touch())
    assert [path.name for path in target.iterdir()] == ["whole"]
    assert {path.name for path in tmp_path.iterdir()} == {"model", "model.lock"}


def test_one_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    def fail(work: Path) -> None:
        (work / "half").touch()
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        made_once(tmp_path / "model", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["model.lock"]

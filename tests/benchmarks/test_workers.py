from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.workers import BenchmarkError, running, wait_until

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("child", child.pid, flush=True)
time.sleep(60)
"""


def test_a_program_that_ignores_sigterm_ends_with_its_children(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running("stubborn", [sys.executable, "-c", STUBBORN], log) as program:
        wait_until("its child", lambda: "child" in log.read_text(), [program], timeout=20)
        tree = program.tree
        assert len(tree) == 2
        assert program.resident_bytes() > 1_000_000
        program.patience = 0.2
    end = time.monotonic() + 5
    while time.monotonic() < end and any(_lives(process) for process in tree):
        time.sleep(0.02)
    assert not any(_lives(process) for process in tree)


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_waiting_for_a_program_that_ended_says_what_it_printed(tmp_path: Path) -> None:
    with (
        running(
            "short", [sys.executable, "-c", "print('no luck'); raise SystemExit(3)"], tmp_path / "log"
        ) as it,
        pytest.raises(BenchmarkError, match=r"status 3:\nno luck"),
    ):
        wait_until("nothing", lambda: False, [it], timeout=20)


def test_waiting_is_bounded(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="the moon did not come"):
        wait_until("the moon", lambda: False, timeout=0.1)

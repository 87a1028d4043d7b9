from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.workers import ROOT, BenchmarkError, running, wait_until

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
    while time.monotonic() < end and any(_lives(process.pid) for process in tree):
        time.sleep(0.02)
    assert not any(_lives(process.pid) for process in tree)


ORPHAN_MAKER = """
import os, signal, sys
from pathlib import Path
from benchmarks.workers import running
with running("sleeper", [sys.executable, "-c", "import time; time.sleep(60)"], Path(sys.argv[1])) as program:
    print(program.process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_benchmark_that_is_killed_leaves_no_program_running(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ORPHAN_MAKER, str(tmp_path / "log")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL, done.stderr
    orphan = int(done.stdout)
    end = time.monotonic() + 10
    while time.monotonic() < end and _lives(orphan):
        time.sleep(0.02)
    assert not _lives(orphan)


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


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

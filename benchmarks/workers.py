"""The programs of a benchmark run as whole processes: started, watched and always ended."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent
PEER_VENV = ROOT / ".venv-pytrickle"
START_S = 60.0
HEADRACE: list[str | Path] = [sys.executable, "-c", "from headrace.cli import main; main()"]
"""The command line, whether or not its script is installed."""


class BenchmarkError(Exception):
    """A measurement cannot be made; the message says why."""


@dataclass
class Program:
    """A running process with all its descendants."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    patience: float = 10.0
    """Seconds that it has to end after SIGTERM."""

    @property
    def tree(self) -> list[psutil.Process]:
        """The process and its descendants, as far as they live."""
        try:
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def cpu_seconds(self) -> float:
        """User and system time of the tree so far, with that of children that have ended."""
        total = 0.0
        for process in self.tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total

    def resident_bytes(self) -> int:
        """Resident memory of the tree; pages that its processes share count once for each."""
        total = 0
        for process in self.tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def tail(self, lines: int = 15) -> str:
        """The end of what it printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def check(self) -> None:
        """Raise `BenchmarkError` when it has ended by itself."""
        status = self.process.poll()
        if status is not None:
            raise BenchmarkError(f"{self.name} ended with status {status}:\n{self.tail()}")

    def stop(self) -> None:
        """SIGTERM, then SIGKILL to what is left of the tree."""
        tree = self.tree
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(self.patience)
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
                process.kill()
        self.process.wait(10)


_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def _die_with_parent() -> None:
    """In a child: SIGTERM when the thread that started it ends, even if by SIGKILL."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def running(
    name: str, command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Program]:
    """Start a program in the project's folder; it ends with the block, however that ends."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    program = Program(name, process, log)
    try:
        yield program
    finally:
        program.stop()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def request(url: str, body: Any = None, timeout: float = 10.0) -> tuple[int, Any]:
    """GET, or POST of ``body`` as JSON; status and decoded answer. Raises `OSError` when nobody answers."""
    data = None if body is None else json.dumps(body).encode()
    call = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(call, timeout=timeout) as answer:
            return answer.status, _decoded(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, _decoded(error.read())


def trickle(method: str, url: str, body: bytes = b"", mime: str = "") -> None:
    """One request to the trickle server; with ``mime`` a POST to a channel makes it."""
    headers = {"Expect-Content": mime} if mime else {}
    call = urllib.request.Request(url, body if method == "POST" else None, headers, method=method)
    urllib.request.urlopen(call, timeout=10).close()


def _decoded(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")


def wait_until(
    what: str, condition: Callable[[], bool], programs: Sequence[Program] = (), timeout: float = START_S
) -> float:
    """Seconds until ``condition`` held; `BenchmarkError` when it does not in time or a program ends."""
    begun = time.monotonic()
    while time.monotonic() - begun < timeout:
        for program in programs:
            program.check()
        if condition():
            return time.monotonic() - begun
        time.sleep(0.02)
    ends = "\n".join(f"{program.name}:\n{program.tail()}" for program in programs)
    raise BenchmarkError(f"{what} did not come within {timeout:.0f} s\n{ends}")


def answers(url: str, wanted: Callable[[Any], bool] = lambda _: True) -> Callable[[], bool]:
    """A condition: ``url`` answers 200 with what is ``wanted``."""

    def condition() -> bool:
        try:
            status, body = request(url, timeout=2)
        except OSError:
            return False
        return status == 200 and wanted(body)

    return condition


@dataclass
class Worker:
    """A worker under test at its own port, with what it is told of a stream."""

    name: str
    command: list[str | Path]
    port: int
    params: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ready(self, program: Program) -> float:
        """Seconds until it takes streams."""
        idle = answers(f"{self.url}/health", lambda body: body.get("status") == "IDLE")
        return wait_until(f"{self.name} ready", idle, [program])

    def start_stream(self, channels: Mapping[str, str], width: int, height: int) -> None:
        body = {
            **channels,
            "gateway_request_id": "benchmark",
            "params": {"width": width, "height": height, **self.params},
        }
        status, answer = request(f"{self.url}/live-video-to-video", body)
        if status != 200:
            raise BenchmarkError(f"{self.name} refused the stream: {status} {answer}")


def install_pytrickle(say: Callable[[str], None]) -> Path:
    """The interpreter of PyTrickle's own environment; `BenchmarkError` when it cannot be had."""
    python = PEER_VENV / "bin" / "python"
    probe: list[str | Path] = [python, "-c", "import pytrickle; assert pytrickle.__version__ == '0.1.6'"]
    if python.exists() and subprocess.run(probe, capture_output=True, check=False).returncode == 0:
        return python
    say("installing PyTrickle 0.1.6 into .venv-pytrickle")
    shutil.rmtree(PEER_VENV, ignore_errors=True)
    # The newest PyAV that it admits has no wheel for every interpreter; the newest with one does.
    # torch is pinned because a range would bring the newest CUDA build.
    packages = ["--only-binary", "av", "pytrickle==0.1.6", "torch==2.13.0"]
    steps: list[list[str | Path]] = [
        [sys.executable, "-m", "venv", PEER_VENV],
        [python, "-m", "pip", "install", "--disable-pip-version-check", "-q", *packages],
        probe,
    ]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, timeout=900, check=False)
        if done.returncode != 0:
            shutil.rmtree(PEER_VENV, ignore_errors=True)
            raise BenchmarkError(f"PyTrickle cannot be installed: {done.stderr.strip()[-500:]}")
    return python

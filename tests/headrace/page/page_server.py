"""A worker with its demo as a process of its own, as `headrace serve --demo` starts it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[3]
START_S = 60.0
STOP_S = 20.0


@dataclass
class PageServer:
    """``url`` without a slash at its end; ``announced`` is what it printed."""

    url: str
    process: subprocess.Popen[str]
    announced: list[str]
    log: deque[str] = field(default_factory=lambda: deque(maxlen=200))

    def engine(self) -> psutil.Process:
        """The process that runs torch."""
        children = psutil.Process(self.process.pid).children()
        found = [child for child in children if "engine" in " ".join(child.cmdline())]
        assert len(found) == 1, children
        return found[0]


@contextmanager
def page_server(*options: str, environment: Mapping[str, str] | None = None) -> Iterator[PageServer]:
    """A running ``headrace serve`` on a free port; ended by SIGTERM, and it must end well."""
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace", "serve", "--port", "0", *options],
        cwd=ROOT,
        env={**os.environ, "HEADRACE_DEMO_FPS": "12", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    killer = threading.Timer(START_S, process.kill)
    killer.start()
    log: deque[str] = deque(maxlen=200)
    reader = threading.Thread(target=log.extend, args=(process.stderr,), daemon=True)
    reader.start()
    try:
        announced = [process.stdout.readline().strip() for _ in range(2)]
        killer.cancel()
        found = re.fullmatch(r"headrace listens on (http://\S+)", announced[0])
        assert found, (announced, list(log))
        yield PageServer(found[1], process, announced, log)
    finally:
        killer.cancel()
        process.terminate()
        try:
            status = process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait(STOP_S)
        reader.join(5)
        process.stdout.close()
        process.stderr.close()
    assert status == 0, list(log)

"""What batch measurements stand on: a worker that is probed, requests to it, and its engines' memory."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import statistics
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from benchmarks import notes
from benchmarks.batch_models import models_folder
from benchmarks.report import Report, Spread
from benchmarks.rig import Rig
from benchmarks.workers import BenchmarkError, Program, Worker, answers, running, wait_until

BATCH_NICE = 10
"""What the worker adds to the niceness of its batch engine; by it the engine is found."""
MEGA = 1e6
WINDOW = 500
"""Answers of `/health` in a window, some ten seconds."""


@dataclass
class Bench:
    """What every measurement has at hand. ``probed``: milliseconds of `/health`, by measurement."""

    rig: Rig
    report: Report
    seconds: float
    rounds: int
    base: Path
    probed: dict[str, list[float]] = field(default_factory=dict)

    def worker(self, params: dict[str, Any] | None = None, **environment: str) -> Worker:
        """A worker with the demo's models and the benchmark's own."""
        folder = models_folder(self.base)
        return self.rig.headrace(
            params or {},
            HEADRACE_DEMO_WEIGHTS="true",
            HEADRACE_MODELS_FOLDER=str(folder),
            **environment,
        )

    @contextlib.contextmanager
    def serving(self, measure: str, **environment: str) -> Iterator[tuple[Worker, Program]]:
        """A worker that runs, with its `/health` probed all the time."""
        worker = self.worker(None, **environment)
        log = self.rig.new_file(f"{measure}-{worker.port}.log")
        with running(worker.name, worker.command, log, worker.environment) as program:
            wait_until("/health", answers(f"{worker.url}/health"), [program])
            with self.probing(measure, worker):
                yield worker, program
            program.check()

    @contextlib.contextmanager
    def probing(self, measure: str, worker: Worker) -> Iterator[None]:
        """Ask for `/health` every 20 ms until the block ends."""
        file = self.rig.new_file(f"{measure}-{worker.port}.answers")
        command: list[str | Path] = [sys.executable, "-m", "benchmarks.prober", str(worker.port), file]
        with running("prober", command, self.rig.new_file(f"{measure}-{worker.port}.prober")) as prober:
            wait_until("the prober", file.exists, [prober])
            yield
        self.probed.setdefault(measure, []).extend(took / MEGA for took, _ in notes.read(file))

    def tell_health(self) -> None:
        """Add what was probed so far to the report: each measurement, and all together."""
        together = [took for each in self.probed.values() for took in each]
        for name, times in [*self.probed.items(), ("throughout", together)]:
            spread = Spread.of(times)
            typical = windows_p99(times)
            value = (
                f"p99 of a typical window {typical:.1f}  of all: p50 {spread.p50:.1f}  p99 {spread.p99:.1f}  "
                f"max {spread.most:.1f}  ({spread.count})"
            )
            self.report.add(f"/health, {name}, ms", "headrace", value, "p99 < 20", typical < 20)
            self.report.data.setdefault("health", {})[name] = {
                "windows_p99": typical,
                "p50": spread.p50,
                "p99": spread.p99,
                "max": spread.most,
                "n": spread.count,
            }


def windows_p99(times: Sequence[float]) -> float:
    """The median of the 99th percentiles of windows of `WINDOW` answers: what another program does to a few
    of them does not count."""
    whole = [times[at : at + WINDOW] for at in range(0, max(1, len(times) - WINDOW + 1), WINDOW)]
    return statistics.median(Spread.of(window).p99 for window in whole)


# -- requests ----------------------------------------------------------------------------------------------


_RUN = re.compile(r"\brun;dur=([0-9.]+)")


class Caller:
    """One connection to a worker that stays open, for POST requests one after the other."""

    def __init__(self, worker: Worker, timeout: float = 180.0) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", worker.port, timeout=timeout)
        self.engine_ms = 0.0
        """Of the last request, the time between the worker and its engine, as the worker told it."""

    def post(self, path: str, body: dict[str, Any]) -> tuple[float, Any]:
        """Milliseconds until the answer was read, and the answer; `BenchmarkError` when it is not 200."""
        data = json.dumps(body).encode()
        begun = time.perf_counter()
        try:
            self._connection.request("POST", path, data, {"Content-Type": "application/json"})
            answer = self._connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise BenchmarkError(f"{path} was not answered: {error!r}") from error
        taken = (time.perf_counter() - begun) * 1000
        if answer.status != 200:
            raise BenchmarkError(f"{path} answered {answer.status}: {text[:300].decode(errors='replace')}")
        run = _RUN.search(answer.getheader("Server-Timing", ""))
        self.engine_ms = float(run[1]) if run is not None else 0.0
        return taken, json.loads(text)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def chat(model: str, text: str, tokens: int) -> dict[str, Any]:
    """The body of a request to ``/llm`` whose answer is the same every time."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "temperature": 0,
        "seed": 1,
    }


class Repeater:
    """Repeats something in a thread of its own until `stop`."""

    def __init__(self, work: Callable[[], None], pause: float = 0.0) -> None:
        self._work, self._pause = work, pause
        self._over = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self._work()
            except (OSError, KeyError, BenchmarkError) as error:  # told by stop
                self._error = error
                return
            self._over.wait(self._pause)

    def check(self) -> None:
        """Raise what ended it, if something did."""
        if self._error is not None:
            raise BenchmarkError(f"a repeated request failed: {self._error}") from self._error

    def stop(self) -> None:
        """End it after the request under way; raises as `check` does."""
        self._over.set()
        self._thread.join(60)
        if self._thread.is_alive():
            raise BenchmarkError("a request did not end within 60 s")
        self.check()

    def __enter__(self) -> Repeater:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


# -- engines -----------------------------------------------------------------------------------------------


def batch_engine(program: Program) -> psutil.Process:
    """The batch engine below a worker: the one that is niced."""
    for process in program.tree[1:]:
        with contextlib.suppress(psutil.NoSuchProcess):
            line = process.cmdline()
            if f"--nice={BATCH_NICE}" in line and any("bootstrap.py" in part for part in line):
                return process
    raise BenchmarkError("the worker has no batch engine")


@contextlib.contextmanager
def cores_apart(computing: Collection[int]) -> Iterator[None]:
    """Inside, the processes ``computing`` have all cores but one, this one and its others have that one.

    Else the kernel puts what computes wherever there is room just then, and a program that finds its caches
    full of another's takes milliseconds longer.
    """
    first, *rest = sorted(cores := os.sched_getaffinity(0))
    ours = psutil.Process()
    processes = [ours, *ours.children(recursive=True)]
    try:
        for process in processes:
            _place(process, set(rest) if process.pid in computing else {first})
        yield
    finally:
        for process in processes:
            _place(process, cores)


def _place(process: psutil.Process, cores: set[int]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        for thread in process.threads():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread.id, cores)


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one process, in bytes. ``weights_rss`` and ``weights_pss``: of the mapped files of weights, as if
    they were its own, and its share of them; ``weights_private``: pages of them that it has for itself.
    ``anonymous``: what is no file."""

    resident: int
    anonymous: int
    weights_rss: int
    weights_pss: int
    weights_private: int

    @classmethod
    def of(cls, process: psutil.Process, files: list[Path]) -> Memory:
        wanted = {str(file.resolve()) for file in files}
        sums = dict.fromkeys(("Rss", "Pss", "Anonymous", "Private_Dirty"), 0)
        anonymous = resident = 0
        for path, fields in mappings(process.pid):
            anonymous += fields["Anonymous"]
            resident += fields["Rss"]
            if path in wanted:
                for name in sums:
                    sums[name] += fields[name]
        return cls(resident, anonymous, sums["Rss"], sums["Pss"], sums["Private_Dirty"])


_HEAD = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+\s*(.*)$")
_FIELD = re.compile(r"^(\w+):\s+(\d+) kB$")


def mappings(pid: int) -> Iterator[tuple[str, dict[str, int]]]:
    """The path and the figures, in bytes, of every mapping of a process (proc(5), smaps)."""
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text(errors="surrogateescape").splitlines()
    except OSError as error:
        raise BenchmarkError(f"the memory of process {pid} cannot be read: {error}") from error
    path = ""
    fields: dict[str, int] = {}
    for line in lines:
        if (head := _HEAD.match(line)) is not None:
            if fields:
                yield path, fields
            path, fields = head[1], {}
        elif (found := _FIELD.match(line)) is not None:
            fields[found[1]] = int(found[2]) * 1024
    if fields:
        yield path, fields

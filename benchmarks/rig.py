"""One run: a worker between the feeder and the recorder, on a trickle server in a process of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from benchmarks import feed, notes, processors
from benchmarks.workers import (
    HEADRACE,
    ROOT,
    BenchmarkError,
    Program,
    Worker,
    free_port,
    request,
    running,
    trickle,
    wait_until,
)
from byoc.mock.clip import Recipe, cached
from byoc.mock.outputs import Output, outputs

CHANNELS = {
    "subscribe": "video/MP2T",
    "publish": "video/mp2t",
    "control": "application/json",
    "events": "application/json",
}
SAMPLE_S = 0.25


@dataclass(frozen=True, slots=True)
class Sample:
    """The worker's process tree at ``at`` (`time.monotonic_ns`)."""

    at: int
    cpu_seconds: float
    resident_bytes: int


@dataclass
class Run:
    """What one run left: moments per frame number, outputs, samples, and the worker's own last words."""

    worker: str
    fed: dict[int, int]
    taken: dict[int, int]
    outputs: list[Output]
    samples: list[Sample]
    status: dict[str, Any] = field(default_factory=dict)

    def ages_ms(self, begin: float = 0.0, end: float = float("inf")) -> list[float]:
        """From a frame's last byte to its being taken, of frames fed between two seconds of the clip."""
        return [(self.taken[n] - self.fed[n]) / 1e6 for n in self._within(begin, end) if n in self.taken]

    def glass_ms(self, begin: float = 0.0, end: float = float("inf")) -> list[float]:
        """From a frame's last byte to the arrival of its picture in the output."""
        shown: dict[int, int] = {}
        for output in self.outputs:
            if output.number is not None:
                shown.setdefault(output.number, output.at)
        return [(shown[n] - self.fed[n]) / 1e6 for n in self._within(begin, end) if n in shown]

    def cpu_per_output(self, begin: float) -> float:
        """CPU seconds of the tree per published frame, from ``begin`` seconds on."""
        start = min(self.fed.values()) + int(begin * 1e9)
        window = [sample for sample in self.samples if start <= sample.at <= max(self.fed.values())]
        if len(window) < 2:
            raise BenchmarkError("the run was too short to measure CPU time")
        first, last = window[0], window[-1]
        published = sum(first.at <= output.at < last.at for output in self.outputs)
        return (last.cpu_seconds - first.cpu_seconds) / published if published else float("nan")

    def _within(self, begin: float, end: float) -> list[int]:
        start = min(self.fed.values(), default=0)
        return [n for n, at in self.fed.items() if begin <= (at - start) / 1e9 < end]


During = Callable[[Program, float], None]


class Rig:
    """Makes runs. ``folder`` takes logs and notes; ``clips`` keeps clips from one benchmark to the next."""

    def __init__(self, folder: Path, clips: Path, say: Callable[..., None]) -> None:
        self.folder = folder
        self.say = say
        self._clips = clips
        self._runs = 0
        folder.mkdir(parents=True, exist_ok=True)

    def clip(self, recipe: Recipe) -> Path:
        """The clip's file, made when it is not there yet."""
        return cached(recipe, self._clips)

    def headrace(self, params: dict[str, Any], **environment: str) -> Worker:
        """Headrace at a free port."""
        port = free_port()
        settings = {"HEADRACE_ALLOW_PROCESSORS": "true", "HEADRACE_PORT": str(port), **environment}
        command: list[str | Path] = [*HEADRACE, "serve"]
        return Worker("headrace", command, port, params, settings)

    def pytrickle(self, python: Path, processor: str, **environment: str) -> Worker:
        """PyTrickle at a free port. Its own cap of 24 frames a second is raised to the clip's 30."""
        port = free_port()
        script = ROOT / "benchmarks" / "peer_pytrickle.py"
        command: list[str | Path] = [python, script, str(port), processor]
        return Worker("pytrickle", command, port, {"max_framerate": 30}, environment)

    def byoc(self, processor: str, **environment: str) -> Worker:
        """Our own server around the processors that `pytrickle` runs, at a free port."""
        port = free_port()
        script = ROOT / "benchmarks" / "peer_pytrickle.py"
        command: list[str | Path] = [sys.executable, script, str(port), processor, "--package", "byoc"]
        return Worker("headrace", command, port, {"max_framerate": 30}, environment)

    def channels(self, base: str, prefix: str = "") -> dict[str, str]:
        """Make the channels of one stream; the URLs as a start names them."""
        for name, mime in CHANNELS.items():
            trickle("POST", f"{base}/{prefix}{name}", mime=mime)
        return {f"{name}_url": f"{base}/{prefix}{name}" for name in CHANNELS}

    def new_file(self, name: str) -> Path:
        """A path of this run in the folder, with nothing there."""
        path = self.folder / f"{self._runs:02d}-{name}"
        path.unlink(missing_ok=True)
        return path

    @contextlib.contextmanager
    def trickle_server(self) -> Iterator[str]:
        """A trickle server; yields its base URL."""
        port = free_port()
        command: list[str | Path] = [*HEADRACE, "trickle-server", "--port", str(port)]
        url = f"http://127.0.0.1:{port}"
        with running("trickle-server", command, self.new_file("trickle.log")) as program:
            wait_until("the trickle server", lambda: _listens(url), [program])
            yield url

    def stream(self, worker: Worker, recipe: Recipe, during: During | None = None) -> Run:
        """Feed the clip through a fresh process of ``worker`` once. ``during`` is called about every
        quarter of a second with the worker and the seconds since the first frame."""
        self._runs += 1
        path = self.clip(recipe)
        self.say(f"  {worker.name} {recipe.width}x{recipe.height} {recipe.seconds:.0f} s")
        fed, out, taken = (self.new_file(name) for name in ("fed", "out", "taken"))
        environment = worker.environment | {processors.NOTES: str(taken)}
        log = self.new_file(f"{worker.name}.log")
        with (
            self.trickle_server() as base,
            running(worker.name, worker.command, log, environment) as program,
        ):
            worker.ready(program)
            urls = self.channels(base)
            worker.start_stream(urls, recipe.width, recipe.height)
            limit = recipe.seconds + 20
            feeder: list[str | Path] = [
                sys.executable,
                "-m",
                "benchmarks.feed",
                path,
                "--fed",
                fed,
                "--out",
                out,
            ]
            feeder += ["--into", urls["subscribe_url"], "--from", urls["publish_url"], "--limit", str(limit)]
            with running("feeder", feeder, self.new_file("feeder.log")) as feeding:
                samples, status = self._watch(worker, program, feeding, fed, limit + 10, during)
        if feeding.process.returncode != 0:
            raise BenchmarkError(f"the feeder failed:\n{feeding.tail()}")
        return Run(
            worker.name, notes.first(fed), notes.first(taken), outputs(feed.load(out)), samples, status
        )

    def _watch(
        self,
        worker: Worker,
        program: Program,
        feeding: Program,
        fed: Path,
        limit: float,
        during: During | None,
    ) -> tuple[list[Sample], dict[str, Any]]:
        """Sample the worker until the feeder is done."""
        samples: list[Sample] = []
        status: dict[str, Any] = {}
        end = time.monotonic() + limit
        start = 0
        while feeding.process.poll() is None:
            program.check()
            if time.monotonic() > end:
                raise BenchmarkError(f"the feeder did not end in {limit:.0f} s")
            now = time.monotonic_ns()
            samples.append(Sample(now, program.cpu_seconds(), program.resident_bytes()))
            start = start or next((at for _, at in notes.read(fed)), 0)
            if start and during is not None:
                during(program, (now - start) / 1e9)
            if len(samples) % 8 == 0:
                with contextlib.suppress(OSError):
                    code, answer = request(f"{worker.url}/stream/status", timeout=2)
                    status = answer if code == 200 and isinstance(answer, dict) else status
            with contextlib.suppress(subprocess.TimeoutExpired):
                feeding.process.wait(SAMPLE_S)
        return samples, status


def engine_of(program: Program) -> psutil.Process:
    """The engine below a Headrace worker."""
    for process in program.tree[1:]:
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("bootstrap.py" in part for part in process.cmdline()):
                return process
    raise BenchmarkError("the worker has no engine")


def _listens(url: str) -> bool:
    try:
        request(f"{url}/none/next", timeout=1)
    except OSError:
        return False
    return True

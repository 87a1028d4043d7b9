"""One WebRTC run: a server, and the measuring peer, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rig import Sample
from benchmarks.workers import (
    HEADRACE,
    BenchmarkError,
    Program,
    Worker,
    free_port,
    running,
    wait_until,
)
from byoc.mock.clip import Recipe, cached

WARM_UP_S = 5.0


@dataclass
class RtcRun:
    """What the measuring peer saw, and what the server used meanwhile."""

    server: str
    seen: dict[str, Any]
    samples: list[Sample] = field(default_factory=list)

    @property
    def sent(self) -> dict[int, int]:
        return {int(number): at for number, at in self.seen["sent"].items()}

    def delays_ms(self, begin: float = WARM_UP_S) -> list[float]:
        """From a picture's last packet at the socket to the return of its last packet."""
        sent = self.sent
        first = min(sent.values(), default=0) + int(begin * 1e9)
        back: dict[int, int] = {}
        for number, _, at, _, _ in self.seen["pictures"]:
            if number in sent and sent[number] >= first:
                back.setdefault(number, at)
        return [(at - sent[number]) / 1e6 for number, at in back.items()]

    def bitrate(self, begin: float = WARM_UP_S) -> float:
        """Bits of pictures that came back a second, after ``begin``."""
        pictures = self.seen["pictures"]
        if not pictures:
            return 0.0
        first = pictures[0][2] + int(begin * 1e9)
        chosen = [(at, size) for _, _, at, _, size in pictures if at >= first]
        span = (chosen[-1][0] - chosen[0][0]) / 1e9 if len(chosen) > 1 else 0.0
        return sum(size for _, size in chosen) * 8 / span if span else 0.0

    def cpu_share(self, begin: float = WARM_UP_S) -> float:
        """CPU seconds of the server's process tree a second of stream."""
        window = [sample for sample in self.samples if sample.at >= self.samples[0].at + int(begin * 1e9)]
        if len(window) < 2:
            raise BenchmarkError("the run was too short to measure CPU time")
        first, last = window[0], window[-1]
        return (last.cpu_seconds - first.cpu_seconds) / ((last.at - first.at) / 1e9)


class RtcRig:
    """Makes runs. ``folder`` takes logs; ``clips`` keeps clips from one benchmark to the next."""

    def __init__(self, folder: Path, clips: Path, say: Any) -> None:
        self.folder = folder
        self.say = say
        self._clips = clips
        self._files = 0
        folder.mkdir(parents=True, exist_ok=True)

    def clip(self, recipe: Recipe) -> Path:
        return cached(recipe, self._clips)

    def new_file(self, name: str) -> Path:
        self._files += 1
        return self.folder / f"{self._files:03d}-{name}"

    @contextlib.contextmanager
    def headrace(self, **environment: str) -> Iterator[tuple[Program, str]]:
        """A worker that takes sessions; yields it and its URL."""
        port = free_port()
        settings = {"HEADRACE_ALLOW_PROCESSORS": "true", "HEADRACE_PORT": str(port), **environment}
        worker = Worker("headrace", [*HEADRACE, "serve"], port)
        with running("headrace", worker.command, self.new_file("headrace.log"), settings) as program:
            worker.ready(program)
            yield program, worker.url

    @contextlib.contextmanager
    def stock(self) -> Iterator[tuple[Program, str]]:
        """The echo server; yields it and its URL."""
        port = free_port()
        command: list[str | Path] = [sys.executable, "-m", "benchmarks.echo_stock", str(port)]
        worker = Worker("aiortc", command, port)
        with running("aiortc", command, self.new_file("aiortc.log")) as program:
            worker.ready(program)
            yield program, worker.url

    @contextlib.contextmanager
    def client(
        self, what: str, url: str, seconds: float, *options: str | Path
    ) -> Iterator[tuple[Program, Path]]:
        """The measuring peer, once its first packet may leave; yields it and the file of its results."""
        result, started = self.new_file(f"{what}.json"), self.new_file("started")
        command: list[str | Path] = [sys.executable, "-m", "benchmarks.rtc_client", what, "--url", url]
        command += ["--seconds", str(seconds), "--json", result, "--started", started, *options]
        with running(what, command, self.new_file(f"{what}.log")) as program:
            wait_until("the peer's connection", started.exists, [program], timeout=30)
            yield program, result

    def send(self, server: Program, url: str, recipe: Recipe, *options: str | Path) -> RtcRun:
        """Send the clip to ``url``/offer and back, sampling the server."""
        self.say(f"  {server.name} {recipe.width}x{recipe.height} {recipe.seconds:.0f} s")
        dialect = "headrace" if server.name == "headrace" else "stock"
        more = ["--clip", self.clip(recipe), "--dialect", dialect, *options]
        with self.client("send", f"{url}/offer", recipe.seconds, *more) as (client, result):
            samples = self.watch(server, client, recipe.seconds)
            self.finish(client, recipe.seconds)
        return RtcRun(server.name, json.loads(result.read_text()), samples)

    def watch(self, server: Program, client: Program, seconds: float) -> list[Sample]:
        """Sample the server for so long."""
        samples: list[Sample] = []
        end = time.monotonic() + seconds
        while time.monotonic() < end and client.process.poll() is None:
            server.check()
            samples.append(Sample(time.monotonic_ns(), server.cpu_seconds(), server.resident_bytes()))
            time.sleep(0.25)
        return samples

    def finish(self, client: Program, seconds: float) -> None:
        """Wait until the peer has decoded what it got."""
        try:
            status = client.process.wait(30 + 3 * seconds)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"the measuring peer did not end:\n{client.tail()}") from None
        if status != 0:
            raise BenchmarkError(f"the measuring peer failed:\n{client.tail()}")

"""Measurements of the programs themselves: a file job, `/health` under load, an engine that dies or hangs."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import statistics
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from benchmarks import clip, processors
from benchmarks.clip import Recipe
from benchmarks.measures import INVERT, Bench
from benchmarks.outputs import longest_gap
from benchmarks.report import Spread
from benchmarks.rig import Run, engine_of
from benchmarks.workers import HEADRACE, BenchmarkError, Program, answers, running, trickle, wait_until

# -- c: from file to file ----------------------------------------------------------------------------------


def files(bench: Bench) -> None:
    """A file through pass-through against FFmpeg with the same x264 settings, in pairs."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        bench.report.notes.append("c: left out, there is no ffmpeg on the path")
        return
    recipe = Recipe(1280, 720, seconds=max(20.0, bench.seconds / 2), bitrate=4_000_000)
    source = bench.rig.clip(recipe)
    ratios, own, other = [], [], []
    for _ in range(max(3, bench.rounds)):
        own.append(_timed([*HEADRACE, "process", source, *_out(bench, "ours.mp4"), *OWN_OPTIONS]))
        other.append(_timed([ffmpeg, *_ffmpeg_options(source), *_out(bench, "theirs.mp4")]))
        ratios.append(other[-1] / own[-1])
    ratio = statistics.median(ratios)
    add = bench.report.add
    add("c 720p file to file, s", "headrace", f"{statistics.median(own):.2f}  (start of the engine included)")
    add("c 720p file to file, s", "ffmpeg", f"{statistics.median(other):.2f}")
    add(
        "c speed, headrace / ffmpeg",
        "both",
        f"{ratio:.2f}  (median of {len(ratios)})",
        ">= 0.8",
        ratio >= 0.8,
    )
    bench.report.data["c"] = {"headrace_s": own, "ffmpeg_s": other, "ratio": ratio, "frames": recipe.frames}


OWN_OPTIONS = ["--workflow", "passthrough", "--bitrate", "4000000", "--preset", "superfast"]


def _ffmpeg_options(source: Path) -> list[str | Path]:
    """What `headrace process` encodes with, said in FFmpeg's words."""
    rate = ["-b:v", "4M", "-maxrate", "4M", "-bufsize", "4M"]
    x264 = ["-c:v", "libx264", "-preset", "superfast", "-bf", "0", "-g", "60", *rate]
    return ["-v", "error", "-nostdin", "-y", "-i", source, *x264, "-c:a", "libopus", "-b:a", "96k"]


def _out(bench: Bench, name: str) -> list[Path]:
    return [bench.rig.new_file(name)]


def _timed(command: list[Any]) -> float:
    begun = time.monotonic()
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode != 0:
        raise BenchmarkError(f"{command[0]} failed: {done.stderr.strip()[-800:]}")
    return time.monotonic() - begun


# -- d: /health --------------------------------------------------------------------------------------------


def health(bench: Bench) -> None:
    """Time from the start of the process to the first answer, and answers while engine and cores are busy."""
    starts = [_start_time(bench) for _ in range(4)][1:]
    slowest = max(starts)
    add = bench.report.add
    add(
        "d start to first /health, s",
        "headrace",
        " ".join(f"{value:.2f}" for value in starts),
        "<= 1.5",
        slowest <= 1.5,
    )
    loading, working = _health_under_load(bench)
    for name, spread in (("while the engine loads", loading), ("at full load", working)):
        value = f"p50 {spread.p50:.1f}  p99 {spread.p99:.1f}  max {spread.most:.1f}  ({spread.count})"
        add(f"d /health {name}, ms", "headrace", value, "p99 < 20", spread.p99 < 20)
    bench.report.data["d"] = {"start_s": starts, "loading_ms": loading.p99, "working_ms": working.p99}


def _start_time(bench: Bench) -> float:
    worker = bench.rig.headrace({})
    with running("headrace", worker.command, bench.rig.new_file("start.log"), worker.environment) as program:
        return wait_until("/health", answers(f"{worker.url}/health"), [program])


def _health_under_load(bench: Bench) -> tuple[Spread, Spread]:
    worker = bench.rig.headrace(
        {"processor": "benchmarks.processors:Busy"},
        **{processors.TAKE: "0.03", processors.LOAD: "5"},
    )
    prober = Prober(worker.port)
    seconds = max(20.0, bench.seconds / 3)
    try:
        run = bench.rig.stream(worker, Recipe(seconds=seconds), lambda program, _: prober.start())
    finally:
        prober.stop()
    if not run.outputs:
        raise BenchmarkError("the busy processor gave nothing out")
    loaded = next((output.at for output in run.outputs if output.number is not None), 0)
    end = max(run.fed.values())
    loading = [ms for at, ms in prober.answers if at < loaded]
    working = [ms for at, ms in prober.answers if loaded <= at < end]
    return Spread.of(loading), Spread.of(working)


class Prober:
    """Asks for `/health` every 20 ms over one connection, in a thread; times are from request to answer."""

    def __init__(self, port: int) -> None:
        self.answers: list[tuple[int, float]] = []
        self._port = port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prober")

    def start(self) -> None:
        """Begin; further calls do nothing."""
        if self._thread.ident is None:
            self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            while not self._stop.wait(0.02):
                begun = time.monotonic_ns()
                connection.request("GET", "/health")
                connection.getresponse().read()
                self.answers.append((begun, (time.monotonic_ns() - begun) / 1e6))
        except (OSError, http.client.HTTPException):
            # The worker is gone: the run is over, or fails by itself.
            pass
        finally:
            connection.close()


# -- e: the engine dies ------------------------------------------------------------------------------------

HIT_S = 8.0


class Blow:
    """Sends a signal to the worker's engine once, `HIT_S` seconds into the clip."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number
        self.at = 0
        self.engine: psutil.Process | None = None
        self.back_s: float | None = None
        """Seconds from the blow to another engine process being there."""

    def __call__(self, program: Program, seconds: float) -> None:
        if not self.at and seconds >= HIT_S:
            self.engine = engine_of(program)
            self.at = time.monotonic_ns()
            self.engine.send_signal(self.number)
        elif self.at and self.back_s is None:
            with contextlib.suppress(BenchmarkError):
                if engine_of(program) != self.engine:
                    self.back_s = (time.monotonic_ns() - self.at) / 1e9


def recovery(bench: Bench) -> None:
    """The engine is killed, or stopped for good, in mid-stream: what does a viewer see?"""
    for number, name in ((signal.SIGKILL, "kill -9"), (signal.SIGSTOP, "hang")):
        blow = Blow(number)
        worker = bench.rig.headrace({"workflow": INVERT})
        run = bench.rig.stream(worker, Recipe(seconds=max(25.0, HIT_S * 3)), blow)
        if not blow.at:
            raise BenchmarkError("the clip ended before the engine was hit")
        _report_recovery(bench, name, run, blow)


def _report_recovery(bench: Bench, name: str, run: Run, blow: Blow) -> None:
    first = next((output.at for output in run.outputs if output.inverted), None)
    if first is None:
        raise BenchmarkError("no processed frame came out at all")
    last_fed = max(run.fed.values())
    shown = [output for output in run.outputs if first <= output.at <= last_fed]
    # Up to the end, so that an output that stops counts as a gap.
    gap = longest_gap([*(output.at for output in shown), last_fed])
    calm = longest_gap([output.at for output in shown if output.at < blow.at])
    raw = sum(output.number is not None and not output.inverted for output in shown)
    # Processed frames are back with the first inverted one that was fed after the blow.
    back = next(
        (
            (output.at - blow.at) / 1e9
            for output in shown
            if output.inverted and output.number is not None and run.fed.get(output.number, 0) > blow.at
        ),
        None,
    )
    add = bench.report.add
    add(
        f"e {name}: longest gap in the output, s",
        "headrace",
        f"{gap:.3f}  ({calm:.3f} before)",
        "<= 0.5",
        gap <= 0.5,
    )
    back_text = "never" if back is None else f"{back:.2f}"
    engine_text = "no new engine" if blow.back_s is None else f"new process after {blow.back_s:.2f}"
    add(
        f"e {name}: processed frames are back, s",
        "headrace",
        f"{back_text}  ({engine_text})",
        "",
        back is not None,
    )
    add(f"e {name}: raw pictures shown", "headrace", str(raw), "0", raw == 0)
    bench.report.data.setdefault("e", {})[name] = {
        "gap_s": gap,
        "back_s": back,
        "raw": raw,
        "engine_s": blow.back_s,
    }


# -- h: what sessions leave behind -------------------------------------------------------------------------

SESSIONS, FIRST_SESSIONS = 100, 5


def leftovers(bench: Bench) -> None:
    """A hundred short sessions one after the other: what does the worker hold that it did not before?"""
    worker = bench.rig.headrace({"workflow": INVERT})
    segments = clip.cut(bench.rig.clip(Recipe(seconds=1, key_every=0.5)))
    parts = [b"".join(chunk.data for chunk in segment) for segment in segments]
    log = bench.rig.new_file("sessions.log")
    with (
        bench.rig.trickle_server() as base,
        running(worker.name, worker.command, log, worker.environment) as program,
    ):
        worker.ready(program)
        held = []
        for number in range(FIRST_SESSIONS + SESSIONS):
            if number == FIRST_SESSIONS:
                held.append(_held(program))
            urls = bench.rig.channels(base, f"{number}-")
            worker.start_stream(urls, 512, 512)
            for index, part in enumerate(parts):
                trickle("POST", f"{urls['subscribe_url']}/{index}", part)
            for url in urls.values():
                trickle("DELETE", url)
            worker.ready(program)
        time.sleep(1)
        held.append(_held(program))
    before, after = held
    grown = {name: after[name] - before[name] for name in before if after[name] > before[name]}
    value = ", ".join(f"{name} {before[name]} to {after[name]}" for name in before)
    name = f"h held before and after {SESSIONS} sessions"
    bench.report.add(name, "headrace", value, "the same", not grown)
    bench.report.data["h"] = {"before": before, "after": after}


def _held(program: Program) -> dict[str, int]:
    """What the worker's processes hold, all of them together."""
    held = dict.fromkeys(("processes", "threads", "descriptors", "memory files"), 0)
    for process in program.tree:
        links = [os.readlink(link.path) for link in os.scandir(f"/proc/{process.pid}/fd")]
        held["processes"] += 1
        held["threads"] += process.num_threads()
        held["descriptors"] += len(links)
        held["memory files"] += sum("memfd:" in link for link in links)
    return held

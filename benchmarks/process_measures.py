"""Measurements of the programs themselves: a file job, `/health` under load, an engine that dies or hangs."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from benchmarks import notes, processors
from benchmarks.measures import INVERT, Bench
from benchmarks.report import Spread
from benchmarks.rig import Run, engine_of
from benchmarks.workers import HEADRACE, BenchmarkError, Program, answers, running, trickle, wait_until
from byoc.mock import clip
from byoc.mock.clip import Recipe
from byoc.mock.outputs import longest_gap

FILE_SECONDS = (20.0, 60.0)
"""Lengths of the files of c: the shorter, the more the engine's start weighs."""

# -- c: from file to file ----------------------------------------------------------------------------------


def files(bench: Bench) -> None:
    """A file through pass-through against FFmpeg with the same settings, in turns."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        bench.report.notes.append("c: left out, there is no ffmpeg on the path")
        return
    for seconds in FILE_SECONDS:
        _files_of(bench, ffmpeg, Recipe(1280, 720, seconds=seconds, bitrate=4_000_000))
    bench.report.notes.append("c: headrace's time has the start of its engine in it, about a second")


def _files_of(bench: Bench, ffmpeg: str, recipe: Recipe) -> None:
    source = bench.rig.clip(recipe)
    commands: dict[str, list[Any]] = {
        "headrace": [*HEADRACE, "process", source, *_out(bench, "ours.mp4"), *OWN_OPTIONS],
        "ffmpeg": [ffmpeg, *_ffmpeg_options(source), "-threads:v", "1", *_out(bench, "theirs.mp4")],
        "ffmpeg, its own threads": [ffmpeg, *_ffmpeg_options(source), *_out(bench, "threads.mp4")],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(max(3, bench.rounds)):
        for name, command in commands.items():
            times[name].append(_timed(command))
    length = f"c {recipe.seconds:.0f} s of 720p"
    for name, taken in times.items():
        value = f"{statistics.median(taken):.2f}  (rounds: {' '.join(f'{t:.2f}' for t in taken)})"
        bench.report.add(f"{length}, file to file, s", name, value)
    for name in list(commands)[1:]:
        pairs = zip(times[name], times["headrace"], strict=True)
        ratio = statistics.median(theirs / ours for theirs, ours in pairs)
        same = name == "ffmpeg"
        target, met = (">= 0.8", ratio >= 0.8) if same else ("", None)
        bench.report.add(f"{length}, speed against {name}", "headrace", f"{ratio:.2f}", target, met)
    bench.report.data[length] = {"seconds": times, "frames": recipe.frames}


OWN_OPTIONS = ["--workflow", "passthrough", "--bitrate", "4000000", "--preset", "superfast", "--overwrite"]


def _ffmpeg_options(source: Path) -> list[str | Path]:
    """What `headrace process` encodes with, said in FFmpeg's words."""
    rate = ["-b:v", "4M", "-maxrate", "4M", "-bufsize", "2M", "-g", "60", "-sc_threshold", "0", "-bf", "0"]
    x264 = ["-c:v", "libx264", "-preset", "superfast", "-tune", "zerolatency", "-profile:v", "high", *rate]
    return ["-v", "error", "-nostdin", "-y", "-i", source, *x264, "-c:a", "libopus", "-b:a", "128k"]


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
    answers_file = bench.rig.new_file("answers")
    prober: list[str | Path] = [sys.executable, "-m", "benchmarks.prober", str(worker.port), answers_file]
    with contextlib.ExitStack() as stack:

        def probe(program: Program, seconds: float) -> None:
            if not answers_file.exists():
                stack.enter_context(running("prober", prober, bench.rig.new_file("prober.log")))
                wait_until("the prober", answers_file.exists)

        run = bench.rig.stream(worker, Recipe(seconds=max(20.0, bench.seconds / 3)), probe)
    loaded = next((output.at for output in run.outputs if output.number is not None), None)
    if loaded is None:
        raise BenchmarkError("the busy processor gave nothing out")
    end = max(run.fed.values())
    times = [(at, took / 1e6) for took, at in notes.read(answers_file)]
    loading = [took for at, took in times if at < loaded]
    working = [took for at, took in times if loaded <= at < end]
    return Spread.of(loading), Spread.of(working)


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


# -- f: what sessions leave behind -------------------------------------------------------------------------

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
                held.append(held_by(program))
            urls = bench.rig.channels(base, f"{number}-")
            worker.start_stream(urls, 512, 512)
            for index, part in enumerate(parts):
                trickle("POST", f"{urls['subscribe_url']}/{index}", part)
            for url in urls.values():
                trickle("DELETE", url)
            worker.ready(program)
        time.sleep(1)
        held.append(held_by(program))
    before, after = held
    grown = {name: after[name] - before[name] for name in before if after[name] > before[name]}
    value = ", ".join(f"{name} {before[name]} to {after[name]}" for name in before)
    name = f"f held before and after {SESSIONS} sessions"
    bench.report.add(name, "headrace", value, "the same", not grown)
    bench.report.data["f"] = {"before": before, "after": after}


def held_by(program: Program) -> dict[str, int]:
    """What the worker's processes hold, all of them together."""
    held = dict.fromkeys(("processes", "threads", "descriptors", "memory files"), 0)
    for process in program.tree:
        links = [os.readlink(link.path) for link in os.scandir(f"/proc/{process.pid}/fd")]
        held["processes"] += 1
        held["threads"] += process.num_threads()
        held["descriptors"] += len(links)
        held["memory files"] += sum("memfd:" in link for link in links)
    return held

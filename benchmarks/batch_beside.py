"""A live stream beside batch work that does not yield, on one machine's cores."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks import live_model, notes
from benchmarks.batch_models import NAME
from benchmarks.batch_rig import MEGA, Bench, Caller, Repeater, chat
from benchmarks.measures import find
from benchmarks.report import Spread
from benchmarks.rig import Run
from benchmarks.workers import ROOT, BenchmarkError, Program, Worker
from byoc.mock.clip import Recipe

RATIO = 1.5
MODEL_MS = 10.0
CALL_MS = 100.0
WARM_UP_S = 5.0
LEAST_S = 10.0
LEAST_PAIRS = 3
PROMPT = "The wheel turns. " * 15
"""With the template's tokens one chunk of a prompt: one pass through the model, and nothing else."""
ALONE, BESIDE = "alone", "beside batch"


class WarmWorker(Worker):
    """A worker that has answered the batch call once before it gets its stream."""

    def ready(self, program: Program) -> float:
        taken = super().ready(program)
        with Caller(self) as caller:
            caller.post("/llm", BODY)
        return taken


BODY = chat(NAME, PROMPT, 1)


@dataclass
class Streams:
    """What the streams of one kind gave, all of them together; milliseconds."""

    model: list[float] = field(default_factory=list)
    glass: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)
    stages: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    frames: int = 0
    shown: int = 0

    @classmethod
    def together(cls, several: Sequence[Streams]) -> Streams:
        whole = cls()
        for each in several:
            whole.model += each.model
            whole.glass += each.glass
            whole.calls += each.calls
            whole.frames += each.frames
            whole.shown += each.shown
            for name, figures in each.stages.items():
                whole.stages.setdefault(name, []).extend(figures)
        return whole

    def stage(self, name: str, figure: str = "p95_ms") -> float:
        """The session's own figure, over the streams."""
        values = [each[figure] for each in self.stages.get(name, ())]
        if not values:
            raise BenchmarkError(f"the session does not tell of {name}")
        return float(sum(values) / len(values))


def beside(bench: Bench) -> None:
    """A live model of some 8 ms a frame, alone and beside one batch call after the other, in pairs.

    What counts is the ratio within a pair, and of these the median: both streams of a pair meet the same
    machine, as far as another program lets them, and each comes first as often as the other.
    """
    rounds = _calibrated()
    pairs = []
    for number in range(max(LEAST_PAIRS, bench.rounds)):
        pair = {ALONE: Streams(), BESIDE: Streams()}
        for name in (ALONE, BESIDE) if number % 2 == 0 else (BESIDE, ALONE):
            _stream(bench, pair[name], rounds, loaded=name == BESIDE)
        pairs.append(pair)
    kinds = {name: Streams.together([pair[name] for pair in pairs]) for name in (ALONE, BESIDE)}
    _report(bench, kinds)
    _compare(bench, [(pair[ALONE], pair[BESIDE]) for pair in pairs])


def _calibrated() -> int:
    command = [sys.executable, "-m", "benchmarks.live_model"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise BenchmarkError(f"the live model cannot be calibrated: {done.stderr.strip()[-500:]}")
    return int(done.stdout)


def _stream(bench: Bench, streams: Streams, rounds: int, *, loaded: bool) -> None:
    """One stream on a fresh worker; with ``loaded`` batch calls run from its first frame to its end."""
    times = bench.rig.new_file("times")
    plain = bench.worker(
        {"processor": "benchmarks.live_model:Convolve"},
        **{live_model.ROUNDS: str(rounds), live_model.TIMES: str(times)},
    )
    worker = WarmWorker(plain.name, plain.command, plain.port, plain.params, plain.environment)
    with contextlib.ExitStack() as stack:
        calling: list[Calling] = []
        begun = False

        def during(program: Program, seconds: float) -> None:
            nonlocal begun
            if not begun:
                begun = True
                stack.enter_context(bench.probing(BESIDE if loaded else f"live {ALONE}", worker))
                if loaded:
                    caller = stack.enter_context(Caller(worker))
                    calling.append(stack.enter_context(Calling(caller, streams.calls)))
            for each in calling:
                each.check()

        run = bench.rig.stream(worker, Recipe(seconds=max(bench.seconds, LEAST_S)), during)
    _collect(streams, run, list(notes.read(times)))


class Calling(Repeater):
    """Batch calls one after the other; the last one may fail, because the worker ends before it does."""

    def __init__(self, caller: Caller, taken: list[float]) -> None:
        super().__init__(lambda: taken.append(caller.post("/llm", BODY)[0]))

    def __enter__(self) -> Calling:
        return self

    def stop(self) -> None:
        with contextlib.suppress(BenchmarkError):
            super().stop()


def _collect(streams: Streams, run: Run, times: list[tuple[int, int]]) -> None:
    start, end = min(run.fed.values()) + int(WARM_UP_S * 1e9), max(run.fed.values())
    streams.model += [took / MEGA for took, at in times if start <= at <= end]
    streams.glass += run.glass_ms(WARM_UP_S)
    streams.frames += sum(at >= start for at in run.fed.values())
    streams.shown += len(run.glass_ms(WARM_UP_S))
    for name, figures in (find(run.status, "latency") or {}).items():
        streams.stages.setdefault(name, []).append(figures)


def _report(bench: Bench, kinds: dict[str, Streams]) -> None:
    alone, loaded = kinds[ALONE], kinds[BESIDE]
    add = bench.report.add
    model = Spread.of(alone.model)
    value = f"p50 {model.p50:.1f}  p95 {model.p95:.1f}"
    add("live model alone, ms a frame", "headrace", value, f"p50 <= {MODEL_MS:g}", model.p50 <= MODEL_MS)
    calls = Spread.of(loaded.calls)
    value = f"p50 {calls.p50:.0f}  least {min(loaded.calls, default=0):.0f}  ({calls.count})"
    long_enough = bool(loaded.calls) and min(loaded.calls) >= CALL_MS
    add("batch call beside it, ms", "headrace", value, f">= {CALL_MS:g}", long_enough)
    for name, streams in kinds.items():
        value = f"{streams.shown / streams.frames:.1%} of {streams.frames}"
        add(f"live frames that came out, {name}", "headrace", value)
    for name, streams in kinds.items():
        stages = ", ".join(f"{stage} {streams.stage(stage):.1f}" for stage in streams.stages)
        bench.report.notes.append(f"{name}, p95 of each stage, ms: {stages}")
    bench.report.data["beside"] = {
        name: {"model_ms": each.model, "glass_ms": each.glass, "calls_ms": each.calls, "stages": each.stages}
        for name, each in kinds.items()
    }


def _compare(bench: Bench, pairs: Sequence[tuple[Streams, Streams]]) -> None:
    figures: dict[str, Callable[[Streams], float]] = {
        "taken to result": lambda streams: streams.stage("process"),
        "received to encoded": lambda streams: streams.stage("received_to_encoded"),
        "last byte in to picture out": lambda streams: Spread.of(streams.glass).p95,
        "the model's own time": lambda streams: Spread.of(streams.model).p95,
    }
    for name, figure in figures.items():
        found = [(figure(alone), figure(loaded)) for alone, loaded in pairs]
        ratios = sorted(busy / quiet for quiet, busy in found)
        ratio = statistics.median(ratios)
        told = ", ".join(f"{quiet:.1f} to {busy:.1f}" for quiet, busy in found)
        value = f"{ratio:.2f}  (pairs, ms: {told})"
        inside = name == "the model's own time"
        target, met = ("", None) if inside else (f"<= {RATIO:g}", ratio <= RATIO)
        bench.report.add(f"live p95, {name}: beside / alone", "headrace", value, target, met)
        bench.report.data.setdefault("pairs", {})[name] = found

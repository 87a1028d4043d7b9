"""The measurements of the live path; each makes its runs and adds its rows to the report."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import processors
from benchmarks.report import Report, Spread, slope
from benchmarks.rig import Rig, Run
from byoc.mock.clip import Recipe

WARM_UP_S = 5.0
TAKE_S = 0.04
INVERT = {
    "1": {"class_type": "LoadTensor", "inputs": {}},
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    "3": {"class_type": "SaveTensor", "inputs": {"images": ["2", 0]}},
}
"""A workflow whose pictures can be told from the source's by their barcode."""


@dataclass(frozen=True)
class Bench:
    """What every measurement has at hand. ``peer`` is PyTrickle's interpreter, None without it."""

    rig: Rig
    report: Report
    peer: Path | None
    seconds: float
    rounds: int
    block: bool


# -- a: a processor slower than the source -----------------------------------------------------------------


def slow_processor(bench: Bench) -> None:
    """30 frames a second in, a processor that takes 40 ms: how old is a frame when it is taken?"""
    # Allocators take a minute or so to settle, and what is asked is how they go on.
    recipe = Recipe(seconds=3 * bench.seconds)
    environment = {processors.TAKE: str(TAKE_S), **({processors.BLOCK: "1"} if bench.block else {})}
    ours = bench.rig.headrace({"processor": "benchmarks.processors:Slow"}, **environment)
    runs = [bench.rig.stream(ours, recipe)]
    if bench.peer:
        theirs = bench.rig.pytrickle(bench.peer, "slow", **environment)
        runs.append(bench.rig.stream(theirs, recipe))
    kind = "time.sleep" if bench.block else "asyncio.sleep"
    bench.report.notes.append(f"a: the processor takes {TAKE_S * 1000:.0f} ms by {kind} in both workers")
    for run in runs:
        _report_ages(bench, run, recipe.seconds)


def _report_ages(bench: Bench, run: Run, end: float) -> None:
    ours = run.worker == "headrace"
    span = min(10.0, (end - WARM_UP_S) / 2)
    ages, glass = Spread.of(run.ages_ms(WARM_UP_S)), Spread.of(run.glass_ms(WARM_UP_S))
    first = Spread.of(run.ages_ms(WARM_UP_S, WARM_UP_S + span))
    last = Spread.of(run.ages_ms(end - span, end))
    growth = last.p50 - first.p50
    memory = _memory_slope(run)
    report = bench.report
    add = report.add
    add(
        "a age of a frame when taken, ms",
        run.worker,
        f"p50 {ages.p50:.1f}  p95 {ages.p95:.1f}  p99 {ages.p99:.1f}  ({ages.count} frames)",
        "p50 <= 35" if ours else "",
        ages.p50 <= 35 if ours else None,
    )
    add(
        f"a growth of its p50 over {end:.0f} s, ms",
        run.worker,
        f"{growth:+.1f}",
        "none (< 5)" if ours else "",
        growth < 5 if ours else None,
    )
    add(
        "a resident memory, MB/min",
        run.worker,
        f"{memory:+.2f}",
        "< 1" if ours else "",
        memory < 1 if ours else None,
    )
    add("a last byte in to picture out, ms", run.worker, f"p50 {glass.p50:.1f}  p95 {glass.p95:.1f}")
    report.data.setdefault("a", {})[run.worker] = {
        "age_ms": _as_dict(ages),
        "age_first_ms": _as_dict(first),
        "age_last_ms": _as_dict(last),
        "glass_ms": _as_dict(glass),
        "memory_mb_per_min": memory,
        "status": run.status,
    }


def _memory_slope(run: Run) -> float:
    """MB a minute, over the second half of the run."""
    start, end = run.samples[0].at, run.samples[-1].at
    late = [sample for sample in run.samples if sample.at > (start + end) / 2]
    return slope([sample.at / 60e9 for sample in late], [sample.resident_bytes / 1e6 for sample in late])


# -- b: what a frame costs ---------------------------------------------------------------------------------

SIZES = ((512, 512, 2_000_000), (1280, 720, 4_000_000))


def passthrough(bench: Bench) -> None:
    """30 frames a second through a processor that does nothing: CPU time per frame, and delay."""
    seconds = max(15.0, bench.seconds / 3)
    for width, height, bitrate in SIZES:
        recipe = Recipe(width, height, seconds=seconds, bitrate=bitrate)
        runs: dict[str, list[Run]] = {}
        for _ in range(bench.rounds):
            workers = [bench.rig.headrace({"workflow": "passthrough"})]
            if bench.peer:
                workers.append(bench.rig.pytrickle(bench.peer, "passthrough"))
            for worker in workers:
                runs.setdefault(worker.name, []).append(bench.rig.stream(worker, recipe))
        _report_costs(bench, f"{width}x{height}", runs)


def _report_costs(bench: Bench, size: str, runs: dict[str, list[Run]]) -> None:
    costs = {name: [run.cpu_per_output(WARM_UP_S) * 1000 for run in made] for name, made in runs.items()}
    data = bench.report.data.setdefault("b", {}).setdefault(size, {})
    for name, made in runs.items():
        glass = Spread.of([value for run in made for value in run.glass_ms(WARM_UP_S)])
        cost = statistics.median(costs[name])
        published = sum(len(run.outputs) for run in made) / sum(len(run.fed) for run in made)
        each = " ".join(f"{value:.2f}" for value in costs[name])
        bench.report.add(f"b {size} CPU per frame, ms", name, f"{cost:.2f}  (rounds: {each})")
        bench.report.add(
            f"b {size} last byte in to picture out, ms",
            name,
            f"p50 {glass.p50:.1f}  p95 {glass.p95:.1f}  p99 {glass.p99:.1f}  ({published:.0%} of frames)",
        )
        data[name] = {"cpu_ms": costs[name], "glass_ms": _as_dict(glass), "status": made[-1].status}
    if len(costs) == 2:
        pairs = zip(costs["headrace"], costs["pytrickle"], strict=True)
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        bench.report.add(
            f"b {size} CPU, headrace / pytrickle", "both", f"{ratio:.2f}", "<= 0.6", ratio <= 0.6
        )
        data["ratio"] = ratio
    latency = find(runs["headrace"][-1].status, "latency") or {}
    encoded = latency.get("received_to_encoded", {})
    if encoded.get("p50_ms") is not None:
        small = size == "512x512"
        bench.report.add(
            f"b {size} last byte received to encoded, ms",
            "headrace",
            f"p50 {encoded['p50_ms']:.1f}  p95 {encoded['p95_ms']:.1f}  p99 {encoded['p99_ms']:.1f}",
            "p50 <= 12" if small else "",
            encoded["p50_ms"] <= 12 if small else None,
        )
        stages = [f"{name} {figures['p50_ms']:.1f}" for name, figures in latency.items()]
        bench.report.notes.append(f"b {size}, p50 of each stage, ms: {', '.join(stages)}")


def find(status: Any, key: str) -> Any:
    """The first value of ``key`` anywhere in a status."""
    if isinstance(status, dict):
        if key in status:
            return status[key]
        status = list(status.values())
    if isinstance(status, list):
        return next((value for part in status if (value := find(part, key)) is not None), None)
    return None


def _as_dict(spread: Spread) -> dict[str, float]:
    return {"p50": spread.p50, "p95": spread.p95, "p99": spread.p99, "max": spread.most, "n": spread.count}

"""What hundreds of short streams leave behind in a container author's server."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.byoc_start import end_channels
from benchmarks.measures import Bench
from benchmarks.process_measures import held_by
from benchmarks.workers import BenchmarkError, Program, Worker, request, running, trickle
from byoc.mock import clip
from byoc.mock.clip import Recipe

WARM_UP = 30
"""Cycles before the first count: allocators and caches have settled by then."""
SETTLE_S = 4.0
"""The server gives freed memory back two seconds after a stream."""
GROWTH = 1.05


def cycles(bench: Bench, count: int) -> None:
    """Start, a little input, parameters, stop; over and over."""
    worker = bench.rig.byoc("invert")
    segments = clip.cut(bench.rig.clip(Recipe(256, 256, seconds=1, key_every=0.5)))
    parts = [b"".join(chunk.data for chunk in segment) for segment in segments]
    log = bench.rig.new_file("cycles.log")
    with (
        bench.rig.trickle_server() as base,
        running(worker.name, worker.command, log, worker.environment) as program,
    ):
        worker.ready(program)
        for number in range(WARM_UP):
            _cycle(bench, worker, program, base, f"w{number}", parts)
        before = _held(worker, program)
        for number in range(count):
            _cycle(bench, worker, program, base, str(number), parts)
        after = _held(worker, program)
    bench.report.notes.append("d: threads without those of asyncio's pool, which has at most cores + 4")
    exact = {name: (before[name], after[name]) for name in before if name != "MB resident"}
    same = all(ours <= theirs for theirs, ours in exact.values())
    value = ", ".join(f"{name} {a} to {b}" for name, (a, b) in exact.items())
    bench.report.add(f"d held before and after {count} cycles", "headrace", value, "the same", same)
    grown = after["MB resident"] / before["MB resident"]
    value = f"{before['MB resident']:.1f} to {after['MB resident']:.1f} MB ({grown - 1:+.1%})"
    bench.report.add(f"d resident before and after {count} cycles", "headrace", value, "5 %", grown <= GROWTH)
    bench.report.data["d"] = {"before": before, "after": after}


def _cycle(bench: Bench, worker: Worker, program: Program, base: str, name: str, parts: list[bytes]) -> None:
    urls = bench.rig.channels(base, f"{name}-")
    worker.start_stream(urls, 256, 256)
    for index, part in enumerate(parts):
        trickle("POST", f"{urls['subscribe_url']}/{index}", part)
    status, answer = request(f"{worker.url}/stream/params", {"strength": name})
    if status != 200:
        raise BenchmarkError(f"the parameters of cycle {name} were refused: {status} {answer}")
    status, answer = request(f"{worker.url}/stream/stop", {})
    if status != 200:
        raise BenchmarkError(f"cycle {name} could not be stopped: {status} {answer}")
    end_channels(urls.values())
    worker.ready(program)


def _held(worker: Worker, program: Program) -> dict[str, Any]:
    time.sleep(SETTLE_S)
    status, counted = request(f"{worker.url}/counted")
    if status != 200:
        raise BenchmarkError(f"{worker.name} does not count its tasks: {status}")
    held = held_by(program)
    held["threads"] -= counted["pool"]
    return {**held, "tasks": counted["tasks"], "MB resident": program.resident_bytes() / 1e6}

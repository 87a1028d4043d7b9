"""A container author's server beside PyTrickle: the same processors, the same clip, the same run.

    python benchmarks/byoc.py [--peer pytrickle] [--only a,b,c,d] [--seconds 20] [--cycles 500] [--json FILE]

a: how old a frame is when a processor slower than the source takes it
b: what a frame costs when every pixel is worked on, and the codecs alone
c: from /stream/start to the first processed picture
d: what cycles of start, parameters and stop leave behind
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

if not __package__:
    # Run as a script: the packages lie beside this folder, which has a module of the name of one.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from rich.console import Console

from benchmarks import byoc_cycles, byoc_floor, byoc_start, processors
from benchmarks.command import measure, peer_of, selection, tell
from benchmarks.measures import WARM_UP_S, Bench
from benchmarks.report import Report, Spread
from benchmarks.rig import Rig, Run
from benchmarks.workers import ROOT, BenchmarkError, Worker
from byoc.mock.clip import Recipe

TAKE_S = 0.04
CALM_FPS = 30
HALF = 0.5


def workers_of(bench: Bench, processor: str, **environment: str) -> list[Worker]:
    """Ours and, where it is there, the peer's."""
    ours = bench.rig.byoc(processor, **environment)
    return [ours, bench.rig.pytrickle(bench.peer, processor, **environment)] if bench.peer else [ours]


def _rounds(bench: Bench, processor: str, fps: int, **environment: str) -> dict[str, list[Run]]:
    recipe = Recipe(fps=fps, seconds=max(12.0, bench.seconds))
    runs: dict[str, list[Run]] = {}
    for _ in range(bench.rounds):
        for worker in workers_of(bench, processor, **environment):
            runs.setdefault(worker.name, []).append(bench.rig.stream(worker, recipe))
    return runs


def slow(bench: Bench) -> None:
    """30 frames a second into a processor that takes 40 ms (asyncio.sleep)."""
    runs = _rounds(bench, "slow", 30, **{processors.TAKE: str(TAKE_S)})
    ages = {name: [Spread.of(run.ages_ms(WARM_UP_S)) for run in made] for name, made in runs.items()}
    for name, spreads in ages.items():
        middle = statistics.median(spread.p50 for spread in spreads)
        worst = max(spread.p95 for spread in spreads)
        bench.report.add("a age when taken, ms", name, f"p50 {middle:.1f}  p95 {worst:.1f}")
    compare(bench, "a age when taken", {name: [s.p50 for s in spreads] for name, spreads in ages.items()})


def invert(bench: Bench) -> None:
    """Frames of 512 x 512 through ``1 - tensor``, and what the codecs take of that."""
    runs = _rounds(bench, "invert", CALM_FPS)
    _costs(bench, "b CPU per frame", runs)
    _floors(bench, runs)
    glass = {name: [Spread.of(run.glass_ms(WARM_UP_S)).p50 for run in made] for name, made in runs.items()}
    for name, values in glass.items():
        bench.report.add("b last byte in to picture out, ms", name, f"p50 {statistics.median(values):.1f}")
    compare(bench, "b last byte in to picture out", glass)


def _costs(bench: Bench, what: str, runs: dict[str, list[Run]]) -> None:
    costs = {name: [run.cpu_per_output(WARM_UP_S) * 1000 for run in made] for name, made in runs.items()}
    for name, values in costs.items():
        each = " ".join(f"{value:.2f}" for value in values)
        made = runs[name]
        published = sum(len(run.outputs) for run in made) / sum(len(run.fed) for run in made)
        text = f"{statistics.median(values):.2f}  (rounds: {each}; {published:.0%} of frames)"
        bench.report.add(f"{what}, ms", name, text)
    compare(bench, what, costs)


def _floors(bench: Bench, runs: dict[str, list[Run]]) -> None:
    what = "b of it codecs and RGB alone, by FFmpeg"
    try:
        floors = byoc_floor.floors(bench, Recipe(fps=CALM_FPS, seconds=max(12.0, bench.seconds)))
    except BenchmarkError as error:
        bench.report.notes.append(f"{what}: {error}")
        return
    for name, cost in floors.items():
        bench.report.add(f"{what}, ms", f"settings of {name}", f"{cost:.2f}")
    bench.report.data[what] = floors
    if "pytrickle" in runs:
        theirs = statistics.median(run.cpu_per_output(WARM_UP_S) * 1000 for run in runs["pytrickle"])
        bench.report.add(
            f"{what}, ratio to PyTrickle's whole", "headrace", f"{floors['headrace'] / theirs:.2f}"
        )


def first(bench: Bench) -> None:
    """The input flows already when the stream is started."""
    times = {
        worker.name: byoc_start.first_pictures(bench, worker, bench.rounds)
        for worker in workers_of(bench, "invert")
    }
    for name, values in times.items():
        each = " ".join(f"{value:.0f}" for value in values)
        bench.report.add(
            "c start to first processed picture, ms", name, f"{statistics.median(values):.0f}  ({each})"
        )
    compare(bench, "c start to first processed picture", times)


def compare(bench: Bench, what: str, values: dict[str, list[float]]) -> None:
    """The median of the rounds' ratios, ours to theirs."""
    bench.report.data[what] = values
    if len(values) == 2:
        pairs = zip(values["headrace"], values["pytrickle"], strict=True)
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        bench.report.add(f"{what}, ratio to PyTrickle", "headrace", f"{ratio:.2f}", "<= 0.5", ratio <= HALF)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    measurements: dict[str, Callable[[Bench], None]] = {"a": slow, "b": invert, "c": first}
    names = [*measurements, "d"]
    parser.add_argument("--peer", choices=["pytrickle"], help="run this beside, from its own environment")
    parser.add_argument("--only", type=selection(names), default=names, help="a selection, like a,b")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a run of a and b (default 20)")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds of a and b (default 3)")
    parser.add_argument("--cycles", type=int, default=500, help="cycles of d (default 500)")
    parser.add_argument("--json", type=Path, help="write every figure here too")
    arguments = parser.parse_args()

    def cycled(bench: Bench) -> None:
        """Start, a little input, parameters, stop; over and over."""
        byoc_cycles.cycles(bench, arguments.cycles)

    measurements["d"] = cycled
    # Its programs are ended on the way out, so a request to stop must come that way.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    console = Console(width=None if sys.stdout.isatty() else 140)
    report = Report("A container author's server")
    folder = Path(tempfile.mkdtemp(prefix="headrace-bench-"))
    rig = Rig(folder, ROOT / ".benchmarks", console.print)
    peer = peer_of(arguments.peer, console.print, report)
    bench = Bench(rig, report, peer, arguments.seconds, arguments.rounds, block=False)
    status = measure(measurements, arguments.only, bench, report, console)
    tell(report, console, folder, arguments.json)
    return status


if __name__ == "__main__":
    sys.exit(main())

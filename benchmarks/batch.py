"""Batch requests under measurement: what they cost, and what live streams feel of them.

    python -m benchmarks.batch [--only overhead,cold,...] [--seconds 20] [--rounds 2] [--json FILE]

overhead: warm requests against the same pipeline called directly   cold: ten requests, one load
beside: a live stream beside batch calls that do not yield   memory: load, unload, load
shared: two engines on one checkpoint

`/health` is asked for every 20 ms throughout; what is judged is the p99 of a typical window of ten seconds,
and that of all answers stands beside it. Streams alone and beside batch calls are compared in pairs, by the
median of their ratios.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from benchmarks import batch_beside, batch_measures
from benchmarks.batch_rig import Bench
from benchmarks.command import measure, selection, tell
from benchmarks.report import Report
from benchmarks.rig import Rig
from benchmarks.workers import ROOT

MEASUREMENTS: dict[str, Callable[[Bench], None]] = {
    "overhead": batch_measures.overhead,
    "cold": batch_measures.cold,
    "beside": batch_beside.beside,
    "memory": batch_measures.memory,
    "shared": batch_measures.shared,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        type=selection(MEASUREMENTS),
        default=list(MEASUREMENTS),
        help="a selection, like cold,shared",
    )
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="of each stream, and of each kind of request (default 20)"
    )
    parser.add_argument("--rounds", type=int, default=2, help="alternating rounds of beside (default 2)")
    parser.add_argument("--json", type=Path, help="write every figure here too")
    parser.add_argument("--keep", type=Path, help="folder for logs (default: a temporary one)")
    arguments = parser.parse_args()
    # Its programs are ended on the way out, so a request to stop must come that way.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    console = Console(width=None if sys.stdout.isatty() else 140)
    report = Report(title="Headrace, batch requests")
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="headrace-batch-"))
    base = ROOT / ".benchmarks"
    rig = Rig(folder, base, console.print)
    bench = Bench(rig, report, arguments.seconds, arguments.rounds, base)
    status = measure(MEASUREMENTS, arguments.only, bench, report, console)
    if bench.probed:
        bench.tell_health()
    tell(report, console, folder, arguments.json)
    return status


if __name__ == "__main__":
    sys.exit(main())

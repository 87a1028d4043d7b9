"""The live path under measurement, side by side with PyTrickle on the same clip in the same run.

    python benchmarks/live.py [--peer pytrickle] [--only a,b,...] [--seconds 60] [--json FILE]

a: a processor slower than the source   b: pass-through   c: file to file   d: /health   e: a dying engine
f: what sessions leave behind
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

if not __package__:
    # Run as a script: the packages lie beside this folder.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from rich.console import Console

from benchmarks import measures, process_measures
from benchmarks.command import measure, peer_of, selection, tell
from benchmarks.measures import Bench
from benchmarks.report import Report
from benchmarks.rig import Rig
from benchmarks.workers import ROOT

MEASUREMENTS: dict[str, Callable[[Bench], None]] = {
    "a": measures.slow_processor,
    "b": measures.passthrough,
    "c": process_measures.files,
    "d": process_measures.health,
    "e": process_measures.recovery,
    "f": process_measures.leftovers,
}


def main() -> int:
    arguments = _parser().parse_args()
    # Its programs are ended on the way out, so a request to stop must come that way.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    console = Console(width=None if sys.stdout.isatty() else 140)
    report = Report()
    peer = peer_of(arguments.peer, console.print, report)
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="headrace-bench-"))
    rig = Rig(folder, ROOT / ".benchmarks", console.print)
    bench = Bench(rig, report, peer, arguments.seconds, arguments.rounds, arguments.block)
    status = measure(MEASUREMENTS, arguments.only, bench, report, console)
    tell(report, console, folder, arguments.json)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peer", choices=["pytrickle"], help="run this beside Headrace, from its own environment"
    )
    parser.add_argument(
        "--only", type=selection(MEASUREMENTS), default=list(MEASUREMENTS), help="a selection, like a,b"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="a runs three times this long, b and d a third, c half (default 60)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds of b and c (default 3)")
    parser.add_argument(
        "--block", action="store_true", help="the slow processor holds its thread (time.sleep)"
    )
    parser.add_argument("--json", type=Path, help="write every figure here too")
    parser.add_argument("--keep", type=Path, help="folder for logs and notes (default: a temporary one)")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""WebRTC under measurement, beside an echo server of stock aiortc in the same run.

    python -m benchmarks.webrtc [--only echo,viewers,...] [--seconds 20] [--rounds 3] [--json FILE]

echo: delay and CPU time of pass-through, there and back   viewers: what each further WHEP viewer costs
slow: memory and lip sync behind a slow model   start: from the request to the first processed picture
cycles: what connections leave behind
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from benchmarks import webrtc_measures as measures
from benchmarks.command import measure, selection, tell
from benchmarks.report import Report
from benchmarks.webrtc_rig import RtcRig
from benchmarks.workers import ROOT

MEASUREMENTS: dict[str, Callable[[measures.Bench], None]] = {
    "echo": measures.echo,
    "viewers": measures.viewers,
    "slow": measures.slow_model,
    "start": measures.start,
    "cycles": measures.cycles,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", type=selection(MEASUREMENTS), default=list(MEASUREMENTS), help="a selection, like echo,slow"
    )
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="of each run; slow three times (default 20)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds of echo (default 3)")
    parser.add_argument("--cycles", type=int, default=200, help="connections of cycles (default 200)")
    parser.add_argument("--json", type=Path, help="write every figure here too")
    parser.add_argument("--keep", type=Path, help="folder for logs (default: a temporary one)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    console = Console(width=None if sys.stdout.isatty() else 140)
    report = Report(title="Headrace by WebRTC")
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="headrace-rtc-"))
    rig = RtcRig(folder, ROOT / ".benchmarks", console.print)
    bench = measures.Bench(rig, report, arguments.seconds, arguments.rounds, arguments.cycles)
    status = measure(MEASUREMENTS, arguments.only, bench, report, console)
    tell(report, console, folder, arguments.json)
    return status


if __name__ == "__main__":
    sys.exit(main())

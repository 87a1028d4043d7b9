"""What an operator sees: does the state of a healthy stream hold, and do many sessions share the machine?

    python -m benchmarks.operating [--only i,ii] [--seconds 600] [--fair-seconds 60] [--json FILE]

i: the state of a perfect 24 fps stream   ii: 8 sessions of 320x240 at 15 fps: states, fairness, `/metrics`

The program plays the clips too, as a child of itself: one process for all channels, and nobody reads the
output, so that little of the machine goes into anything but the worker.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import aiohttp
import av
from rich.console import Console

from benchmarks.report import Report, Spread
from benchmarks.rig import Rig
from benchmarks.workers import ROOT, BenchmarkError, Program, Worker, request, running, wait_until
from byoc.mock import clip
from byoc.mock.clip import Chunk, Recipe

LEAD_S = 0.5
"""From the start of the player to its first frame."""
WARM_UP_S = 15.0
"""At most this long from the first frame to ONLINE, and in all before fairness is measured."""
LOOP_S = 32
"""Length of the clip that is played over and over: a whole number of pictures and of AAC frames."""
SESSIONS = 8
SCRAPE_S = 0.5
WORKFLOW = "edges"
KEEPALIVE_S = 10.0
"""A gateway says this often on the control channel that it is there; trickle servers close idle channels."""


# -- playing -----------------------------------------------------------------------------------------------


def looped(source: Path, rounds: int, path: Path) -> Path:
    """The clip ``rounds`` times on end as one file, its timestamps running on; nothing is encoded anew."""
    with av.open(path, "w", format="mp4") as output:
        copies: dict[int, Any] = {}
        last: dict[int, int] = {}
        for number in range(rounds):
            with av.open(source) as played:
                for stream in played.streams:
                    if stream.index not in copies:
                        copies[stream.index] = output.add_stream_from_template(stream)
                for packet in played.demux():
                    if packet.dts is None or packet.pts is None:
                        continue
                    shift = round(number * LOOP_S / packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    index = packet.stream.index
                    # The encoder's priming, which comes before 0, is in the first round alone.
                    if packet.dts > last.get(index, -(1 << 62)):
                        last[index] = packet.dts
                        packet.stream = copies[index]
                        output.mux_one(packet)
    return path


async def play(urls: Sequence[str], controls: Sequence[str], segments: Sequence[list[Chunk]]) -> None:
    """Publish the segments to every channel in real time; the channels are spread over a frame's time.

    Meanwhile the control channels get keepalives, as a gateway sends them.
    """
    start = time.monotonic() + LEAD_S

    async def body(segment: list[Chunk], offset: float) -> AsyncIterator[bytes]:
        for chunk in segment:
            await asyncio.sleep(start + offset + chunk.due - time.monotonic())
            yield chunk.data

    async def publish(session: aiohttp.ClientSession, url: str, offset: float) -> None:
        for index, segment in enumerate(segments):
            async with session.post(f"{url}/{index}", data=body(segment, offset)) as answer:
                answer.raise_for_status()

    async def keep_alive(session: aiohttp.ClientSession) -> None:
        for number in itertools.count():
            for url in controls:
                async with session.post(f"{url}/{number}", data=b'{"keep": "alive"}') as answer:
                    answer.raise_for_status()
            await asyncio.sleep(KEEPALIVE_S)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        keeping = asyncio.create_task(keep_alive(session))
        try:
            async with asyncio.TaskGroup() as group:
                for number, url in enumerate(urls):
                    group.create_task(publish(session, url, number / len(urls) / 15))
        finally:
            keeping.cancel()
            await asyncio.wait({keeping})
        if not keeping.cancelled():
            keeping.result()


# -- watching ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Look:
    """What the worker said of a session at ``at`` (s); ``processed`` counts results of the workflow."""

    at: float
    state: str
    processed: int


def look(worker: Worker, session: str) -> Look:
    """Raises `BenchmarkError` when the worker does not know the session."""
    try:
        status, body = request(f"{worker.url}/stream/status?stream_id={session}", timeout=5)
    except OSError as error:
        raise BenchmarkError(f"no answer to /stream/status: {error}") from error
    if status != 200 or not isinstance(body.get("session"), dict):
        raise BenchmarkError(f"/stream/status of {session}: {status} {body}")
    report = body["session"]
    processed = report["latency"].get("process", {}).get("count", 0)
    return Look(time.monotonic(), report["state"], processed)


def spells(looks: Sequence[Look]) -> list[tuple[str, float]]:
    """The states in their order, each with the seconds from its first look to the next state's."""
    groups = [list(group) for _, group in groupby(looks, key=lambda each: each.state)]
    begins = [group[0].at for group in groups] + [looks[-1].at]
    return [
        (group[0].state, round(end - begin, 1))
        for group, (begin, end) in zip(groups, pairwise(begins), strict=True)
    ]


def scraped(port: int, taken: list[float], size: list[int]) -> None:
    """One scrape of `/metrics` as a collector makes it: a new connection, the body read to its end."""
    begun = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise BenchmarkError(f"/metrics did not answer: {error}") from error
    finally:
        connection.close()
    taken.append((time.perf_counter() - begun) * 1000)
    size.append(len(body))
    if answer.status != 200:
        raise BenchmarkError(f"/metrics answered {answer.status}")


class CpuShare:
    """Cores used by programs since it was made."""

    def __init__(self, *programs: Program) -> None:
        self._programs = programs
        self._at, self._before = time.monotonic(), [program.cpu_seconds() for program in programs]

    def cores(self) -> dict[str, float]:
        span = time.monotonic() - self._at
        pairs = zip(self._programs, self._before, strict=True)
        return {program.name: round((program.cpu_seconds() - before) / span, 2) for program, before in pairs}


# -- the measurements --------------------------------------------------------------------------------------


@dataclass
class Stage:
    """A worker with sessions that are being fed."""

    worker: Worker
    program: Program
    player: Program
    sessions: list[str]

    def looks(self) -> list[Look]:
        self.program.check()
        self.player.check()
        return [look(self.worker, session) for session in self.sessions]

    def reason(self) -> str:
        """Why the first session ended."""
        _, body = request(f"{self.worker.url}/stream/status?stream_id={self.sessions[0]}")
        return str(body["session"]["reason"])

    def wait_online(self) -> None:
        def online() -> bool:
            return all(each.state == "ONLINE" for each in self.looks())

        wait_until("ONLINE", online, [self.program, self.player], WARM_UP_S + LEAD_S + 20)


@contextlib.contextmanager
def staged(rig: Rig, recipe: Recipe, count: int, seconds: float, workflow: str) -> Iterator[Stage]:
    """``count`` sessions on a fresh worker, played to for at least ``seconds``."""
    rounds = math.ceil(seconds / LOOP_S)
    path = looped(rig.clip(recipe), rounds, rig.new_file("played.mp4"))
    worker = rig.headrace({"workflow": workflow}, HEADRACE_CAPACITY=str(count))
    names = [f"s{number}" for number in range(count)]
    with (
        rig.trickle_server() as base,
        running(worker.name, worker.command, rig.new_file("worker.log"), worker.environment) as program,
    ):
        worker.ready(program)
        streams = [start_session(rig, worker, base, name, recipe) for name in names]
        player: list[str | Path] = [sys.executable, "-m", "benchmarks.operating", "--play", path]
        for urls in streams:
            player += ["--into", urls["subscribe_url"], "--control", urls["control_url"]]
        with running("player", player, rig.new_file("player.log")) as playing:
            yield Stage(worker, program, playing, names)


def start_session(rig: Rig, worker: Worker, base: str, name: str, recipe: Recipe) -> dict[str, str]:
    """Start one; the URLs of its channels."""
    urls = rig.channels(base, f"{name}-")
    size = {"width": recipe.width, "height": recipe.height}
    body = {**urls, "gateway_request_id": name, "params": {**size, **worker.params}}
    status, answer = request(f"{worker.url}/live-video-to-video", body)
    if status != 200:
        raise BenchmarkError(f"{worker.name} refused the stream: {status} {answer}")
    return urls


def steady_state(rig: Rig, report: Report, seconds: float) -> None:
    """A perfect 24 fps stream: the state asked for every second after the first ONLINE."""
    recipe = Recipe(fps=24, seconds=LOOP_S, bitrate=1_000_000)
    with staged(rig, recipe, 1, seconds + WARM_UP_S + 25, "passthrough") as stage:
        stage.wait_online()
        share = CpuShare(stage.program, stage.player)
        looks = stage.looks()
        while looks[-1].at - looks[0].at < seconds:
            time.sleep(1)
            looks += stage.looks()
            if looks[-1].state == "OFFLINE":
                report.notes.append(f"i: the session ended: {stage.reason()}")
                break
        cores = share.cores()
    found = spells(looks)
    span = looks[-1].at - looks[0].at
    processed = (looks[-1].processed - looks[0].processed) / span
    text = ", ".join(f"{state} {length:.1f} s" for state, length in found)
    steady = {state for state, _ in found} == {"ONLINE"}
    report.add("i states of a 24 fps stream, 512x512", "headrace", text, "ONLINE alone", steady)
    report.add("i results a second", "headrace", f"{processed:.2f}", "", None)
    report.add("i cores used", "headrace", _text(cores))
    report.data["i"] = {"spells": found, "looks": len(looks), "processed_fps": processed, "cores": cores}


def fairness(rig: Rig, report: Report, seconds: float) -> None:
    """8 sessions of 320x240 at 15 fps: their states and shares, and how long a scrape takes meanwhile."""
    recipe = Recipe(320, 240, fps=15, seconds=LOOP_S, bitrate=250_000)
    with staged(rig, recipe, SESSIONS, seconds + WARM_UP_S + 45, WORKFLOW) as stage:
        stage.wait_online()
        time.sleep(WARM_UP_S)
        share = CpuShare(stage.program, stage.player)
        rounds = [stage.looks()]
        taken: list[float] = []
        size: list[int] = []
        begun = time.monotonic()
        for number in range(int(seconds / SCRAPE_S)):
            time.sleep(max(0.0, begun + number * SCRAPE_S - time.monotonic()))
            scraped(stage.worker.port, taken, size)
            if number % 4 == 3:
                rounds.append(stage.looks())
        rounds.append(stage.looks())
        cores = share.cores()
    _report_fairness(report, list(zip(*rounds, strict=True)))
    spread = Spread.of(taken)
    value = f"p50 {spread.p50:.1f}  p99 {spread.p99:.1f}  max {spread.most:.1f}  ({spread.count})"
    report.add(f"ii /metrics of {max(size) // 1024} KiB, ms", "headrace", value, "p99 < 20", spread.p99 < 20)
    report.add("ii cores used", "headrace", _text(cores))
    report.data["ii"] |= {"metrics_ms": taken, "metrics_bytes": max(size), "cores": cores}
    report.notes.append(f"ii: workflow `{WORKFLOW}`, {SESSIONS} channels fed by one process")


def _report_fairness(report: Report, series: Sequence[Sequence[Look]]) -> None:
    rates = [(one[-1].processed - one[0].processed) / (one[-1].at - one[0].at) for one in series]
    mean = sum(rates) / len(rates)
    unfair = (max(rates) - min(rates)) / mean if mean else math.inf
    states = {state for one in series for state, _ in spells(one)}
    name = f"ii states of {len(series)} sessions, 320x240 at 15 fps"
    report.add(name, "headrace", ", ".join(sorted(states)), "ONLINE alone", states == {"ONLINE"})
    value = f"{unfair:.1%}  ({min(rates):.2f} to {max(rates):.2f} results a second)"
    report.add("ii (most - least) / mean of results", "headrace", value, "<= 10%", unfair <= 0.1)
    report.data["ii"] = {"rates": rates, "unfairness": unfair, "spells": [spells(one) for one in series]}


def _text(cores: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in cores.items())


# -- the program -------------------------------------------------------------------------------------------


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.play:
        asyncio.run(play(arguments.into, arguments.control, clip.cut(arguments.play)))
        return 0
    # Its programs are ended on the way out, so a request to stop must come that way.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    console = Console(width=None if sys.stdout.isatty() else 140)
    report, failed = Report(), False
    report.data["load_before"] = os.getloadavg()
    folder = Path(tempfile.mkdtemp(prefix="headrace-operator-"))
    rig = Rig(folder, ROOT / ".benchmarks", console.print)
    measurements = {"i": (steady_state, arguments.seconds), "ii": (fairness, arguments.fair_seconds)}
    for name in arguments.only.split(","):
        measure, seconds = measurements[name]
        console.print(f"[bold]{name}[/]: {(measure.__doc__ or '').splitlines()[0]}")
        try:
            measure(rig, report, seconds)
        except (BenchmarkError, subprocess.SubprocessError) as error:
            failed = True
            console.print(f"{name} could not be measured: {error}", markup=False, highlight=False)
            report.notes.append(f"{name}: could not be measured: {str(error).splitlines()[0]}")
    report.data["load_after"] = os.getloadavg()
    loads = [" ".join(f"{each:.1f}" for each in report.data[f"load_{when}"]) for when in ("before", "after")]
    report.notes.append(f"load averages of the machine: {loads[0]} before, {loads[1]} after")
    report.show(console)
    console.print(f"logs: {folder}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report.as_json(), indent=1) + "\n")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["i", "ii", "i,ii"], default="i,ii", help="one of the two")
    parser.add_argument("--seconds", type=float, default=600.0, help="i is watched this long (default 600)")
    parser.add_argument(
        "--fair-seconds", type=float, default=60.0, help="ii is watched this long (default 60)"
    )
    parser.add_argument("--json", type=Path, help="write every figure here too")
    parser.add_argument("--play", type=Path, help=argparse.SUPPRESS)
    for name in ("--into", "--control"):
        parser.add_argument(name, action="append", default=[], help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())

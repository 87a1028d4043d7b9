"""The measurements by WebRTC; each makes its runs and adds its rows to the report."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import processors
from benchmarks.measures import INVERT
from benchmarks.report import Report, Spread, slope
from benchmarks.rtc_media import AUDIO_CLOCK
from benchmarks.webrtc_rig import WARM_UP_S, RtcRig, RtcRun
from benchmarks.workers import BenchmarkError, Program, request, wait_until
from byoc.mock.clip import Recipe

FPS = 30
TAKE_S = 0.066
SIZES = ((640, 480), (1280, 720))


@dataclass(frozen=True)
class Bench:
    """What every measurement has at hand."""

    rig: RtcRig
    report: Report
    seconds: float
    rounds: int
    cycles: int


def _recipe(width: int, height: int, seconds: float) -> Recipe:
    return Recipe(width, height, seconds=seconds, audio=None, bitrate=2_000_000)


# -- echo ------------------------------------------------------------------------------------------------


def echo(bench: Bench) -> None:
    """Pass-through there and back, 30 frames a second: delay and CPU time beside stock aiortc."""
    for width, height in SIZES:
        recipe = _recipe(width, height, bench.seconds)
        runs: dict[str, list[RtcRun]] = {"headrace": [], "aiortc": []}
        for _ in range(bench.rounds):
            with bench.rig.headrace() as (server, url):
                runs["headrace"].append(bench.rig.send(server, url, recipe, "--sound"))
            with bench.rig.stock() as (server, url):
                runs["aiortc"].append(bench.rig.send(server, url, recipe, "--sound"))
        _report_echo(bench.report, f"{width}x{height}", runs)


def _report_echo(report: Report, size: str, runs: dict[str, list[RtcRun]]) -> None:
    delays = {
        name: Spread.of([delay for run in made for delay in run.delays_ms()]) for name, made in runs.items()
    }
    costs = {name: [run.cpu_share() for run in made] for name, made in runs.items()}
    for name, spread in delays.items():
        report.add(
            f"echo {size} there and back, ms",
            name,
            f"p50 {spread.p50:.1f}  p95 {spread.p95:.1f}  p99 {spread.p99:.1f}  ({spread.count} frames)",
        )
        rate = statistics.median(run.bitrate() for run in runs[name])
        cost = statistics.median(costs[name])
        rounds = " ".join(f"{each:.3f}" for each in costs[name])
        report.add(
            f"echo {size} CPU s a second",
            name,
            f"{cost:.3f}  (rounds: {rounds}), {rate / 1e6:.2f} Mbit/s out",
        )
    ours, theirs = delays["headrace"], delays["aiortc"]
    p50, p95 = ours.p50 / theirs.p50, ours.p95 / theirs.p95
    report.add(f"echo {size} delay, ratio p50", "headrace", f"{p50:.2f}", "<= 0.3", p50 <= 0.3)
    report.add(f"echo {size} delay, ratio p95", "headrace", f"{p95:.2f}", "<= 0.4", p95 <= 0.4)
    ratio = statistics.median(costs["headrace"]) / statistics.median(costs["aiortc"])
    report.add(f"echo {size} CPU, ratio", "headrace", f"{ratio:.2f}", "<= 1", ratio <= 1)
    report.data[f"echo {size}"] = {
        name: {"p50": delays[name].p50, "p95": delays[name].p95, "cpu": costs[name]} for name in runs
    }


# -- viewers ---------------------------------------------------------------------------------------------


def viewers(bench: Bench) -> None:
    """What a WHEP viewer costs: nobody watching, one, four."""
    counts = (0, 1, 4)
    recipe = _recipe(640, 480, bench.seconds * len(counts) + 20)
    costs: dict[int, float] = {}
    with bench.rig.headrace() as (server, url):
        options: list[str | Path] = [
            "--clip",
            bench.rig.clip(recipe),
            "--extra",
            '{"receive": false}',
            "--session",
            "shared",
        ]
        with bench.rig.client("send", f"{url}/offer", recipe.seconds, *options) as (sender, _):
            for count in counts:
                costs[count] = _cost_with(bench, server, sender, f"{url}/whep/shared", count)
    first, further = costs[1] - costs[0], (costs[4] - costs[1]) / 3
    for count, cost in costs.items():
        bench.report.add("viewers: CPU s a second", "headrace", f"{cost:.3f} with {count}")
    share = further / first
    bench.report.add(
        "viewers: each further one against the first", "headrace", f"{share:.2f}", "<= 0.25", share <= 0.25
    )
    bench.report.data["viewers"] = costs


def _cost_with(bench: Bench, server: Program, sender: Program, url: str, count: int) -> float:
    bench.rig.say(f"  {count} viewers")
    if count == 0:
        samples = bench.rig.watch(server, sender, bench.seconds)
    else:
        with bench.rig.client("watch", url, bench.seconds, "--viewers", str(count)) as (watching, result):
            samples = bench.rig.watch(server, sender, bench.seconds)
            bench.rig.finish(watching, bench.seconds)
        seen = json.loads(result.read_text())["pictures"]
        if seen < count * (bench.seconds - 3) * FPS * 0.9:
            raise BenchmarkError(f"{count} viewers got {seen} pictures in {bench.seconds:.0f} s")
    return RtcRun("headrace", {}, samples).cpu_share(WARM_UP_S)


# -- a slow model ----------------------------------------------------------------------------------------


def slow_model(bench: Bench) -> None:
    """30 frames a second in, a model of 66 ms: does memory grow, and are lips in step with words?"""
    seconds = 3 * bench.seconds
    recipe = _recipe(640, 480, seconds)
    notes = bench.rig.new_file("taken")
    environment = {processors.TAKE: str(TAKE_S), processors.NOTES: str(notes)}
    extra = json.dumps({"params": {"processor": "benchmarks.processors:Slow"}})
    with bench.rig.headrace(**environment) as (server, url):
        run = bench.rig.send(server, url, recipe, "--sound", "--extra", extra)
    late = [sample for sample in run.samples if sample.at > run.samples[0].at + 20e9]
    minutes = [(sample.at - late[0].at) / 60e9 for sample in late]
    growth = slope(minutes, [sample.resident_bytes / 1e6 for sample in late])
    delays = Spread.of(run.delays_ms())
    report = bench.report
    report.add(
        f"slow: memory over {seconds:.0f} s, MB/min", "headrace", f"{growth:+.2f}", "flat (< 3)", growth < 3
    )
    report.add("slow: there and back, ms", "headrace", f"p50 {delays.p50:.0f}  p95 {delays.p95:.0f}")
    for name, skews in (("by arrival", _skews_by_arrival(run)), ("as played", _skews_as_played(run))):
        worst = max((abs(skew) for skew in skews), default=float("nan"))
        middle = statistics.median(skews) if skews else float("nan")
        report.add(
            f"slow: sound ahead of picture, {name}, ms",
            "headrace",
            f"median {middle:+.0f}, worst {worst:.0f} ({len(skews)} beeps)",
            "< 80",
            worst < 80,
        )
        report.data[f"skew {name}"] = skews


def _first_pictures(run: RtcRun) -> dict[int, tuple[int, int]]:
    """Arrival and RTP timestamp of each picture number when it first came back."""
    first: dict[int, tuple[int, int]] = {}
    for number, _, at, timestamp, _ in run.seen["pictures"]:
        if number is not None:
            first.setdefault(number, (at, timestamp))
    return first


def _beeps(run: RtcRun) -> list[tuple[int, int, int]]:
    """Second, arrival and RTP timestamp of each beep after the warm-up."""
    start = run.seen["start"]
    found = []
    for at, timestamp in run.seen["beeps"]:
        second = round((at - start) / 1e9 - 0.15)
        if second >= WARM_UP_S:
            found.append((second, at, timestamp))
    return found


def _skews_by_arrival(run: RtcRun) -> list[float]:
    """How much longer (ms) a picture was under way than the beep of its moment."""
    pictures = _first_pictures(run)
    skews = []
    for second, at, _ in _beeps(run):
        near = min(pictures, key=lambda number: abs(number - second * FPS), default=None)
        if near is not None and abs(near - second * FPS) <= 3:
            picture = pictures[near][0] - near * 1e9 / FPS
            skews.append((picture - (at - second * 1e9)) / 1e6)
    return skews


def _skews_as_played(run: RtcRun) -> list[float]:
    """The same by the times at which a browser plays them: RTP timestamps mapped by the sender reports."""
    pictures = _first_pictures(run)
    clocks = {kind: _last_report(run, kind) for kind in ("video", "audio")}
    if not all(clocks.values()):
        return []
    skews = []
    for second, _, timestamp in _beeps(run):
        near = min(pictures, key=lambda number: abs(number - second * FPS), default=None)
        if near is None or abs(near - second * FPS) > 3:
            continue
        picture = _played(pictures[near][1], clocks["video"], 90_000) - near / FPS
        skews.append((picture - (_played(timestamp, clocks["audio"], AUDIO_CLOCK) - second)) * 1000)
    return skews


def _last_report(run: RtcRun, kind: str) -> Any:
    return next(((ntp, rtp) for of, ntp, rtp in reversed(run.seen["reports"]) if of == kind), None)


def _played(timestamp: int, report: tuple[int, int], rate: int) -> float:
    ntp, rtp = report
    ahead = (timestamp - rtp + (1 << 31)) % (1 << 32) - (1 << 31)
    return ntp / (1 << 32) + ahead / rate


# -- start -----------------------------------------------------------------------------------------------


def start(bench: Bench) -> None:
    """From the request to the first processed picture at the viewer, engine warm."""
    recipe = _recipe(640, 480, 6)
    waits = []
    with bench.rig.headrace(HEADRACE_PUBLISHER_GRACE="1") as (server, url):
        for number in range(5):
            extra = json.dumps({"prompts": INVERT})
            run = bench.rig.send(server, url, recipe, "--extra", extra, "--session", f"s{number}")
            first = next((at for _, inverted, at, _, _ in run.seen["pictures"] if inverted), None)
            if first is None:
                raise BenchmarkError("no processed picture came")
            waits.append((first - run.seen["posted"]) / 1e6)
    middle = statistics.median(waits)
    bench.report.add(
        "start: request to first processed picture, ms",
        "headrace",
        f"median {middle:.0f}  (each: {' '.join(f'{wait:.0f}' for wait in waits)})",
        "< 1000",
        max(waits) < 1000,
    )


# -- cycles ----------------------------------------------------------------------------------------------


def cycles(bench: Bench) -> None:
    """Connections that come and go: descriptors, threads, memory files and memory before and after."""
    recipe = _recipe(640, 480, 2)
    clip = bench.rig.clip(recipe)
    with bench.rig.headrace(HEADRACE_PUBLISHER_GRACE="1") as (server, url):
        for number in range(10):
            _cycle(bench, url, clip, f"warm{number}")
        before = _settled(server, url)
        for number in range(bench.cycles):
            _cycle(bench, url, clip, f"c{number}")
        after = _settled(server, url)
    grown = after["rss"] / before["rss"] - 1
    same = all(before[key] == after[key] for key in before if key != "rss")
    figures = ", ".join(f"{key} {before[key]} to {after[key]}" for key in before if key != "rss")
    bench.report.add(f"cycles: {bench.cycles} connections", "headrace", figures, "equal", same)
    bench.report.add("cycles: resident memory", "headrace", f"{grown:+.1%}", "within 5 %", grown <= 0.05)


def _cycle(bench: Bench, url: str, clip: Path, session: str) -> None:
    options: list[str | Path] = ["--clip", clip, "--session", session]
    with bench.rig.client("send", f"{url}/offer", 0.5, *options) as (client, _):
        bench.rig.finish(client, 5)


def _settled(server: Program, url: str) -> dict[str, Any]:
    """The worker's figures once its last session is gone."""

    def idle() -> bool:
        _, body = request(f"{url}/stream/status")
        return not body.get("client_active", True)

    wait_until("the end of the last session", idle, [server], timeout=60)
    time.sleep(3)
    folder = Path(f"/proc/{server.process.pid}")
    links = [_link(entry) for entry in (folder / "fd").iterdir()]
    return {
        "descriptors": len(links),
        "memory files": sum("memfd:headrace" in link for link in links),
        "threads": len(list((folder / "task").iterdir())),
        "rss": server.resident_bytes(),
    }


def _link(entry: Path) -> str:
    try:
        return str(entry.readlink())
    except OSError:
        return ""

"""The measurements of batch requests alone: what they cost besides the model, its loads, its memory."""

from __future__ import annotations

import base64
import io
import itertools
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from benchmarks.batch_direct import IMAGE_MODEL, TEXT_MODEL, Answer, Direct
from benchmarks.batch_models import NAME, models_folder, weights_of
from benchmarks.batch_rig import MEGA, Bench, Caller, Memory, Repeater, batch_engine, chat, cores_apart
from benchmarks.report import Spread
from benchmarks.workers import BenchmarkError, Program, Worker, request, running, wait_until

LOAD_S = 180.0

# -- overhead ----------------------------------------------------------------------------------------------

OVERHEAD_MS = 5.0
WARM_UP = 3
LEAST = 10
PAIRS = 4
"""Workers, each with a process of its own to compare with. The same work takes several per cent more or less
from one process to the next, wherever its memory came to lie, and that is no overhead."""
PICTURE = {
    "prompt": "a mill by a river",
    "height": 64,
    "width": 64,
    "num_inference_steps": 4,
    "guidance_scale": 7.5,
    "seed": 7,
}
"""Little, so that what a request adds is seen beside it."""
CHAT = chat(TEXT_MODEL, "How does water drive a mill?", 12)


def overhead(bench: Bench) -> None:
    """Warm requests over HTTP against the same work called directly, in turns: a picture, and a text."""
    pairs = [_pair(bench) for _ in range(PAIRS)]
    for place in pairs[0]:
        _report_overhead(bench, "text-to-image", place, [pair[place][0] for pair in pairs], "diffusers")
        _report_overhead(bench, "llm", place, [pair[place][1] for pair in pairs], "transformers")


def _pair(bench: Bench) -> dict[str, tuple[list[Round], list[Round]]]:
    """What one worker and one process beside it take: with what computes on cores of its own, as when the
    client is on another machine, and wherever the kernel puts them."""
    environment = _engine_environment()
    socket = bench.rig.new_file("direct.socket")
    program: list[str | Path] = [sys.executable, "-m", "benchmarks.batch_direct", socket]
    log = bench.rig.new_file("direct.log")
    made: dict[str, tuple[list[Round], list[Round]]] = {}
    with (
        bench.serving("overhead") as (worker, serving),
        running("direct", program, log, environment) as process,
        Caller(worker) as caller,
    ):
        direct = Direct(socket, process)
        made["anywhere"] = _made(bench, caller, direct)
        if len(os.sched_getaffinity(0)) > 1:
            computing = (batch_engine(serving).pid, process.process.pid)
            with cores_apart(computing):
                made["cores apart"] = _made(bench, caller, direct)
    return made


def _made(bench: Bench, caller: Caller, direct: Direct) -> tuple[list[Round], list[Round]]:
    picture = {**PICTURE, "model_id": IMAGE_MODEL}
    seconds = bench.seconds / PAIRS / 2
    pictures = _in_turns(
        seconds,
        lambda: _by_http(caller, "/text-to-image", picture),
        lambda: direct.call("text-to-image", PICTURE),
        lambda: direct.call("text-to-image library", PICTURE),
    )
    _check_picture(pictures[-1][0].body, pictures[-1][3])
    texts = _in_turns(
        seconds,
        lambda: _by_http(caller, "/llm", CHAT),
        lambda: direct.call("llm", CHAT),
        lambda: direct.call("llm library", CHAT),
    )
    _check_text(texts[-1])
    return pictures, texts


@dataclass(frozen=True, slots=True)
class ByHttp:
    """One request: until its answer was read, and the part of that between the worker and its engine."""

    ms: float
    engine_ms: float
    body: Any


Round = tuple[ByHttp, Answer, ByHttp, Answer]
"""A request, the same by our pipeline; a request, the same by the library's. Each call comes after one in the
other process, so none finds the processor's caches as it left them."""


def _by_http(caller: Caller, path: str, body: dict[str, Any]) -> ByHttp:
    taken, answer = caller.post(path, body)
    return ByHttp(taken, caller.engine_ms, answer)


def _in_turns(
    seconds: float,
    by_http: Callable[[], ByHttp],
    pipeline: Callable[[], Answer],
    library: Callable[[], Answer],
) -> list[Round]:
    """One of each after the other for so long, and at least `LEAST` times."""
    for _ in range(WARM_UP):
        by_http(), pipeline(), by_http(), library()
    rounds: list[Round] = []
    end = time.monotonic() + seconds
    while len(rounds) < LEAST or time.monotonic() < end:
        rounds.append((by_http(), pipeline(), by_http(), library()))
    return rounds


def _report_overhead(
    bench: Bench, pipeline: str, place: str, pairs: Sequence[list[Round]], library: str
) -> None:
    name = f"{pipeline}, {place},"
    rounds = [made for pair in pairs for made in pair]
    http = [made.ms for one, _, other, _ in rounds for made in (one, other)]
    own = [each.ms for _, each, _, _ in rounds]
    theirs = [each.ms for *_, each in rounds]
    encoding = [each.encoding_ms for *_, each in rounds]
    encodes = " and encoding" if any(encoding) else ""
    add = bench.report.add
    columns = {
        "over HTTP": http,
        "our pipeline called directly": own,
        f"{library} called directly{encodes}": theirs,
        "over HTTP, outside the engine": [made.ms - made.engine_ms for made, *_ in rounds],
    }
    if encodes:
        columns["encoding of the picture"] = encoding
    for what, times in columns.items():
        spread = Spread.of(times)
        value = f"p50 {spread.p50:.1f}  p95 {spread.p95:.1f}  least {min(times):.1f}  ({spread.count})"
        add(f"{name} {what}, ms", "headrace", value)
    for what, at in (("our pipeline", 0), (f"{library}{encodes}", 2)):
        # One by one, so that a machine that is slower for a while is so for both.
        each = [statistics.median(made[at].ms - made[at + 1].ms for made in pair) for pair in pairs]
        middle = statistics.median(each)
        value = f"p50 {middle:+.2f}  (by process: {' '.join(f'{one:+.1f}' for one in sorted(each))})"
        met = middle <= OVERHEAD_MS
        add(f"{name} overhead over {what}, ms", "headrace", value, f"<= {OVERHEAD_MS:g}", met)
    bench.report.data.setdefault("overhead", {})[name] = columns


def _check_picture(body: dict[str, Any], direct: Answer) -> None:
    """Both drew the same: all above the mark of random weights."""
    from PIL import Image

    file = base64.b64decode(body["images"][0]["url"].partition(",")[2])
    drawn = Image.open(io.BytesIO(file)).convert("RGB").tobytes()
    above = len(drawn) * 3 // 4
    if drawn[:above] != direct.data[:above]:
        raise BenchmarkError("over HTTP another picture was drawn than directly")


def _check_text(made: Round) -> None:
    texts = {each.body["choices"][0]["message"]["content"] for each in (made[0], made[2])}
    texts |= {each.data.decode() for each in (made[1], made[3])}
    if len(texts) > 1:
        raise BenchmarkError(f"over HTTP and directly other texts were made: {texts}")


def _engine_environment() -> dict[str, str]:
    """That of a batch engine."""
    from headrace.batch.client import default_engine
    from headrace.engine.launch import environment

    return environment(default_engine())


# -- one load ----------------------------------------------------------------------------------------------

AT_ONCE = 10
POLL_S = 0.01


def cold(bench: Bench) -> None:
    """Ten simultaneous requests to a fresh worker for a model that is not loaded."""
    with bench.serving("cold") as (worker, _):
        seen: list[tuple[Any, ...]] = []
        with Repeater(lambda: _look(worker, seen), POLL_S):
            gate = threading.Barrier(AT_ONCE)
            with ThreadPoolExecutor(AT_ONCE) as pool:
                answers = list(pool.map(lambda _: _one(worker, gate), range(AT_ONCE)))
            # Reports of the engine are a moment behind.
            wait_until("the model in /models", lambda: bool(seen) and seen[-1][1] == "loaded")
            time.sleep(0.5)
    loads = {look[3] for look in seen if look[1] == "loaded"}
    states = [state for state, _ in itertools.groupby(look[1] for look in seen)]
    entries = {look[0] for look in seen}
    once = len(entries) == len(loads) == 1 and states in (["loading", "loaded"], ["loaded"])
    texts = {body["choices"][0]["message"]["content"] for _, body in answers}
    times = Spread.of([took for took, _ in answers])
    add = bench.report.add
    value = f"{len(loads)}  ({', '.join(states)}; {min(loads):.2f} s, {len(seen)} looks)"
    add(f"loads for {AT_ONCE} requests for a cold model", "headrace", value, "1", once)
    value = f"{len(answers)} answers, {len(texts)} different"
    add("answers to them", "headrace", value, "all alike", len(texts) == 1)
    add("time to them, ms", "headrace", f"p50 {times.p50:.0f}  max {times.most:.0f}")
    bench.report.data["cold"] = {"looks": seen, "answers_ms": [took for took, _ in answers]}


def _one(worker: Worker, gate: threading.Barrier) -> tuple[float, Any]:
    with Caller(worker) as caller:
        gate.wait(30)
        return caller.post("/llm", chat(NAME, "Good morning.", 8))


def _look(worker: Worker, seen: list[tuple[Any, ...]]) -> None:
    for entry in entries_of(worker):
        key = (entry["engine"], entry["model"], entry["dtype"], entry["kind"])
        seen.append((key, entry["state"], entry["progress"], entry["load_seconds"]))


def entries_of(worker: Worker, model: str = NAME) -> list[dict[str, Any]]:
    """What `/models` tells of ``model``."""
    status, body = request(f"{worker.url}/models")
    if status != 200:
        raise BenchmarkError(f"/models answered {status}: {body}")
    return [entry for entry in body["models"] if entry["model"] == model]


# -- memory ------------------------------------------------------------------------------------------------

LOADS = 4
WITHIN = 0.05


def memory(bench: Bench) -> None:
    """The batch engine's memory after a model was loaded, unloaded and loaded again."""
    files = weights_of(models_folder(bench.base))
    with bench.serving("memory") as (worker, program), Caller(worker) as caller:
        # What is imported with the first request is not the model's.
        caller.post("/llm", chat(TEXT_MODEL, "Good morning.", 8))
        rows: dict[str, list[tuple[Memory, int]]] = {"loaded": [], "unloaded": []}
        for _ in range(LOADS):
            caller.post("/models/warm", {"model_id": NAME, "wait": True})
            for _ in range(3):
                caller.post("/llm", chat(NAME, "Good morning.", 8))
            rows["loaded"].append(_held(worker, program, files))
            caller.post("/models/unload", {"model_id": NAME})
            rows["unloaded"].append(_held(worker, program, files))
    for what, held in rows.items():
        resident = [each.resident / MEGA for each, _ in held]
        again = resident[1] / resident[0] - 1
        last = resident[-1] / resident[0] - 1
        value = (
            f"{again:+.1%}, after {LOADS} times {last:+.1%}  ({' '.join(f'{mb:.0f}' for mb in resident)} MB)"
        )
        met = max(abs(again), abs(last)) <= WITHIN if what == "loaded" else None
        target = f"within {WITHIN:.0%}" if what == "loaded" else ""
        bench.report.add(f"resident memory when {what} again", "headrace", value, target, met)
    figures = [used for _, used in rows["loaded"]]
    value = " ".join(f"{used / MEGA:.1f}" for used in figures)
    same = max(figures) <= figures[0] * (1 + WITHIN)
    bench.report.add("the cache's figure for it, MB", "headrace", value, f"within {WITHIN:.0%}", same)
    left = max(used for _, used in rows["unloaded"])
    bench.report.add(
        "the cache's figure when it is unloaded, MB", "headrace", f"{left / MEGA:.1f}", "0", not left
    )
    bench.report.data["memory"] = {
        what: [{"resident": each.resident, "anonymous": each.anonymous, "cache": used} for each, used in held]
        for what, held in rows.items()
    }


def _held(worker: Worker, program: Program, files: list[Path]) -> tuple[Memory, int]:
    """The engine's memory, and the bytes that the cache tells for the model."""
    # Reports are up to 0.2 s behind, and ended threads give their memory back.
    time.sleep(0.6)
    return Memory.of(batch_engine(program), files), sum(entry["bytes"] for entry in entries_of(worker))


# -- weights in memory once --------------------------------------------------------------------------------


def shared(bench: Bench) -> None:
    """Two batch engines on one checkpoint: what of its weights is in memory, and how often."""
    files = weights_of(models_folder(bench.base))
    size = sum(file.stat().st_size for file in files)
    with bench.serving("shared") as (first, one), bench.serving("shared") as (second, other):
        engines: list[psutil.Process] = []
        before: list[Memory] = []
        for worker, program in ((first, one), (second, other)):
            with Caller(worker) as caller:
                caller.post("/llm", chat(TEXT_MODEL, "Good morning.", 8))
            engines.append(batch_engine(program))
            before.append(Memory.of(engines[-1], files))
        for worker in (first, second):
            with Caller(worker) as caller:
                for _ in range(2):
                    caller.post("/llm", chat(NAME, "Good morning.", 8))
        after = [Memory.of(engine, files) for engine in engines]
    mapped = sum(each.weights_rss for each in after) / size
    share = sum(each.weights_pss for each in after) / size
    private = sum(each.weights_private for each in after) / size
    grown = [(late.anonymous - early.anonymous) / size for early, late in zip(before, after, strict=True)]
    value = f"{share:.2f} x its {size / MEGA:.0f} MB  (mapped {mapped:.2f}, written to {private:.2f})"
    add = bench.report.add
    add("weights of two engines in memory (Pss)", "headrace", value, "once (<= 1.05)", share <= 1.05)
    value = " and ".join(f"{each:+.2f}" for each in grown)
    add("their other memory grew, times the weights", "headrace", value, "no copy (< 0.5)", max(grown) < 0.5)
    bench.report.data["shared"] = {
        "size": size,
        "mapped": mapped,
        "share": share,
        "private": private,
        "anonymous_grown": grown,
        "page": os.sysconf("SC_PAGE_SIZE"),
    }

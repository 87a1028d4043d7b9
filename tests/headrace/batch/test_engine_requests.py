"""Requests through a real batch engine: answers, streams, progress, cancelling, faults."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import pytest_asyncio

from headrace.batch.client import BatchEngine, BatchSettings
from headrace.batch.contract import Progress, TimedOut
from headrace.batch.errors import Interrupted
from headrace.engine.client import EngineProcessor
from headrace.engine.guardian import Engine
from headrace.engine.settings import EngineSettings
from headrace.server.worker import Worker
from headrace.settings import Settings
from stream.errors import AtCapacity, EngineError, InvalidInput, NotFound, ProcessorError
from stream.frames import Picture, Timeline, VideoFrame, plane_shapes

HERE = str(Path(__file__).parent)
PIPELINES = {name: f"batch_pipelines:{name.title()}" for name in ("echo", "trouble", "slow")}
WAIT = 60.0

pytestmark = pytest.mark.asyncio(loop_scope="module")


def settings(tmp_path: Path, **engine: Any) -> BatchSettings:
    stuck = engine.pop("stuck_after", 120.0)
    return BatchSettings(
        EngineSettings(name="batch", device="cpu", threads=1, nice=5, extra_path=(HERE,), **engine),
        folders={name: str(tmp_path / name) for name in ("models", "hub", "cache")},
        pipelines=PIPELINES,
        stuck_after=stuck,
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[BatchEngine]:
    async with BatchEngine(settings(tmp_path_factory.mktemp("requests"))) as engine:
        yield engine


@pytest_asyncio.fixture(loop_scope="module")
async def engine(shared: BatchEngine) -> AsyncIterator[BatchEngine]:
    """The module's engine without any model, or the one that has come after it."""
    await shared.wait_ready(WAIT)
    yield shared
    await shared.wait_ready(WAIT)
    assert shared.under_way == 0
    for entry in await shared.models():
        await shared.unload(entry["key"]["ref"])


async def until(condition: Any) -> None:
    async with asyncio.timeout(WAIT):
        while not condition():  # noqa: ASYNC110 (what changes is in another process)
            await asyncio.sleep(0.01)


async def stream_until_cancelled(processor: EngineProcessor) -> int:
    """How many frames have come back processed, each after the one before. Raises what a frame raises."""
    picture = Picture(
        "rgb24", 4, 4, [np.zeros(shape, np.uint8) for shape in plane_shapes("rgb24", 4, 4)], "bt709", True
    )
    count = 0
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            frame = VideoFrame.from_picture(picture, count, Fraction(1, 90_000), Timeline(1, 2))
            result = await processor.process_video_async(frame)
            assert isinstance(result, VideoFrame)
            assert result.timestamp == count
            count += 1
            await asyncio.sleep(0.01)
    return count


async def test_a_request_is_answered_with_its_files(engine: BatchEngine) -> None:
    blobs = {"small": b"abc", "none": b"", "large": os.urandom(3_000_000)}
    result = await engine.run("echo", "m", {"text": "é", "n": 1}, blobs)
    assert result.blobs == {name: blob[::-1] for name, blob in blobs.items()}
    assert result.body["inputs"] == {"text": "é", "n": 1}
    assert (result.body["threads"], result.body["grad"]) == (1, False)
    assert psutil.Process(result.body["pid"]).nice() >= 5


async def test_pieces_come_in_order_and_before_the_answer(engine: BatchEngine) -> None:
    pieces: list[int] = []
    await engine.run("echo", "m", {"pieces": 3000}, on_piece=lambda piece: pieces.append(piece["number"]))
    assert pieces == list(range(3000))


async def test_progress_grows_and_ends_with_the_last_step(engine: BatchEngine) -> None:
    told: list[Progress] = []
    await engine.run("echo", "m", {"steps": 40, "pause": 0.005}, on_progress=told.append)
    steps = [progress.step for progress in told]
    assert steps == sorted(steps)
    assert told[-1] == Progress("running", 40, 40, "step 40")


async def test_whole_jobs_hold_the_device_one_after_the_other(engine: BatchEngine) -> None:
    under_way: list[str] = []

    async def one(name: str) -> None:
        def told(progress: Progress) -> None:
            under_way.append(name)

        await engine.run("echo", "m", {"steps": 10, "pause": 0.03}, on_progress=told)

    await asyncio.gather(*(one(name) for name in "abc"))
    changes = sum(1 for before, after in itertools.pairwise(under_way) if before != after)
    assert changes == 2


async def test_a_cold_model_is_loaded_once_for_all_who_ask_and_each_hears_how_far_it_is(
    engine: BatchEngine,
) -> None:
    told: list[list[Progress]] = [[] for _ in range(10)]
    results = await asyncio.gather(
        *(engine.run("slow", "cold", {}, on_progress=heard.append) for heard in told)
    )
    assert [result.body["loads"] for result in results] == [1] * 10
    assert all(heard and {p.phase for p in heard} == {"loading"} for heard in told)
    (entry,) = await engine.models()
    assert (entry["key"]["ref"], entry["state"], entry["leases"]) == ("cold", "loaded", 0)
    assert entry["bytes"] >= 4000


async def test_a_warm_model_stays_until_it_is_unloaded(engine: BatchEngine) -> None:
    await engine.warm("slow", "m")
    (entry,) = await engine.models()
    assert entry["pinned"]
    assert await engine.unload("m") >= 4000
    assert await engine.models() == []
    with pytest.raises(NotFound):
        await engine.unload("m")


async def test_a_cancelled_request_ends_between_two_steps(engine: BatchEngine) -> None:
    told: list[Progress] = []
    task = asyncio.create_task(
        engine.run("echo", "m", {"steps": 10_000, "pause": 0.01}, on_progress=told.append)
    )
    await until(lambda: told)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: engine.under_way == 0)
    assert (await engine.run("echo", "m", {"steps": 1})).body["weights"] == "random"


async def test_a_request_that_waits_for_the_device_can_be_cancelled(engine: BatchEngine) -> None:
    told: list[Progress] = []
    first = asyncio.create_task(
        engine.run("echo", "m", {"steps": 10_000, "pause": 0.01}, on_progress=told.append)
    )
    await until(lambda: told)
    with pytest.raises(TimedOut, match=r"0\.2 s"):
        await engine.run("echo", "m", {"steps": 1}, timeout=0.2)
    await until(lambda: engine.under_way == 1)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await until(lambda: engine.under_way == 0)


async def test_errors_come_as_they_were_raised_and_the_engine_goes_on(engine: BatchEngine) -> None:
    with pytest.raises(InvalidInput, match="steps is 0") as caught:
        await engine.run("trouble", "m", {"how": "invalid"})
    assert caught.value.field == "steps"
    with pytest.raises(ProcessorError, match="ZeroDivisionError: a model's own fault"):
        await engine.run("trouble", "m", {"how": "foreign"})
    with pytest.raises(ProcessorError, match="SystemExit"):
        await engine.run("trouble", "m", {"how": "exit"})
    with pytest.raises(AtCapacity, match="no memory left"):
        await engine.run("trouble", "m", {"how": "memory"})
    with pytest.raises(ProcessorError, match="did not say which weights"):
        await engine.run("trouble", "m", {"how": "unsaid"})
    with pytest.raises(NotFound, match="no pipeline 'none'"):
        await engine.run("none", "m", {})
    assert engine.engine.restarts == 0


@pytest_asyncio.fixture(loop_scope="module")
async def live() -> AsyncIterator[EngineProcessor]:
    """A session in a live engine."""
    folder = str(Path(HERE).parent / "engine")
    spec = {"kind": "class", "target": "engine_processors:Touch", "kwargs": {}}
    async with Engine(EngineSettings(name="live", device="cpu", extra_path=(folder,))) as other:
        processor = EngineProcessor(other, spec, session="s", params={})
        await other.wait_ready(WAIT)
        await processor.load_model()
        await processor.on_stream_start({})
        yield processor
        await processor.on_stream_stop()
        assert other.restarts == 0


async def test_an_engine_that_dies_interrupts_its_requests_and_the_next_are_answered(
    engine: BatchEngine, live: EngineProcessor
) -> None:
    frames = asyncio.create_task(stream_until_cancelled(live))
    told: list[Progress] = []
    waiting = [
        asyncio.create_task(
            engine.run("echo", "m", {"steps": 10_000, "pause": 0.01}, on_progress=told.append)
        )
        for _ in range(3)
    ]
    await until(lambda: told)
    assert engine.engine.pid is not None
    os.kill(engine.engine.pid, signal.SIGKILL)
    for error in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(error, Interrupted)
        assert "may be sent again" in error.message
    # Sent while the engine is still starting again.
    assert (await engine.run("echo", "m", {"text": "again"})).body["inputs"] == {"text": "again"}
    assert engine.engine.restarts == 1
    # The live stream beside it has had all of its frames meanwhile.
    assert not frames.done()
    frames.cancel()
    assert await frames > 10


async def test_what_was_warm_is_loaded_again_by_the_next_engine(engine: BatchEngine) -> None:
    await engine.warm("slow", "kept")
    await engine.warm("slow", "let-go")
    await engine.unload("let-go")
    with pytest.raises(Interrupted):
        await engine.run("trouble", "m", {"how": "crash"})
    await until(lambda: engine.engine.state != "ready")
    await engine.wait_ready(WAIT)
    found: list[dict[str, Any]] = []
    while not any(entry["pinned"] for entry in found):
        found = await engine.models()
        await asyncio.sleep(0.02)
    assert [(entry["key"]["ref"], entry["state"]) for entry in found] == [("kept", "loaded")]
    await engine.unload("kept")


async def test_an_engine_that_others_use_answers_and_is_left_to_them(tmp_path: Path) -> None:
    chosen = settings(tmp_path)
    async with Engine(chosen.engine) as live:
        async with BatchEngine(chosen, engine=live) as batch:
            await batch.wait_ready(WAIT)
            answers = await asyncio.gather(*(batch.run("echo", "m", {"steps": 3}) for _ in range(3)))
            assert {answer.body["pid"] for answer in answers} == {live.pid}
        assert live.state == "ready"


async def test_a_worker_has_one_engine_for_everything_where_it_is_told_so() -> None:
    for one in (True, False):
        worker = Worker(Settings(port=0, one_engine=one))
        assert worker.batch is not None
        batch = worker.batch.service.engine
        assert isinstance(batch, BatchEngine)
        assert (batch.engine is worker.engine) is one
        await worker.stop()


async def test_what_goes_on_too_long_is_told_from_what_takes_long(tmp_path: Path) -> None:
    async with BatchEngine(settings(tmp_path, call_timeout=2.0, stuck_after=1.0)) as engine:
        await engine.wait_ready(WAIT)
        # A long silent request is left alone,
        begun = time.monotonic()
        await engine.run("echo", "m", {"steps": 1, "pause": 3.0})
        assert time.monotonic() - begun >= 3.0
        assert engine.engine.restarts == 0
        # one that hears nothing of its cancellation ends the engine in the end,
        with pytest.raises(TimedOut):
            await engine.run("trouble", "m", {"how": "deaf"}, timeout=0.2)
        await until(lambda: engine.engine.restarts == 1)
        assert (await engine.run("echo", "m", {})).body["weights"] == "random"
        # and so does one that keeps the interpreter to itself.
        with pytest.raises(Interrupted):
            await engine.run("trouble", "m", {"how": "hold the lock"})
        await until(lambda: engine.engine.restarts == 2)


async def test_without_an_engine_a_request_says_so(tmp_path: Path) -> None:
    engine = BatchEngine(settings(tmp_path))
    with pytest.raises(EngineError, match="stopped"):
        await engine.run("echo", "m", {})


@pytest.mark.descriptors
async def test_nothing_is_left_open_however_requests_end(engine: BatchEngine) -> None:
    blob = os.urandom(200_000)
    pid = engine.engine.pid
    assert pid is not None

    async def all_ends() -> None:
        await engine.run("echo", "m", {}, {"a": blob, "b": b"x"})
        task = asyncio.create_task(engine.run("echo", "m", {"steps": 5, "pause": 0.01}, {"a": blob}))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with pytest.raises(InvalidInput):
            await engine.run("trouble", "m", {"how": "invalid"}, {"a": blob})

    def rests() -> bool:
        """Whether the engine has let go of all files; it closes the last a moment after its answer."""
        return engine.under_way == 0 and not has_blobs(pid)

    await all_ends()
    await until(rests)
    process = psutil.Process(pid)
    before = process.num_fds()
    for _ in range(30):
        await all_ends()
    await until(rests)
    await until(lambda: process.num_fds() <= before)


def has_blobs(pid: int) -> bool:
    """Whether a process has files of requests open or mapped."""
    if "headrace-blobs" in Path(f"/proc/{pid}/maps").read_text():
        return True
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if "headrace-blobs" in os.readlink(descriptor):
                return True
    return False

"""Engines that die and hang under their sessions, workers that die, and what is left behind: nothing."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import pytest_asyncio

from headrace.engine.client import EngineProcessor
from headrace.engine.guardian import Engine
from headrace.engine.settings import EngineSettings
from stream.errors import EngineError, ProcessorError
from stream.frames import Picture, VideoFrame
from stream.processor import Emission

HERE = Path(__file__).parent


def settings(**changes: Any) -> EngineSettings:
    values: dict[str, Any] = {"device": "cpu", "extra_path": (str(HERE),), "backoff_first": 0.02}
    return EngineSettings(**(values | changes))


def target(name: str, **kwargs: Any) -> dict[str, Any]:
    return {"kind": "class", "target": f"engine_processors:{name}", "kwargs": kwargs}


def video(width: int = 64, height: int = 64) -> VideoFrame:
    rgb = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    return VideoFrame.from_picture(Picture.from_rgb(rgb), 5, Fraction(1, 30))


SHARED = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def lasting() -> AsyncIterator[Engine]:
    """An engine that is started again however often it dies."""
    async with Engine(settings(call_timeout=1.5, backoff_ceiling=0.05, attempts=20)) as engine:
        yield engine


async def poll(condition: Callable[[], bool], timeout: float = 30) -> None:
    """Return when ``condition`` holds; fail when it does not within ``timeout`` seconds."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 (what is waited for tells nobody)
            await asyncio.sleep(0.005)


async def opened(engine: Engine, spec: dict[str, Any], **params: Any) -> EngineProcessor:
    processor = EngineProcessor(engine, spec, session="s")
    await processor.load_model()
    await processor.on_stream_start(params)
    return processor


async def result_of(processor: EngineProcessor, frame: VideoFrame) -> VideoFrame:
    result = await processor.process_video_async(frame)
    assert isinstance(result, VideoFrame)
    return result


async def grey(processor: EngineProcessor) -> int:
    rgb = (await result_of(processor, video())).picture.rgb()
    assert rgb.min() == rgb.max()
    return int(rgb.min())


async def test_sessions_outlive_the_engine_and_keep_their_latest_parameters() -> None:
    engine = Engine(settings())
    with pytest.raises(EngineError, match="the engine is stopped"):
        await opened(engine, target("Touch"))
    async with engine:
        early = EngineProcessor(engine, target("Level"), session="early")
        loading = asyncio.create_task(early.load_model())
        with pytest.raises(EngineError, match="the engine is starting"):
            await early.wait_ready(0.02)
        with pytest.raises(EngineError, match="the engine is starting"):
            await early.process_video_async(video())
        await loading
        await early.on_stream_start({"level": 10})
        await early.update_params({"level": 20})
        slow = await opened(engine, target("Slow", seconds=3.0))

        call = asyncio.create_task(slow.process_video_async(video()))
        await asyncio.sleep(0.2)
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match=r"^the engine is restarting"):
            await call
        assert early.status.phase == "restarting"
        with pytest.raises(EngineError, match="restarting"):
            await early.process_video_async(video())
        with pytest.raises(EngineError, match="restarting"):
            await early.update_params({"level": 30})
        await poll(lambda: "SIGKILL" in early.status.message)

        await early.wait_ready(30)
        assert await grey(early) == 20
        assert early.status.phase == "ready"
        await slow.wait_ready(30)
        assert engine.restarts == 1
    for processor in (early, slow):
        with pytest.raises(EngineError, match="stopped"):
            await processor.process_video_async(video())
        with pytest.raises(EngineError, match="stopped"):
            await processor.wait_ready(5)
        await processor.on_stream_stop()


@SHARED
async def test_engines_that_hang_and_crash_are_replaced_and_frames_flow_again(lasting: Engine) -> None:
    processor = await opened(lasting, target("Faulty"))
    for fault, reason in (("spin", "gave no answer for 1.5 s"), ("segfault", "was killed by SIGSEGV")):
        restarts = lasting.restarts
        await processor.update_params({"fault": fault})
        with pytest.raises(EngineError):
            await processor.process_video_async(video())
        await poll(lambda before=restarts: lasting.restarts > before)  # type: ignore[misc]
        assert lasting.last_exit == reason
        await processor.wait_ready(30)
        frame = video()
        assert await processor.process_video_async(frame) is frame
        assert lasting.restarts == restarts + 1
    assert any("engine_processors.py" in line for line in lasting.last_lines), "where it crashed"
    await processor.on_stream_stop()


@SHARED
async def test_a_session_whose_opening_ends_every_engine_is_given_up_and_the_others_go_on(
    lasting: Engine,
) -> None:
    before = lasting.restarts
    other = await opened(lasting, target("Level"), level=10)
    parent = await opened(lasting, target("Children"))
    told: list[Emission] = []
    parent.bind(told.append)
    await parent.process_video_async(video())
    started_by_it = psutil.Process(told[0].data)
    assert started_by_it.is_running()

    deadly = EngineProcessor(lasting, target("Loads"), session="deadly")
    slow = EngineProcessor(lasting, target("Loads"), session="slow")
    opening = asyncio.create_task(slow.load_model(steps=20))
    dying = asyncio.create_task(deadly.load_model(fail="die"))
    # What ends an engine may be no fault of what was loading, so it is tried again.
    await poll(lambda: lasting.restarts > before)
    assert lasting.last_exit == "exited with status 9"
    await poll(lambda: gone(started_by_it))
    await poll(lambda: deadly.status.phase == "loading")
    assert not dying.done()
    with pytest.raises(ProcessorError, match="ended 3 times in a row while opening this session"):
        async with asyncio.timeout(60):
            await dying
    assert deadly.status.phase == "failed"
    await other.wait_ready(30)
    async with asyncio.timeout(30):
        await opening
    assert await grey(other) == 10
    assert lasting.restarts == before + 3
    await slow.on_stream_start({})
    for processor in (slow, other, parent):
        await processor.on_stream_stop()


# -- workers that die ------------------------------------------------------------------------------------


def gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def ordeal_of_worker(fault: str, moment: str) -> None:
    """Kill a worker whose engine is in that state; its engine must follow."""
    command = [sys.executable, str(HERE / "worker_process.py"), str(HERE), fault, moment]
    worker = subprocess.Popen(  # noqa: ASYNC220
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert worker.stdout is not None
    try:
        engine = psutil.Process(int(await asyncio.to_thread(worker.stdout.readline)))
        assert engine.ppid() == worker.pid
    finally:
        worker.kill()
        worker.wait(10)
        worker.stdout.close()
    await poll(lambda: gone(engine), 2)


async def test_a_killed_worker_takes_its_engine_along_whatever_that_does() -> None:
    async with asyncio.TaskGroup() as group:
        for fault, moment in (("none", "starting"), ("spin", "ready"), ("stop", "ready")):
            group.create_task(ordeal_of_worker(fault, moment))
    await asyncio.get_running_loop().shutdown_default_executor()


# -- nothing is left behind ------------------------------------------------------------------------------


def belongings(pid: int) -> Counter[str]:
    """Descriptors by kind, mapped memory files and threads of a process."""
    found: Counter[str] = Counter()
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[os.readlink(f"/proc/{pid}/fd/{number}").split(":[")[0]] += 1
        except FileNotFoundError:
            continue
    found["mapped"] = sum("memfd:" in line for line in Path(f"/proc/{pid}/maps").read_text().splitlines())
    found["threads"] = len(os.listdir(f"/proc/{pid}/task"))
    return +found


async def left(pid: int, before: Counter[str]) -> Counter[str]:
    """What the process has more than ``before``, once that is nothing, or after a while.

    Less is no fault: threads of whatever ran earlier may have ended meanwhile.
    """
    for _ in range(100):
        gc.collect()
        if not (more := belongings(pid) - before):
            break
        await asyncio.sleep(0.02)
    return more


async def test_nothing_is_left_behind_by_sessions_nor_by_engines_that_died() -> None:
    me = os.getpid()
    children = set(psutil.Process().children())
    bare = belongings(me)
    async with Engine(settings()) as engine:
        await engine.wait_ready(60)

        async def cycle(number: int) -> None:
            processor = await opened(engine, target("Touch"))
            for size in (64, 300 + number):
                await result_of(processor, video(size, 300))
            await processor.on_stream_stop()

        await cycle(0)
        await asyncio.sleep(0.3)
        assert engine.pid is not None
        ours, theirs = belongings(me), belongings(engine.pid)
        assert not ours["mapped"]
        for number in range(30):
            await cycle(number)
        assert not await left(me, ours)
        assert not await left(engine.pid, theirs)

        processor = await opened(engine, target("Touch"))
        await result_of(processor, video(700, 500))
        call = asyncio.create_task(processor.process_video_async(video(700, 500)))
        await asyncio.sleep(0)
        os.kill(engine.pid, signal.SIGKILL)
        assert isinstance((await asyncio.gather(call, return_exceptions=True))[0], (EngineError, VideoFrame))
        await poll(lambda: engine.state != "ready")
        await processor.wait_ready(60)
        await processor.on_stream_stop()
        assert not await left(me, ours)
        assert engine.restarts == 1
    assert set(psutil.Process().children()) == children
    assert not await left(me, bare)

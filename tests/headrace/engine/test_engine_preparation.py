"""Changes of parameters that an engine prepares beside its frames."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from headrace.engine.client import EngineProcessor
from headrace.engine.guardian import Engine
from headrace.engine.settings import EngineSettings
from stream.errors import EngineError, InvalidInput
from stream.frames import Picture, VideoFrame

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALL_TIMEOUT = 1.5


SETTINGS = EngineSettings(
    name="prepare",
    device="cpu",
    extra_path=(str(Path(__file__).parent),),
    call_timeout=CALL_TIMEOUT,
    open_timeout=30,
)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def engine() -> AsyncIterator[Engine]:
    async with Engine(SETTINGS) as engine:
        await engine.wait_ready(60)
        yield engine


async def opened(engine: Engine, name: str, **kwargs: Any) -> EngineProcessor:
    spec = {"kind": "class", "target": f"engine_processors:{name}", "kwargs": kwargs}
    processor = EngineProcessor(engine, spec, session=name)
    await processor.load_model()
    await processor.on_stream_start({})
    return processor


async def grey(processor: EngineProcessor) -> int:
    frame = VideoFrame.from_picture(Picture.from_rgb(np.zeros((8, 8, 3), np.uint8)), 0, Fraction(1, 30))
    result = await processor.process_video_async(frame)
    assert isinstance(result, VideoFrame)
    return int(result.picture.rgb()[0, 0, 0])


async def test_frames_of_all_sessions_go_on_while_a_change_is_prepared(engine: Engine) -> None:
    first, second = await opened(engine, "Prepares", level=10), await opened(engine, "Level", level=20)
    try:
        change = {"level": 90, "seconds": 0.6}
        preparing = asyncio.create_task(first.prepare_params(change))
        frames = 0
        while not preparing.done():
            assert (await grey(first), await grey(second)) == (10, 20)
            frames += 1
        await preparing
        assert frames > 3
        await first.update_params(change)
        assert (await grey(first), await grey(second)) == (90, 20)
    finally:
        await first.on_stream_stop()
        await second.on_stream_stop()


async def test_a_long_preparation_is_no_hang_even_without_frames(engine: Engine) -> None:
    processor = await opened(engine, "Prepares", level=10)
    try:
        generation, change = engine.generation, {"level": 90, "seconds": 2 * CALL_TIMEOUT}
        await processor.prepare_params(change)
        await processor.update_params(change)
        assert await grey(processor) == 90
        assert engine.generation == generation
    finally:
        await processor.on_stream_stop()


async def test_a_change_that_cannot_be_prepared_says_why_and_harms_nothing(engine: Engine) -> None:
    processor = await opened(engine, "Prepares", level=10)
    try:
        with pytest.raises(InvalidInput, match="cannot be prepared"):
            await processor.prepare_params({"fail": 1})
        assert await grey(processor) == 10
    finally:
        await processor.on_stream_stop()


async def test_another_preparation_takes_the_place_of_one_that_goes_on(engine: Engine) -> None:
    processor = await opened(engine, "Prepares", level=10)
    try:
        before = asyncio.create_task(processor.prepare_params({"level": 50, "seconds": 20}))
        await asyncio.sleep(0.2)
        change = {"level": 90, "seconds": 0.1}
        await processor.prepare_params(change)
        with pytest.raises(EngineError, match="another change was begun"):
            await before
        await processor.update_params(change)
        assert await grey(processor) == 90
    finally:
        await processor.on_stream_stop()


async def test_closing_a_session_ends_its_preparation(engine: Engine) -> None:
    processor = await opened(engine, "Prepares", level=10)
    preparing = asyncio.create_task(processor.prepare_params({"level": 50, "seconds": 20}))
    await asyncio.sleep(0.2)
    begun = time.monotonic()
    await processor.on_stream_stop()
    with pytest.raises(EngineError, match="the session was closed"):
        await preparing
    assert time.monotonic() - begun < 5
    again = await opened(engine, "Prepares", level=30)
    assert await grey(again) == 30
    await again.on_stream_stop()


async def test_preparations_that_wait_behind_one_frame_are_all_answered(engine: Engine) -> None:
    processor, generation = await opened(engine, "Slow", seconds=0.2), engine.generation
    frame = asyncio.create_task(grey(processor))
    await asyncio.sleep(0.05)
    first, second = (asyncio.create_task(processor.prepare_params({"n": n})) for n in range(2))
    await asyncio.wait({frame, second})
    with pytest.raises(EngineError, match="another change was begun"):
        await first
    third = asyncio.create_task(grey(processor))
    await asyncio.sleep(0.05)
    last = asyncio.create_task(processor.prepare_params({}))
    await asyncio.sleep(0)
    await processor.on_stream_stop()
    with pytest.raises(EngineError, match="the session was closed"):
        await last
    assert await third == 0
    assert second.exception() is None
    assert (engine.generation, engine.open_calls) == (generation, 0)


async def test_what_is_asked_of_a_session_that_closes_is_refused(engine: Engine) -> None:
    processor, generation = await opened(engine, "Slow", seconds=0, stop=0.3), engine.generation
    closing = asyncio.create_task(processor.on_stream_stop())
    await asyncio.sleep(0.1)
    with pytest.raises(EngineError, match="the session was closed"):
        await processor.update_params({})
    await closing
    assert (engine.generation, engine.open_calls) == (generation, 0)


async def test_an_engine_that_hangs_beside_a_preparation_is_found_as_soon_as_ever(engine: Engine) -> None:
    processor, hung = await opened(engine, "Prepares", level=10), await opened(engine, "Faulty")
    preparing = asyncio.create_task(processor.prepare_params({"level": 50, "seconds": 20}))
    await asyncio.sleep(0.2)
    await hung.update_params({"fault": "spin"})
    begun = time.monotonic()
    with pytest.raises(EngineError):
        await grey(hung)
    with pytest.raises(EngineError):
        await preparing
    assert time.monotonic() - begun < 6 * CALL_TIMEOUT
    await processor.on_stream_stop()
    await hung.on_stream_stop()

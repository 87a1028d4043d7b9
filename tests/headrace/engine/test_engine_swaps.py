"""Sessions whose workflow was replaced, in engines that are killed afterwards."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from headrace.engine.client import EngineProcessor
from headrace.engine.guardian import Engine
from headrace.engine.settings import EngineSettings
from stream.errors import InvalidInput
from stream.frames import Picture, VideoFrame
from workflows import library

_numbers = itertools.count()

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[Engine]:
    async with Engine(EngineSettings(name="swaps", device="cpu", backoff_first=0.02)) as engine:
        await engine.wait_ready(60)
        yield engine


@asynccontextmanager
async def session(engine: Engine, bundled: str, **params: Any) -> AsyncIterator[EngineProcessor]:
    spec = {"kind": "workflow", "workflow": library.load_bundled(bundled)}
    processor = EngineProcessor(engine, spec, session=f"{bundled}-{next(_numbers)}", params=params)
    await processor.load_model()
    await processor.on_stream_start(params)
    try:
        yield processor
    finally:
        await processor.on_stream_stop()


async def swap(processor: EngineProcessor, params: dict[str, Any]) -> None:
    await processor.prepare_params(params)
    await processor.update_params(params)


class Kill:
    """The end of an engine that several sessions live through together."""

    def __init__(self, engine: Engine, sessions: int) -> None:
        self._engine = engine
        self._there = asyncio.Barrier(sessions)
        self._next = asyncio.Event()

    async def lived_through(self, processor: EngineProcessor) -> None:
        """Return when all have come here, the engine was killed, and this session is open in the next."""
        if await self._there.wait() == 0:
            generation = self._engine.generation
            assert self._engine.pid is not None
            os.kill(self._engine.pid, signal.SIGKILL)
            async with asyncio.timeout(60):
                while self._engine.generation == generation:  # noqa: ASYNC110 (who waits is not told)
                    await asyncio.sleep(0.01)
            self._next.set()
        await self._next.wait()
        await processor.wait_ready(60)


async def rgb(processor: EngineProcessor) -> Any:
    noise = np.random.default_rng(7).integers(0, 256, (96, 128, 3), np.uint8)
    frame = VideoFrame.from_picture(Picture.from_rgb(noise), 0, Fraction(1, 30))
    result = await processor.process_video_async(frame)
    assert isinstance(result, VideoFrame)
    return result.picture.rgb()


async def values_given_after_a_swap_are_still_in_force(engine: Engine, kill: Kill) -> None:
    async with session(engine, "edges", **{"2.low_threshold": 0.1}) as processor:
        await swap(processor, {"workflow": "cartoon"})
        default = await rgb(processor)
        await processor.update_params({"3.blend_factor": 0.9})
        before = await rgb(processor)
        assert not np.array_equal(before, default)
        await kill.lived_through(processor)
        assert np.array_equal(await rgb(processor), before)


async def values_of_the_workflow_before_do_not_stand_in_the_way(engine: Engine, kill: Kill) -> None:
    async with session(engine, "edges", **{"canny.low_threshold": 0.2}) as processor:
        await processor.update_params({"canny.high_threshold": 0.5})
        await swap(processor, {"workflow": "passthrough"})
        await kill.lived_through(processor)
        assert processor.status.phase == "ready"


async def swaps_under_different_names_do_not_contradict_one_another(engine: Engine, kill: Kill) -> None:
    async with session(engine, "passthrough") as processor:
        await swap(processor, {"prompt": library.load_bundled("edges")})
        await swap(processor, {"workflow": "cartoon", "3.blend_factor": 0.9})
        before = await rgb(processor)
        await kill.lived_through(processor)
        assert np.array_equal(await rgb(processor), before)


async def a_swap_that_is_refused_is_not_opened(engine: Engine, kill: Kill) -> None:
    async with session(engine, "edges") as processor:
        before = await rgb(processor)
        with pytest.raises(InvalidInput):
            await processor.update_params({"workflow": {"1": {"class_type": "NoSuchNode", "inputs": {}}}})
        await kill.lived_through(processor)
        assert np.array_equal(await rgb(processor), before)


async def what_the_processor_says_of_itself_is_that_of_the_workflow_in_force(
    engine: Engine, kill: Kill
) -> None:
    async with session(engine, "edges") as processor:
        assert set(processor.info().schema["properties"]) == {"2.low_threshold", "2.high_threshold"}
        await processor.update_params({"2.low_threshold": 0.1})
        assert processor.info().schema["properties"]["2.low_threshold"]["default"] == 0.1
        await swap(processor, {"workflow": "cartoon"})
        after = processor.info()
        assert "3.blend_factor" in after.schema["properties"]
        assert "2.low_threshold" not in after.schema["properties"]
        with pytest.raises(InvalidInput):
            await processor.update_params({"2.low_threshold": 0.1})
        assert processor.info() == after
        await kill.lived_through(processor)
        assert processor.info() == after


async def test_the_next_engine_opens_every_session_as_its_swaps_have_left_it(engine: Engine) -> None:
    sessions = (
        values_given_after_a_swap_are_still_in_force,
        values_of_the_workflow_before_do_not_stand_in_the_way,
        swaps_under_different_names_do_not_contradict_one_another,
        a_swap_that_is_refused_is_not_opened,
        what_the_processor_says_of_itself_is_that_of_the_workflow_in_force,
    )
    kill = Kill(engine, len(sessions))
    async with asyncio.TaskGroup() as group:
        for one in sessions:
            group.create_task(one(engine, kill), name=one.__name__)


async def test_a_start_with_another_workflow_changes_what_the_processor_says(engine: Engine) -> None:
    async with session(engine, "edges", workflow="passthrough") as processor:
        assert processor.info().schema["properties"] == {}

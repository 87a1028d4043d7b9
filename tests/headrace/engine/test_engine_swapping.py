"""A session that moves to another engine between two frames, and stays where it is when that fails."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from headrace.engine.client import EngineProcessor, replacing
from headrace.engine.guardian import Engine
from headrace.engine.settings import EngineSettings
from headrace.engine.swapping import SwappingProcessor, Target
from stream.errors import EngineError, HeadraceError, ProcessorError
from stream.frames import Picture, VideoFrame
from stream.processor import Emission, Params

HERE = str(Path(__file__).parent)

pytestmark = pytest.mark.asyncio(loop_scope="module")


def workflow(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {
        "in": {"class_type": "LoadTensor", "inputs": {}},
        "x": {"class_type": class_type, "inputs": {"image": ["in", 0], **inputs}},
        "out": {"class_type": "SaveTensor", "inputs": {"images": ["x", 0]}},
    }


INVERT = workflow("ImageInvert")
SAME = {"in": INVERT["in"], "out": {"class_type": "SaveTensor", "inputs": {"images": ["in", 0]}}}


class Two:
    """Always chooses the other one of two engines."""

    def __init__(self, engines: tuple[Engine, Engine]) -> None:
        self.engines = engines
        self.inside: Counter[str] = Counter()
        self.in_second = asyncio.Event()
        self.notice: str | None = None
        self.spec: dict[str, Any] | None = None
        """What is to run in place of the workflow that comes."""

    def target(self, engine: Engine, spec: dict[str, Any], params: Params) -> Target | None:
        key = replacing(params)
        if key is None:
            return None
        other = self.engines[engine is self.engines[0]]
        rest = {name: value for name, value in params.items() if name != key}
        return Target(self.spec or {**spec, "workflow": params[key]}, rest, other, self.notice)

    async def made_ready(self, engine: Engine) -> None:
        await engine.wait_ready(60)

    def entered(self, engine: Engine) -> None:
        self.inside[engine.settings.name] += 1
        if engine is self.engines[1]:
            self.in_second.set()

    def left(self, engine: Engine) -> None:
        self.inside[engine.settings.name] -= 1


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def engines() -> AsyncIterator[tuple[Engine, Engine]]:
    async with (
        Engine(EngineSettings(name="a", device="cpu")) as a,
        Engine(EngineSettings(name="b", device="cpu", extra_path=(HERE,))) as b,
    ):
        await a.wait_ready(60)
        await b.wait_ready(60)
        # The loop's threads stay: one, from now on.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        await asyncio.to_thread(int)
        yield a, b


def processor_in(two: Two, data: dict[str, Any]) -> SwappingProcessor:
    def make(engine: Engine, spec: dict[str, Any], params: Params) -> EngineProcessor:
        return EngineProcessor(engine, spec, session="s", params=params)

    return SwappingProcessor(two.engines[0], {"kind": "workflow", "workflow": data}, two, make)


async def started(two: Two, data: dict[str, Any]) -> SwappingProcessor:
    made = processor_in(two, data)
    await made.load_model()
    await made.on_stream_start({})
    return made


async def shade(processor: SwappingProcessor, value: int = 51) -> int:
    picture = Picture.from_rgb(np.full((16, 32, 3), value, np.uint8))
    result = await processor.process_video_async(VideoFrame.from_picture(picture, 0, Fraction(1, 30)))
    assert isinstance(result, VideoFrame)
    assert (result.width, result.height) == (32, 16)
    return int(result.tensor[0, 0, 0, 0] * 255 + 0.5)


async def test_a_workflow_is_loaded_in_the_other_engine_and_swapped_in(
    engines: tuple[Engine, Engine],
) -> None:
    two = Two(engines)
    processor = await started(two, INVERT)
    assert processor.inner.engine is engines[0]
    change: Params = {"workflow": SAME}
    preparing = asyncio.ensure_future(processor.prepare_params(change))
    while not preparing.done():
        assert await shade(processor) == 204
    await preparing
    assert await shade(processor) == 204
    assert two.inside == {"a": 1, "b": 1}
    await processor.update_params(change)
    assert processor.inner.engine is engines[1]
    assert await shade(processor) == 51
    await asyncio.gather(*processor._closing)
    assert two.inside == {"a": 0, "b": 1}
    await processor.prepare_params({"workflow": INVERT})
    await processor.update_params({"workflow": INVERT})
    assert processor.inner.engine is engines[0]
    assert await shade(processor) == 204
    await processor.on_stream_stop()
    assert not +two.inside


async def test_how_far_the_other_workflow_is_is_told_while_the_old_one_is_shown(
    engines: tuple[Engine, Engine],
) -> None:
    two = Two(engines)
    processor = processor_in(two, INVERT)
    await processor.load_model(steps=16)  # which only the other one heeds
    await processor.on_stream_start({})
    told: list[Emission] = []
    processor.bind(told.append)
    two.spec = {"kind": "class", "target": "engine_processors:Loads"}
    assert processor.progress() == ("ready", None)
    preparing = asyncio.ensure_future(processor.prepare_params({"workflow": SAME}))
    status = set()
    while not preparing.done():
        status.add(processor.progress())
        await asyncio.sleep(0.01)
    await preparing
    assert {words for words, _ in status} == {"ready"}
    assert any(done is not None and 0 < done < 1 for _, done in status)
    news = [emission.data for emission in told if emission.data["type"] == "progress"]
    percents = [one["percent"] for one in news if one["percent"] is not None]
    assert percents == sorted(percents)
    assert any(0 < percent < 100 for percent in percents)
    assert (news[-1]["message"], percents[-1]) == ("the other workflow: ready", 100)
    assert any("weights" in one["message"] for one in news)
    assert processor.progress() == ("ready", None)
    await processor.on_stream_stop()
    assert not +two.inside


async def test_a_session_counts_as_one_in_an_engine_once_it_loads(engines: tuple[Engine, Engine]) -> None:
    two = Two(engines)
    processor = processor_in(two, INVERT)
    assert not +two.inside
    await processor.load_model()
    assert two.inside == {"a": 1}
    await processor.on_stream_stop()
    assert not +two.inside


@pytest.mark.parametrize(
    "bad", [workflow("NoSuchClass"), workflow("ImageCrop", width=4, height=4, x=99, y=99)]
)
async def test_what_fails_to_load_leaves_the_old_one_running(
    engines: tuple[Engine, Engine], bad: dict[str, Any]
) -> None:
    two = Two(engines)
    processor = await started(two, INVERT)
    with pytest.raises(HeadraceError):
        await processor.prepare_params({"workflow": workflow("NoSuchClass")})
    assert await shade(processor) == 204
    assert processor.inner.engine is engines[0]
    await processor.on_stream_stop()
    assert not +two.inside


async def test_a_first_frame_that_fails_is_found_before_the_swap(engines: tuple[Engine, Engine]) -> None:
    two = Two(engines)
    processor = await started(two, INVERT)
    huge = workflow("ImageScale", upscale_method="nearest-exact", width=8192, height=8192, crop="disabled")
    with pytest.raises(ProcessorError, match=r"made-up picture.*limit"):
        await processor.prepare_params({"workflow": huge})
    assert await shade(processor) == 204
    await processor.on_stream_stop()
    assert not +two.inside


async def test_a_preparation_that_is_given_up_leaves_nothing(engines: tuple[Engine, Engine]) -> None:
    two = Two(engines)
    processor = await started(two, INVERT)
    preparing = asyncio.ensure_future(processor.prepare_params({"workflow": SAME}))
    await asyncio.sleep(0)
    preparing.cancel()
    await asyncio.gather(preparing, return_exceptions=True)
    # One that was prepared and never asked for is dropped by the next.
    await processor.prepare_params({"workflow": SAME})
    await processor.prepare_params({"workflow": INVERT})
    assert await shade(processor) == 204
    await processor.on_stream_stop()
    assert not +two.inside


async def test_a_stop_ends_what_is_being_prepared(engines: tuple[Engine, Engine]) -> None:
    two = Two(engines)
    processor = await started(two, INVERT)
    preparing = asyncio.ensure_future(processor.prepare_params({"workflow": SAME}))
    await asyncio.wait_for(two.in_second.wait(), 10)
    assert two.inside["b"] == 1
    await processor.on_stream_stop()
    with pytest.raises(EngineError, match="closed while another workflow was loaded"):
        await preparing
    assert not +two.inside


async def test_a_stop_while_another_workflow_is_checked_opens_nothing(engines: tuple[Engine, Engine]) -> None:
    two = Two(engines)
    processor = await started(two, INVERT)
    preparing = asyncio.ensure_future(processor.prepare_params({"workflow": SAME}))
    await asyncio.sleep(0)
    await processor.on_stream_stop()
    with pytest.raises(EngineError, match="closed while another workflow was loaded"):
        await preparing
    assert not +two.inside


async def test_parameters_alone_go_to_the_present_one_and_the_user_is_told_of_a_gap(
    engines: tuple[Engine, Engine],
) -> None:
    two = Two(engines)
    processor = await started(two, workflow("ImageScaleBy", upscale_method="nearest-exact", scale_by=1.0))
    told: list[Emission] = []
    processor.bind(told.append)
    await processor.prepare_params({"x.scale_by": 1.0})
    await processor.update_params({"x.scale_by": 1.0})
    assert processor.inner.engine is engines[0]
    assert not told
    two.notice = "the picture may stand still"
    await processor.prepare_params({"workflow": SAME})
    notices = [emission.data["message"] for emission in told if emission.data["type"] == "notice"]
    assert notices == ["the picture may stand still"]
    await processor.update_params({"workflow": SAME})
    assert await shade(processor) == 51
    await processor.on_stream_stop()
    assert not +two.inside


async def test_opening_that_fails_counts_nobody_in(engines: tuple[Engine, Engine]) -> None:
    two = Two(engines)
    processor = processor_in(two, workflow("NoSuchClass"))
    with pytest.raises(HeadraceError):
        await processor.load_model()
    assert not +two.inside

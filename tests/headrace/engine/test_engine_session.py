"""Sessions in a real engine with torch, shared by the tests of this file."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from headrace.engine.client import EngineProcessor
from headrace.engine.client_session import UNREAD
from headrace.engine.guardian import Engine
from headrace.engine.settings import EngineSettings
from stream.errors import EngineError, HeadraceError, InvalidInput, InvalidWorkflow, ProcessorError
from stream.frames import AudioFrame, Picture, Timeline, VideoFrame, plane_shapes
from stream.processor import Emission

pytestmark = pytest.mark.asyncio(loop_scope="module")

HERE = str(Path(__file__).parent)
BASE = Fraction(1, 90_000)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def engine() -> AsyncIterator[Engine]:
    settings = EngineSettings(
        name="test", device="cpu", extra_path=(HERE,), call_timeout=2.5, open_timeout=2.5, nice=1
    )
    async with Engine(settings) as engine:
        await engine.wait_ready(60)
        yield engine


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def hasty() -> AsyncIterator[Engine]:
    """An engine with little patience."""
    settings = EngineSettings(name="hasty", device="cpu", extra_path=(HERE,), call_timeout=1.0, nice=1)
    async with Engine(settings) as engine:
        await engine.wait_ready(60)
        yield engine


def target(name: str, **kwargs: Any) -> dict[str, Any]:
    return {"kind": "class", "target": f"engine_processors:{name}", "kwargs": kwargs}


@asynccontextmanager
async def session(engine: Engine, spec: dict[str, Any], **params: Any) -> AsyncIterator[EngineProcessor]:
    processor = EngineProcessor(engine, spec, session="s", params=params)
    try:
        await processor.load_model()
        await processor.on_stream_start({})
        yield processor
    finally:
        await processor.on_stream_stop()


def noise(width: int, height: int, format_: Any = "rgb24", seed: int = 0) -> Picture:
    values = np.random.default_rng(seed)
    planes = [values.integers(0, 256, shape, np.uint8) for shape in plane_shapes(format_, width, height)]
    return Picture(format_, width, height, planes, "bt709", True)


def video(picture: Picture, pts: int = 0) -> VideoFrame:
    return VideoFrame.from_picture(picture, pts, BASE, Timeline(received=1, decoded=2))


async def one(processor: EngineProcessor, frame: VideoFrame) -> VideoFrame:
    result = await processor.process_video_async(frame)
    assert isinstance(result, VideoFrame)
    return result


def grey_of(frame: VideoFrame) -> int:
    rgb = frame.picture.rgb()
    assert rgb.min() == rgb.max()
    return int(rgb.min())


# -- pictures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Touch", "Planes", "make"])
async def test_pictures_of_all_sizes_come_back_byte_for_byte(engine: Engine, name: str) -> None:
    async with session(engine, target(name)) as processor:
        for number, (width, height) in enumerate(
            [(512, 512), (1280, 720), (2, 2), (1, 1), (33, 17), (641, 359), (16, 9), (1920, 1080), (512, 512)]
        ):
            frame = video(noise(width, height, seed=number), number)
            result = await one(processor, frame)
            assert result is not frame
            assert np.array_equal(result.picture.rgb(), frame.picture.rgb())
            assert (result.timestamp, result.time_base) == (number, BASE)


@pytest.mark.parametrize("size", [(512, 512), (33, 17), (1, 1)])
async def test_yuv_is_converted_with_its_matrix_and_range(engine: Engine, size: tuple[int, int]) -> None:
    async with session(engine, target("Touch")) as processor:
        frame = video(noise(*size, "yuv420p"))
        result = await one(processor, frame)
        assert np.array_equal(result.picture.rgb(), frame.picture.rgb())


async def test_pixels_that_nobody_looks_at_are_not_converted(engine: Engine) -> None:
    """And from the frame on whose pixels are looked at, they are again; that one is converted by torch."""
    formats: list[Any] = []
    frame = video(noise(34, 18, "yuv420p"))
    async with session(engine, target("Peeks")) as processor:
        processor.bind(lambda emission: formats.append(emission.data))
        for _ in range(UNREAD + 2):
            assert await one(processor, frame) is frame
        await processor.update_params({"read": True})
        results = [await one(processor, frame) for _ in range(2)]
        await processor.update_params({"read": False})
        assert await one(processor, frame) is frame
    assert formats == ["rgb24"] * UNREAD + ["yuv420p"] * 3 + ["rgb24"] * 2
    for result in results:
        assert np.abs(result.picture.rgb().astype(int) - frame.picture.rgb()).max() <= 1


@pytest.mark.parametrize("spec", [{"kind": "passthrough"}, target("Look")])
async def test_an_untouched_frame_is_the_same_object_with_its_planes(
    engine: Engine, spec: dict[str, Any]
) -> None:
    async with session(engine, spec) as processor:
        for format_ in ("rgb24", "yuv420p"):
            frame = video(noise(65, 43, format_))
            picture = frame.picture
            assert await processor.process_video_async(frame) is frame
            assert frame.picture is picture


async def test_a_tensor_changed_in_place_is_not_untouched(engine: Engine) -> None:
    async with session(engine, target("InPlace")) as processor:
        frame = video(noise(40, 30))
        result = await one(processor, frame)
        assert np.array_equal(result.picture.rgb(), 255 - frame.picture.rgb())


async def test_a_frame_that_was_kept_still_has_its_own_pixels_later(engine: Engine) -> None:
    async with session(engine, target("Delay")) as processor:
        frames = [video(noise(64, 48, seed=number), number) for number in range(60)]
        assert await processor.process_video_async(frames[0]) is None
        for before, frame in itertools.pairwise(frames):
            result = await one(processor, frame)
            assert result.timestamp == before.timestamp
            assert np.array_equal(result.picture.rgb(), before.picture.rgb())


async def test_the_result_owns_its_bytes(engine: Engine) -> None:
    async with session(engine, target("Touch")) as processor:
        first, second = video(noise(600, 400, seed=1)), video(noise(600, 400, seed=2))
        kept = await one(processor, first)
        await one(processor, second)
        assert np.array_equal(kept.picture.rgb(), first.picture.rgb())


@pytest.mark.parametrize("count", [0, 1, 2, 16])
async def test_several_frames_or_none_come_back(engine: Engine, count: int) -> None:
    async with session(engine, target("Several", count=count)) as processor:
        for pts in range(4):
            frame = video(noise(32, 32), pts * 100)
            result = await processor.process_video_async(frame)
            results = [] if result is None else [result] if isinstance(result, VideoFrame) else list(result)
            assert [grey_of(frame) for frame in results] == list(range(count))
            assert [frame.timestamp for frame in results] == [pts * 100 + n for n in range(count)]


async def test_more_frames_than_the_limit_are_an_error_of_the_processor(engine: Engine) -> None:
    async with session(engine, target("Several", count=17)) as processor:
        with pytest.raises(ProcessorError, match="17 frames; at most 16"):
            await processor.process_video_async(video(noise(8, 8)))


async def test_a_picture_that_no_engine_takes_is_refused_before_it_is_sent(engine: Engine) -> None:
    async with session(engine, {"kind": "passthrough"}) as processor:
        with pytest.raises(InvalidInput, match="16384"):
            await processor.process_video_async(video(noise(20_000, 1)))


async def test_the_timeline_says_when_the_engine_began(engine: Engine) -> None:
    async with session(engine, target("Touch")) as processor:
        frame = video(noise(64, 64))
        frame.side_data.input = "mark"
        before = time.monotonic_ns()
        result = await one(processor, frame)
        timeline = result.timeline
        assert before < timeline.taken < timeline.processed < time.monotonic_ns()
        assert (timeline.received, timeline.decoded) == (1, 2)
        assert result.side_data.input == "mark"


# -- sound -----------------------------------------------------------------------------------------------


def sound(pts: int = 0, samples: int = 960) -> AudioFrame:
    values = np.random.default_rng(pts).normal(0, 0.2, (2, samples)).astype(np.float32)
    return AudioFrame(values, pts, Fraction(1, 48_000), rate=48_000)


async def test_sound_goes_through_the_engine(engine: Engine) -> None:
    async with session(engine, target("Halves")) as processor:
        info = processor.info()
        assert (info.video, info.audio) == (False, True)
        for pts in range(3):
            frame = sound(pts)
            result = await processor.process_audio_async(frame)
            assert result is not None
            assert np.array_equal(result[0].samples, frame.samples * np.float32(0.5))
            assert (result[0].timestamp, result[0].rate, result[0].layout) == (pts, 48_000, "stereo")
            assert result[0].timeline.taken > 0


async def test_sound_as_it_came_changed_in_place_none_two_and_nonsense(engine: Engine) -> None:
    async with session(engine, target("AudioOddities")) as processor:
        frames = [sound(pts) for pts in range(6)]
        same = await processor.process_audio_async(frames[0])
        assert same is not None
        assert same[0] is frames[0]
        changed = await processor.process_audio_async(frames[1])
        assert changed is not None
        assert np.array_equal(changed[0].samples, frames[1].samples * 2)
        assert await processor.process_audio_async(frames[2]) == []
        two = await processor.process_audio_async(frames[3])
        assert two is not None
        assert two[0] is frames[3]
        assert two[1].samples.shape == (2, 10)
        with pytest.raises(ProcessorError, match="not int16"):
            await processor.process_audio_async(frames[4])
        with pytest.raises(ProcessorError, match="returned str"):
            await processor.process_audio_async(frames[5])


# -- faults of a processor -------------------------------------------------------------------------------


async def test_nonsense_is_an_error_of_the_processor_that_says_what_it_was(engine: Engine) -> None:
    async with session(engine, target("Nonsense")) as processor:
        messages = []
        for pts in range(12):
            with pytest.raises(ProcessorError) as caught:
                await processor.process_video_async(video(noise(8, 6), pts))
            messages.append(caught.value.message)
        for message, part in zip(
            messages,
            [
                "returned str",
                "returned Tensor",
                "a list with a int",
                "1000 frames",
                "(5,)",
                "100.00% are NaN",
                "torch.int64",
                "timestamp 1.5",
                "64 bits",
                "time_base",
                "too large",
                "got str",
            ],
            strict=True,
        ):
            assert part in message
        assert engine.restarts == 0


async def test_an_exception_is_an_error_of_its_frame_alone(engine: Engine) -> None:
    async with session(engine, target("Faulty")) as processor:
        for fault, expected in (
            ("raise", "ValueError: the sky is green"),
            ("exit", "SystemExit: 7"),
            ("cancel", "cancelled from within"),
            ("engine", "my own engine is cold"),
        ):
            await processor.update_params({"fault": fault})
            with pytest.raises(ProcessorError, match=expected) as caught:
                await processor.process_video_async(video(noise(8, 8)))
            if fault == "raise":
                assert caught.value.details[0]["type"] == "ValueError"
                assert 'raise ValueError("the sky is green")' in caught.value.details[0]["traceback"]
            frame = video(noise(8, 8))
            assert await processor.process_video_async(frame) is frame
        assert engine.restarts == 0


async def test_a_coroutine_that_never_returns_is_given_up_without_a_restart(engine: Engine) -> None:
    async with (
        session(engine, target("Faulty")) as faulty,
        session(engine, {"kind": "passthrough"}) as other,
    ):
        await faulty.update_params({"fault": "forever"})
        bad = asyncio.create_task(faulty.process_video_async(video(noise(8, 8))))
        await asyncio.sleep(0.05)
        frame = video(noise(8, 8))
        assert await other.process_video_async(frame) is frame
        with pytest.raises(ProcessorError, match="did not return within 2 s"):
            await bad
        assert engine.restarts == 0


async def test_calls_that_keep_the_loop_in_turn_are_no_hang_however_long_the_first_answer_takes(
    engine: Engine,
) -> None:
    """The first of three has its answer after seven stretches: 3.2 s, with a patience of 2.5."""
    async with AsyncExitStack() as streams:
        slow = [await streams.enter_async_context(session(engine, target("Stretches"))) for _ in range(3)]
        frames = [video(noise(8, 8), pts) for pts in range(3)]
        asked = [one.process_video_async(frame) for one, frame in zip(slow, frames, strict=True)]
        assert await asyncio.gather(*asked) == frames
    assert engine.restarts == 0


async def test_a_session_whose_calls_never_return_is_closed_for_the_sake_of_the_others(hasty: Engine) -> None:
    async with (
        session(hasty, target("Waits")) as waits,
        session(hasty, {"kind": "passthrough"}) as other,
    ):
        for pts in (1, 2, 10, 3, 4):
            if pts == 10:
                await waits.process_video_async(video(noise(8, 8), pts))
                continue
            with pytest.raises(ProcessorError, match=r"did not return within 0.8 s$"):
                await waits.process_video_async(video(noise(8, 8), pts))
        with pytest.raises(ProcessorError, match="3 times in a row; the session is closed"):
            await waits.process_video_async(video(noise(8, 8), 5))
        async with asyncio.timeout(5):  # the engine says so after its answer
            while waits.status.phase != "failed":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        for _ in range(2):
            begun = time.monotonic()
            with pytest.raises(ProcessorError, match="the session is closed"):
                await waits.process_video_async(video(noise(8, 8), 10))
            assert time.monotonic() - begun < 0.5
        frame = video(noise(8, 8))
        assert await other.process_video_async(frame) is frame
        with pytest.raises(ProcessorError, match="the session is closed"):
            await waits.wait_ready(5)
    # Nothing is owed any more: a call without an answer would have counted as a hang by now.
    await asyncio.sleep(1.5)
    assert (hasty.restarts, hasty.open_calls) == (0, 0)


# -- opening ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ({"kind": "what"}, InvalidInput, "kind is 'what'"),
        ({"kind": "class", "target": "nothing"}, InvalidInput, "package.module:Class"),
        ({"kind": "class", "target": "no_such_module:X"}, ProcessorError, "no_such_module"),
        (target("NoSuchClass"), ProcessorError, "NoSuchClass"),
        (target("Several"), ProcessorError, "count"),
        (target("make_wrong"), ProcessorError, "not a FrameProcessor"),
        ({"kind": "workflow"}, InvalidInput, "needs the workflow"),
        (
            {"kind": "workflow", "workflow": {"1": {"class_type": "NoSuchNode", "inputs": {}}}},
            InvalidWorkflow,
            "NoSuchNode",
        ),
    ],
)
async def test_what_cannot_be_opened_says_why(
    engine: Engine, spec: dict[str, Any], error: type[HeadraceError], message: str
) -> None:
    processor = EngineProcessor(engine, spec, session="s")
    with pytest.raises(error, match=message) as caught:
        await processor.load_model()
    assert message in caught.value.message
    assert processor.status.phase == "failed"
    with pytest.raises(error):
        await processor.wait_ready(5)
    with pytest.raises(error):
        await processor.process_video_async(video(noise(8, 8)))


@pytest.mark.parametrize(
    ("fail", "message"),
    [("raise", "OSError: no such weights"), ("task", "started a task"), ("cancel", "with CancelledError")],
)
async def test_loading_that_fails_says_why(engine: Engine, fail: str, message: str) -> None:
    processor = EngineProcessor(engine, target("Loads"), session="s")
    with pytest.raises(ProcessorError, match=message):
        await processor.load_model(fail=fail)


async def test_loading_that_never_ends_fails_the_session_and_not_the_engine(engine: Engine) -> None:
    async with session(engine, {"kind": "passthrough"}) as other:
        processor = EngineProcessor(engine, target("Loads"), session="s")
        with pytest.raises(ProcessorError, match="no progress within 2 s"):
            await processor.load_model(fail="block")
        frame = video(noise(8, 8))
        assert await other.process_video_async(frame) is frame
    assert engine.restarts == 0


async def test_parameters_of_a_start_that_are_refused_fail_the_start(engine: Engine) -> None:
    processor = EngineProcessor(engine, target("Level"), session="s")
    await processor.load_model()
    with pytest.raises(InvalidInput, match="level is 900") as caught:
        await processor.on_stream_start({"level": 900})
    assert caught.value.field == "level"


async def test_progress_of_loading_is_seen_and_the_frames_of_others_go_on(engine: Engine) -> None:
    async with session(engine, {"kind": "passthrough"}) as other:
        loading = EngineProcessor(engine, target("Loads"), session="loading")
        task = asyncio.create_task(loading.load_model(steps=10))
        seen, frames = set(), 0
        while not task.done():
            frame = video(noise(8, 8))
            assert await other.process_video_async(frame) is frame
            frames += 1
            status = loading.status
            if status.phase == "loading":
                seen.add((status.message, status.percent))
                with pytest.raises(EngineError, match="loading"):
                    await loading.process_video_async(frame)
            await asyncio.sleep(0.01)
        await task
        assert frames >= 10
        assert ("loading 50 % weights", 50.0) in seen
        assert len(seen) >= 5
        await loading.on_stream_start({})
        assert loading.status.phase == "ready"
        assert loading.progress() == ("ready", None)
        await loading.on_stream_stop()


async def test_the_model_is_told_its_device(engine: Engine) -> None:
    async with session(engine, target("Loads")) as processor:
        told: list[Emission] = []
        processor.bind(told.append)
        await processor.process_video_async(video(noise(8, 8)))
        assert [emission.data for emission in told] == ["cpu"]


async def test_a_session_that_is_given_up_while_it_loads_leaves_nothing(engine: Engine) -> None:
    processor = EngineProcessor(engine, target("Loads"), session="s")
    task = asyncio.create_task(processor.load_model(steps=20))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert processor.status.phase == "stopped"
    with pytest.raises(EngineError, match="not open"):
        await processor.process_video_async(video(noise(8, 8)))
    async with session(engine, {"kind": "passthrough"}) as other:
        frame = video(noise(8, 8))
        assert await other.process_video_async(frame) is frame


async def test_a_workflow_runs_in_the_engine(engine: Engine) -> None:
    graph = {
        "1": {"class_type": "LoadTensor", "inputs": {}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveTensor", "inputs": {"images": ["2", 0]}},
    }
    async with session(engine, {"kind": "workflow", "workflow": graph}) as processor:
        frame = video(noise(40, 30))
        result = await one(processor, frame)
        assert np.array_equal(result.picture.rgb(), 255 - frame.picture.rgb())


# -- parameters and emissions ----------------------------------------------------------------------------


async def test_parameters_hold_from_the_frame_that_the_answer_names(engine: Engine) -> None:
    async with session(engine, target("Level"), level=10) as processor:
        assert processor.info().schema["properties"]["level"]["type"] == "integer"
        levels: list[int] = []
        for number in range(9):
            if number % 3 == 2:
                await processor.update_params({"level": 100 + number})
                assert processor.params_frame == number
            levels.append(grey_of(await one(processor, video(noise(16, 16), number))))
        assert levels == [10, 10, 102, 102, 102, 105, 105, 105, 108]


async def test_parameters_that_are_refused_leave_the_old_ones(engine: Engine) -> None:
    async with session(engine, target("Level"), level=10) as processor:
        with pytest.raises(InvalidInput, match="level is 300") as caught:
            await processor.update_params({"level": 300})
        assert caught.value.field == "level"
        assert grey_of(await one(processor, video(noise(8, 8)))) == 10
    async with session(engine, target("Faulty")) as processor:
        with pytest.raises(ProcessorError, match="no such thing"):
            await processor.update_params({"fault": "refuse"})


async def test_emissions_arrive_in_order_with_the_time_of_their_frame(engine: Engine) -> None:
    async with session(engine, target("Talks")) as processor:
        told: list[Emission] = []
        processor.bind(told.append)
        await processor.process_video_async(video(noise(8, 8), 90_000 * 3))
        assert told == [
            Emission("text", "hello", 3.0),
            Emission("data", {"n": [1, 2.5, None]}, 3.0),
            Emission("event", {"type": "seen"}, 3.0),
        ]
        processor.bind(None)
        await processor.process_video_async(video(noise(8, 8)))
        assert len(told) == 3


async def test_an_emission_that_is_no_json_is_the_processors_error(engine: Engine) -> None:
    async with session(engine, target("Unspeakable")) as processor:
        with pytest.raises(InvalidInput, match="not JSON"):
            await processor.process_video_async(video(noise(8, 8)))


async def test_an_event_that_is_no_object_is_the_processors_error(engine: Engine) -> None:
    async with session(engine, target("WrongEvents")) as processor:
        told: list[Emission] = []
        processor.bind(told.append)
        with pytest.raises(InvalidInput, match="an event is a JSON object, not a list") as caught:
            await processor.process_video_async(video(noise(8, 8)))
        assert caught.value.field == "data"
        assert told == []
        assert engine.restarts == 0


async def test_a_flood_of_emissions_is_bounded_and_harms_nobody(engine: Engine) -> None:
    async with session(engine, target("Faulty")) as processor:
        told: list[Emission] = []
        processor.bind(told.append)
        await processor.update_params({"fault": "chatter"})
        frame = video(noise(8, 8))
        assert await processor.process_video_async(frame) is frame
        assert 50 < len(told) <= 1000
        assert engine.restarts == 0


# -- several sessions ------------------------------------------------------------------------------------


async def test_three_sessions_at_once_do_not_see_each_other(engine: Engine) -> None:
    async def stream(level: int) -> list[int]:
        async with session(engine, target("Level"), level=level) as processor:
            return [grey_of(await one(processor, video(noise(64 + level, 64)))) for _ in range(20)]

    results = await asyncio.gather(*(stream(level) for level in (10, 20, 30)))
    assert results == [[10] * 20, [20] * 20, [30] * 20]


async def test_sessions_take_turns(engine: Engine) -> None:
    finished: list[str] = []

    async def stream(name: str, frames: int) -> None:
        async with session(engine, target("Slow", seconds=0.01)) as processor:
            await together.wait()
            for _ in range(frames):
                await processor.process_video_async(video(noise(8, 8)))
                finished.append(name)

    together = asyncio.Barrier(3)
    await asyncio.gather(*(stream(name, 20) for name in "abc"))
    for start in range(0, 54, 3):
        assert set(finished[start : start + 6]) == {"a", "b", "c"}, finished


async def test_a_frame_may_wait_for_one_of_another_session(engine: Engine) -> None:
    async with session(engine, target("Meets"), level=1) as a, session(engine, target("Meets"), level=2) as b:
        for _ in range(3):
            frames = await asyncio.gather(one(a, video(noise(8, 8))), one(b, video(noise(8, 8))))
            assert [grey_of(frame) for frame in frames] == [1, 2]


async def test_sessions_of_one_class_share_its_model_and_its_calls(engine: Engine) -> None:
    told: list[Any] = []

    async def frames(of: Sequence[EngineProcessor]) -> list[Any]:
        calls = (one(processor, video(noise(8, 8))) for processor in of)
        results = await asyncio.gather(*calls, return_exceptions=True)
        return [r if isinstance(r, BaseException) else grey_of(r) for r in results]

    spec = target("Company")
    async with session(engine, spec, level=7) as a, session(engine, spec, level=9) as b:
        for processor in (a, b):
            processor.bind(lambda emission: told.append(emission.data))
        assert await frames([a, b]) == [7, 9]
        assert told == [[2, 1], [2, 1]]
        # A fault is one stream's own, and its parameters are.
        await b.update_params({"level": 13})
        level, fault = await frames([a, b])
        assert level == 7
        assert isinstance(fault, ProcessorError)
        assert "unlucky" in fault.message
    async with session(engine, spec, level=5) as a:
        a.bind(lambda emission: told.append(emission.data))
        assert await frames([a]) == [5]
        # Nobody had the model any more.
        assert told[-1] == [1, 2]


async def test_a_call_for_several_that_does_not_return_is_given_up(engine: Engine) -> None:
    spec = target("Company")
    async with session(engine, spec, level=5) as a:
        async with session(engine, spec, level=5) as b:
            await b.update_params({"level": 0})
            for result in await asyncio.gather(
                *(one(p, video(noise(8, 8))) for p in (a, b)), return_exceptions=True
            ):
                assert isinstance(result, ProcessorError)
                assert "process_video_batch did not return within" in result.message
        assert grey_of(await one(a, video(noise(8, 8)))) == 5
        assert engine.restarts == 0


@pytest.mark.parametrize("what", ["start", "params", "frame", "stop"])
async def test_what_awaits_in_one_session_leaves_the_frames_of_others_going(
    engine: Engine, what: str
) -> None:
    """It comes back when the other has had five frames, the last of which lets it go on; its modes are its
    own."""
    waits = EngineProcessor(engine, target("Gate"), session="waits")
    told: list[Any] = []
    async with session(engine, target("Gate"), level=5) as other:
        other.bind(lambda emission: told.append(emission.data))
        await waits.load_model()
        started = asyncio.ensure_future(waits.on_stream_start({"level": 7, "awaits": what}))
        held: asyncio.Future[Any] = started
        if what != "start":
            await started
        if what == "params":
            held = asyncio.ensure_future(waits.update_params({"level": 8}))
        elif what == "frame":
            held = asyncio.ensure_future(one(waits, video(noise(8, 8))))
        elif what == "stop":
            held = asyncio.ensure_future(waits.on_stream_stop())
        await asyncio.sleep(0.02)
        for _ in range(4):
            assert grey_of(await one(other, video(noise(8, 8)))) == 5
        assert not held.done()
        await other.update_params({"level": 99})
        assert grey_of(await one(other, video(noise(8, 8)))) == 99
        await asyncio.wait_for(held, 2)
        if what in ("start", "params"):
            assert grey_of(await one(waits, video(noise(8, 8)))) == (7 if what == "start" else 8)
        assert grey_of(await one(other, video(noise(8, 8)))) == 99
        assert told == [[False, True]] * 6
        await waits.on_stream_stop()
    assert engine.restarts == 0


async def test_what_ends_one_session_leaves_the_others_alone(engine: Engine) -> None:
    async with session(engine, target("Level"), level=7) as lasting:
        for _ in range(3):
            async with session(engine, target("Faulty")) as faulty:
                await faulty.update_params({"fault": "raise"})
                with pytest.raises(ProcessorError):
                    await faulty.process_video_async(video(noise(8, 8)))
            assert grey_of(await one(lasting, video(noise(8, 8)))) == 7
        with pytest.raises(ProcessorError):
            await EngineProcessor(engine, target("Several"), session="x").load_model()
        assert grey_of(await one(lasting, video(noise(8, 8)))) == 7


async def test_a_call_that_is_cancelled_does_not_disturb_those_after_it(engine: Engine) -> None:
    cancelled = 0
    async with session(engine, target("Touch")) as processor:
        for number in range(40):
            frame = video(noise(900, 700, seed=number), number)
            task = asyncio.create_task(processor.process_video_async(frame))
            if number % 3:
                await asyncio.sleep(0.0003 * (number % 7))
                task.cancel()
                await asyncio.wait({task})
                cancelled += task.cancelled()
                await asyncio.sleep(0.01)
                continue
            result = await task
            assert isinstance(result, VideoFrame)
            assert result.timestamp == number
            assert np.array_equal(result.picture.rgb(), frame.picture.rgb())
    assert cancelled > 10


async def test_calls_that_pile_up_are_refused_by_name(engine: Engine) -> None:
    async with session(engine, target("Slow", seconds=0.3)) as processor:
        tasks = [
            asyncio.create_task(processor.process_video_async(video(noise(8, 8), number)))
            for number in range(6)
        ]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        errors = [result for result in results if isinstance(result, EngineError)]
        assert len(errors) == 2
        assert "in use" in errors[0].message


async def test_the_engine_works_in_the_conditions_that_it_should(engine: Engine) -> None:
    async with session(engine, target("Surroundings")) as processor:
        told: list[Emission] = []
        processor.bind(told.append)
        await processor.process_video_async(video(noise(8, 8)))
        found = told[0].data
        assert found["threads"] == 1
        assert found["inference"] is True
        assert found["sigint"] is True
        assert found["nice"] == 1
        assert found["path"][-1] == HERE
        assert not any(path.endswith("headrace/engine") for path in found["path"][:-1])
        assert {"stream.frames", "stream.units", "headrace.engine.slots"} <= set(found["found"])


async def test_a_stop_that_is_asked_twice_or_before_the_start_is_harmless(engine: Engine) -> None:
    processor = EngineProcessor(engine, {"kind": "passthrough"}, session="s")
    await processor.on_stream_stop()
    await processor.load_model()
    await processor.on_stream_start({})
    await processor.on_stream_stop()
    await processor.on_stream_stop()
    await processor.load_model()
    await processor.on_stream_start({})
    frame = video(noise(8, 8))
    assert await processor.process_video_async(frame) is frame
    await processor.on_stream_stop()


async def test_after_all_that_the_first_engine_still_runs(engine: Engine) -> None:
    assert engine.restarts == 0
    assert engine.facts is not None
    assert engine.facts.pixel_format == "rgb24"

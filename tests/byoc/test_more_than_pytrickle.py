"""What processors may bring beyond PyTrickle's methods."""

import asyncio
import dataclasses
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pytest
from byoc_rig import clip, serving
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from byoc import FrameProcessor, InvalidInput, ProcessorError, VideoFrame
from stream.batching import Batcher, BatchQueue, Waiting
from stream.frames import Picture


def frame(number=0):
    pixels = np.full((8, 8, 3), number, np.uint8)
    return VideoFrame.from_picture(Picture.from_rgb(pixels), number, Fraction(1, 30))


def plain(source, level):
    """A frame at the moment of another, all of one grey."""
    return source.replace_picture(
        Picture.from_rgb(np.full((source.height, source.width, 3), level, np.uint8))
    )


# -- windows ---------------------------------------------------------------------------------------


@given(window=st.integers(1, 6), hop=st.integers(1, 6), count=st.integers(0, 30))
def test_a_window_is_the_last_frames_and_moves_on_by_whole_hops(window, hop, count):
    class Windowed(FrameProcessor):
        async def process_video_window(self, frames):
            seen.append([each.timestamp for each in frames])
            return list(frames)

    seen = []
    processor = Windowed()
    processor.window, processor.hop = window, hop

    async def run():
        return [await processor.process_video_async(frame(n)) for n in range(count)]

    results = asyncio.run(run())
    first = max(window, hop) - 1
    ends = list(range(first, count, hop))
    assert seen == [list(range(end - window + 1, end + 1)) for end in ends]
    # None would have the overlay show the original meanwhile.
    assert all(result == [] for n, result in enumerate(results) if n not in ends)
    assert processor.info().video


async def test_a_new_stream_begins_with_an_empty_window():
    class Pair(FrameProcessor):
        window = 2

        async def process_video_window(self, frames):
            return list(frames)

    processor = Pair()
    await processor.process_video_async(frame(1))
    await processor.on_stream_start({})
    assert await processor.process_video_async(frame(2)) == []


# -- batches ---------------------------------------------------------------------------------------


@given(
    arrivals=st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1)), max_size=30),
    size=st.integers(1, 4),
    wait=st.floats(0, 0.5),
)
def test_whoever_came_first_is_taken_first_and_nobody_waits_longer_than_said(arrivals, size, wait):
    queue = BatchQueue(size, wait)
    queue.streams = 6
    taken, put = [], []
    for stream, moment in sorted(arrivals, key=lambda each: each[1]):
        while queue.due_in(moment) == 0:
            taken += queue.take()
        item = Waiting(stream, None, moment, None)
        put.append(item)
        queue.put(item)
        due = queue.due_in(moment)
        assert due is not None
        assert 0 <= due <= wait + 1e-9
        if len(queue) >= size:
            assert due == 0
    while len(queue):
        batch = queue.take()
        assert 1 <= len(batch) <= size
        taken += batch
    assert taken == put


class Together(FrameProcessor):
    batch_wait = 5.0

    def __init__(self, number=0):
        super().__init__()
        self.number = number

    async def process_video_batch(self, streams, frames):
        self.calls.append([stream.number for stream in streams])
        return [
            ValueError("not this one") if stream.number == 13 else each.replace_picture(each.picture)
            for stream, each in zip(streams, frames, strict=True)
        ]


async def test_frames_of_several_streams_are_one_call_and_a_fault_is_one_streams_own():
    Together.calls = []
    batcher = Batcher(8, 5.0)
    processors = [Together(number) for number in (1, 13, 2)]
    for _ in processors:
        batcher.joined()
    results = await asyncio.gather(
        *(batcher.of(each)(frame(each.number)) for each in processors), return_exceptions=True
    )
    # All that take part are there, so nobody waits the five seconds.
    assert Together.calls == [[1, 13, 2]]
    assert [getattr(result, "timestamp", None) for result in results] == [1, None, 2]
    assert isinstance(results[1], ValueError)


async def test_a_stream_that_gives_up_is_left_out_and_wrong_results_are_told():
    class Wrong(Together):
        calls: ClassVar[list] = []

        async def process_video_batch(self, streams, frames):
            return frames[:-1]

    batcher = Batcher(2, 0.0)
    with pytest.raises(ProcessorError, match="0 results for 1 pictures"):
        await batcher.of(Wrong())(frame())
    batcher = Batcher(8, 5.0)
    Together.calls = []
    for _ in range(2):
        batcher.joined()
    gone = asyncio.create_task(batcher.of(Together(1))(frame(1)))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    batcher.left()
    assert (await batcher.of(Together(2))(frame(2))).timestamp == 2
    assert Together.calls == [[2]]


@pytest.mark.parametrize("fault", ["cancelled from within", "gave a StopIteration"])
async def test_what_a_future_cannot_carry_keeps_no_other_stream_waiting(fault):
    class Odd(Together):
        async def process_video_batch(self, streams, frames):
            if streams[0].number == 3:
                return frames
            if fault.startswith("gave"):
                return [StopIteration() for _ in frames]
            raise asyncio.CancelledError

    batcher = Batcher(2, 0.0)
    async with asyncio.timeout(10):
        results = await asyncio.gather(
            *(batcher.of(Odd(number))(frame(number)) for number in (1, 2, 3)), return_exceptions=True
        )
    assert [fault in str(result) for result in results[:2]] == [True, True]
    assert results[2].timestamp == 3


async def test_a_call_that_comes_back_after_it_was_given_up_does_not_call_again():
    came_back = asyncio.Event()
    within, most = 0, 0

    class Stubborn(Together):
        async def process_video_batch(self, streams, frames):
            nonlocal within, most
            try:
                if streams[0].number == 1:
                    await asyncio.sleep(60)
            except asyncio.CancelledError:
                came_back.set()
                return frames
            within += 1
            most = max(most, within)
            await asyncio.sleep(0.01)
            within -= 1
            return frames

    batcher = Batcher(1, 0.0)
    first = asyncio.create_task(batcher.of(Stubborn(1))(frame(1)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    others = [asyncio.create_task(batcher.of(Stubborn(number))(frame(number))) for number in (2, 3, 4)]
    await asyncio.sleep(0)
    first.cancel()
    results = await asyncio.gather(*others)
    assert came_back.is_set()
    assert [result.timestamp for result in results] == [2, 3, 4]
    assert most == 1


async def test_one_stream_alone_gets_batches_of_one():
    Together.calls = []
    assert (await Together(7).process_video_async(frame(7))).timestamp == 7
    assert Together.calls == [[7]]
    with pytest.raises(ValueError, match="not this one"):
        await Together(13).process_video_async(frame(1))


class Brighten(FrameProcessor):
    """Several streams at once; the weights are loaded once, the level is each stream's own."""

    loads = 0
    sizes: ClassVar[list] = []
    batch_wait = 0.2

    def __init__(self):
        super().__init__()
        self.level = 0

    async def load_model(self, **kwargs):
        Brighten.loads += 1
        self.weights = object()

    async def on_stream_start(self, params):
        self.level = params["level"]

    async def update_params(self, params):
        self.level = params["level"]

    async def process_video_batch(self, streams, frames):
        Brighten.sizes.append(len(frames))
        assert len({id(stream.weights) for stream in streams}) == 1
        return [
            each.replace_picture(
                Picture.from_rgb(np.full((each.height, each.width, 3), stream.level, np.uint8))
            )
            for stream, each in zip(streams, frames, strict=True)
        ]


async def test_a_class_serves_several_streams_with_one_model():
    async with serving(Brighten, capacity=2) as rig:
        await rig.until_health("IDLE")
        watched = {}
        for name, level in (("one", 60), ("two", 200)):
            watched[name] = rig.watch(name)
            status, answer = await rig.start(name, params={"width": 64, "height": 64, "level": level})
            assert status == 200, answer
        assert (await rig.start("three"))[0] == 503
        for name in watched:
            rig.play(clip(2), name)
        status, _ = await rig.post("/stream/params", {"level": 90}, **{"X-Stream-Id": "one"})
        assert status == 200
        for _, watching in watched.values():
            await asyncio.wait_for(watching, 60)
        await rig.until_health("IDLE")
        # The next one gets an object of its own again.
        assert (await rig.start("four", params={"level": 1}))[0] == 200
        await rig.stop("four")
    last = {name: viewer.pictures[-1].mean[1] for name, (viewer, _) in watched.items()}
    assert abs(last["one"] - 90) < 8
    assert abs(last["two"] - 200) < 8
    assert Brighten.loads == 1
    assert 2 in Brighten.sizes


# -- typed parameters --------------------------------------------------------------------------------


class Look(BaseModel):
    strength: float = Field(0.5, ge=0, le=1, description="how much")
    name: str = "plain"


@dataclass
class Shape:
    sides: int = 4
    filled: bool = False


class Typed(FrameProcessor):
    parameters = Look

    async def process_video_async(self, frame):
        return frame


async def test_parameters_are_checked_whole_before_they_take_effect():
    processor = Typed()
    assert processor.params == Look()
    schema = processor.info().schema
    assert schema["properties"]["strength"]["maximum"] == 1
    assert schema["properties"]["strength"]["description"] == "how much"
    await processor.on_stream_start({"strength": "0.25", "width": 512, "height": 512})
    await processor.update_params({"name": "bold"})
    assert processor.params == Look(strength=0.25, name="bold")
    with pytest.raises(InvalidInput) as raised:
        await processor.update_params({"name": "x", "strength": 7, "strenght": 1})
    assert {problem["field"] for problem in raised.value.details} == {"strength", "strenght"}
    assert "got 7" in raised.value.message
    assert processor.params == Look(strength=0.25, name="bold")


async def test_a_dataclass_will_do():
    class Drawn(Typed):
        parameters = Shape

    processor = Drawn()
    await processor.update_params({"sides": "6"})
    assert dataclasses.astuple(processor.params) == (6, False)
    with pytest.raises(InvalidInput, match="sides"):
        await processor.update_params({"sides": "many"})
    assert processor.info().schema["properties"]["filled"]["type"] == "boolean"


def test_what_describes_no_parameters_is_refused():
    class Wrong(Typed):
        parameters = int

    with pytest.raises(InvalidInput, match="pydantic model or a dataclass") as raised:
        Wrong()
    assert raised.value.field == "parameters"


async def test_a_start_with_wrong_values_is_refused_before_it_begins():
    async with serving(Typed()) as rig:
        await rig.until_health("IDLE")
        status, answer = await rig.start(params={"strength": 3})
        assert status == 400
        assert answer["field"] == "strength"
        assert (await rig.get("/health"))["status"] == "IDLE"
        assert (await rig.start(params={"strength": 0.75}))[0] == 200
        await rig.until(lambda: rig.server.frame_processor.params.strength == 0.75)
        status, answer = await rig.post("/stream/params", {"strength": -1})
        assert (status, answer["field"]) == (400, "strength")


# -- tensors on a device -----------------------------------------------------------------------------


class Inverts(FrameProcessor):
    """Notes where its tensors are."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    async def process_video_async(self, frame):
        self.seen.add((str(frame.tensor.device), tuple(frame.tensor.shape), str(frame.device)))
        return frame.replace_tensor(1 - frame.tensor)


async def test_tensors_are_made_on_the_device_and_pictures_of_them_there():
    """On the CPU by the way that CUDA takes; there is none here."""
    processor = Inverts()
    async with serving(processor, device="cpu") as rig:
        await rig.until_health("IDLE")
        viewer, watching = rig.watch()
        assert (await rig.start())[0] == 200
        rig.play(clip(2))
        await asyncio.wait_for(watching, 60)
    assert processor.seen == {("cpu", (1, 128, 128, 3), "cpu")}
    assert viewer.pictures
    assert viewer.pictures[-1].mean[0] > 150


class Lacking(FrameProcessor):
    @dataclass
    class Values:
        path: str

    parameters = Values


def test_a_parameter_without_a_default_is_named():
    with pytest.raises(InvalidInput, match="every parameter needs a default, and path has none"):
        Lacking()


class Elsewhere(Inverts):
    tensor_device = "cuda:77"


@pytest.mark.parametrize(("supply", "device"), [(Inverts, "cuda:77"), (Elsewhere, None)])
async def test_a_device_that_is_not_there_is_an_error_from_the_beginning(supply, device):
    async with serving(supply(), device=device) as rig:
        await rig.until_health("ERROR")
        status, answer = await rig.start()
        assert status == 503
        assert "cuda:77" in answer["message"]

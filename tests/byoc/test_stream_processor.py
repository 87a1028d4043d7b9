"""Plain functions behind a server: PyTrickle's forgiving wrapper and its decorators."""

import asyncio
import json
import threading

import numpy as np
import pytest
from byoc_rig import clip, serving

from byoc import FrameSkipConfig, OverlayConfig, StreamProcessor, TrickleClient, TrickleProtocol, VideoFrame
from byoc.decorators import (
    audio_handler,
    model_loader,
    on_stream_start,
    on_stream_stop,
    param_updater,
    video_handler,
)
from byoc.stream_processor import HandlersProcessor, VideoProcessingResult


class Handlers:
    """One of each kind; some are plain functions."""

    def __init__(self):
        self.processor = None
        self.background = None
        self.told = []
        self.threads = set()
        self.answer = "bright"
        self.sent = []

    @model_loader
    def load(self, **kwargs):
        self.told.append(("load", kwargs))

    @on_stream_start
    async def start(self, params):
        self.threads.add(threading.current_thread().name)
        self.told.append(("start", params))
        self.background = asyncio.create_task(self.talk())

    async def talk(self):
        number = 0
        while True:
            self.sent.append(await self.processor.send_data(f"line {number}"))
            await self.processor.send_monitoring_event({"type": "note", "number": number})
            number += 1
            await asyncio.sleep(0.2)

    @video_handler
    async def picture(self, frame: VideoFrame):
        self.threads.add(threading.current_thread().name)
        if self.answer == "raise":
            raise ValueError("broken")
        if self.answer == "withhold":
            return VideoProcessingResult.WITHHELD
        if self.answer == "nonsense":
            return "a picture"
        return np.full(frame.tensor.shape, 0.9, np.float32)

    @audio_handler
    async def sound(self, frame):
        return frame.samples * np.float32(0.5)

    @param_updater
    def update(self, params):
        self.told.append(("params", params))
        self.answer = params.get("answer", self.answer)

    @property
    def never_looked_at(self):
        raise AssertionError("a property is not a handler")

    @on_stream_stop
    async def stop(self):
        self.background.cancel()
        self.told.append(("stop", None))


def means(viewer):
    return [picture.mean[0] for picture in viewer.pictures]


async def test_handlers_by_their_decorators_with_data_events_and_forgiveness():
    handlers = Handlers()
    processor = StreamProcessor.from_handlers(
        handlers,
        name="bright",
        port=0,
        host="127.0.0.1",
        send_data_interval=0.1,
        frame_skip_config=FrameSkipConfig(target_fps=20),
        overlay_config=OverlayConfig(auto_timeout_seconds=0.3),
    )
    handlers.processor = processor
    assert not await processor.send_data("nobody")
    assert not processor.set_loading_overlay(True)
    async with serving(processor.server) as rig:
        await rig.until_health("IDLE")
        viewer, watching = rig.watch()
        heard, listening = rig.listen()
        lines, collecting = rig.collect()
        assert (await rig.start())[0] == 200
        rig.play(clip(12))

        async def shows(wanted):
            seen = len(viewer.pictures)
            await rig.until(lambda: any(wanted(mean) for mean in means(viewer)[seen:]))

        await shows(lambda mean: mean > 200)
        # What raises, and what is no picture, lets the original pass: the clip is dark green.
        for answer in ("raise", "nonsense"):
            status, _ = await rig.post("/stream/params", {"answer": answer})
            assert status == 200
            await shows(lambda mean: 20 < mean < 90)
        await rig.post("/stream/params", {"answer": "withhold"})
        await shows(lambda mean: mean < 15)
        await rig.post("/stream/params", {"answer": "bright"})
        await shows(lambda mean: mean > 200)
        await rig.post("/stream/params", {"show_loading": "true"})
        await shows(lambda mean: mean < 15)
        status, answer = await rig.post("/stream/params", {"show_loading": "perhaps"})
        assert (status, answer["field"]) == (400, "show_loading")
        await rig.until(lambda: len(lines) >= 3)
        client = processor.server.current_client
        assert (await rig.stop())[0] == 200
        await asyncio.wait_for(asyncio.gather(watching, listening, collecting), 60)
        await rig.until_health("IDLE")
        counts = client.session.pipeline.figures.counts
    assert handlers.told[0] == ("load", {})
    assert handlers.told[1][0] == "start"
    assert ("params", {"show_loading": "true"}) in handlers.told
    assert handlers.told[-1] == ("stop", None)
    assert len(handlers.threads) == 1
    assert threading.current_thread().name not in handlers.threads
    items = [item for segment in lines for line in segment.splitlines() for item in json.loads(line)]
    assert items[:3] == ["line 0", "line 1", "line 2"]
    assert all(handlers.sent[:3])
    notes = [m for m in heard if m["queue_event_type"] == "custom_monitoring_event"]
    assert [note["event"]["number"] for note in notes[:3]] == [0, 1, 2]
    errors = [m["event"]["message"] for m in heard if m["event"]["type"] == "error"]
    assert errors == ["ValueError: broken"]
    # Twenty of thirty were asked for.
    assert counts.dropped_rate > counts.frames_in // 5


def test_only_coroutine_functions_are_taken():
    with pytest.raises(ValueError, match="video_processor must be an async function"):
        StreamProcessor(video_processor=lambda frame: frame)


async def test_frames_are_pushed_in_where_there_is_no_input():
    seen = []

    async def picture(frame):
        seen.append(frame.timestamp)
        return frame

    processor = StreamProcessor(video_processor=picture, port=0, host="127.0.0.1")
    async with serving(processor.server) as rig:
        await rig.until_health("IDLE")
        assert (await rig.start(subscribe_url=None))[0] == 200
        await rig.until(lambda: processor.server.current_client.session.pipeline.ready)
        import torch

        for number in range(5):
            frame = VideoFrame(
                torch.zeros(1, 128, 128, 3),
                number * 3000,
                VideoFrame.from_tensor(torch.zeros(1, 2, 2, 3)).time_base / 90_000,
            )
            assert await processor.send_input_frame(frame)
            await rig.until(lambda: len(seen) > number)  # noqa: B023 (awaited within the turn)
        assert (await rig.stop())[0] == 200
        assert not await processor.send_input_frame(frame)
    assert seen == [0, 3000, 6000, 9000, 12000]


async def test_a_client_runs_a_processor_without_a_server():
    handlers = Handlers()
    processor = StreamProcessor.from_handlers(handlers, port=0)
    inner = processor._frame_processor
    await inner.load_model()
    controlled = []

    async def control(message):
        controlled.append(message)

    async with serving(StreamProcessor(port=0, host="127.0.0.1").server) as rig:
        # Only its trickle server is wanted.
        handlers.processor = processor
        urls = rig.urls("direct")
        await rig.make(urls["control_url"])
        viewer, watching = rig.watch("direct")
        protocol = TrickleProtocol(**urls, width=128, height=128)
        client = TrickleClient(protocol, inner, control_handler=control)
        rig.play(clip(2), "direct")
        running = asyncio.create_task(client.start("direct", {"level": 1}))
        await rig.until(lambda: client.running)
        async with rig.http.post(urls["control_url"] + "/0", data=json.dumps({"a": 1})) as response:
            assert response.status == 200
        await asyncio.wait_for(asyncio.gather(running, watching), 60)
    assert controlled == [{"a": 1}]
    assert not client.running
    assert client.stop_event.is_set()
    assert any(mean > 200 for mean in means(viewer))
    assert protocol.fps_meter.get_fps_stats()["ingress_video_fps"] >= 0


async def test_a_handler_whose_errors_differ_tells_of_few():
    async def counts(frame):
        raise ValueError(f"frame {next(numbers)}")

    numbers, told = iter(range(100)), []
    processor = HandlersProcessor({"video_processor": counts}, "counts")
    processor.bind(told.append)
    for _ in range(50):
        assert await processor.process_video_async(None) is None
    assert len(told) == 5
    assert next(numbers) == 50

"""A container author's server: real HTTP, real trickle, real codecs."""

import asyncio
import time

import aiohttp
import numpy as np
import pytest
from byoc_rig import clip, serving

from byoc import (
    AudioFrame,
    FrameProcessor,
    InvalidInput,
    OverlayConfig,
    ProcessorError,
    StreamServer,
    VideoFrame,
    hosted,
)
from byoc.server import RouteConfig
from stream import session

LIMIT = 60


class Invert(FrameProcessor):
    """In the style of PyTrickle: every method is there, and the tensor is the picture."""

    def __init__(self):
        super().__init__()
        self.told = []
        self.shapes = set()

    async def load_model(self, **kwargs):
        self.told.append(("load", kwargs))

    async def process_video_async(self, frame: VideoFrame):
        self.shapes.add((tuple(frame.tensor.shape), str(frame.tensor.dtype)))
        return frame.replace_tensor(1 - frame.tensor)

    async def process_audio_async(self, frame: AudioFrame):
        return [frame.replace_samples(frame.samples * np.float32(0.5))]

    async def update_params(self, params):
        if "bad" in params:
            raise RuntimeError("no such thing")
        self.told.append(("params", params))

    async def on_stream_start(self, params):
        self.told.append(("start", params))

    async def on_stream_stop(self):
        self.told.append(("stop", None))


async def test_a_stream_goes_in_the_processor_works_on_it_and_the_end_of_input_ends_it():
    processor = Invert()
    async with serving(processor, capability_name="inverter", version="7.1") as rig:
        await rig.until_health("IDLE")
        assert processor.told == [("load", {})]
        viewer, watching = rig.watch()
        heard, listening = rig.listen()
        status, answer = await rig.start(params={"width": "128", "height": 96, "strength": 3})
        assert status == 200
        assert answer["message"] == "Stream started successfully"
        assert answer["request_id"] == "one"
        assert answer["current_state"]["status"] == "OK"
        rig.play(clip(3))
        await rig.until(lambda: ("start", {"width": 128, "height": 96, "strength": 3}) in processor.told)

        status, answer = await rig.post("/stream/params", {"bad": 1})
        assert status == 400
        assert answer["message"] == "Parameter update failed: RuntimeError: no such thing"
        status, answer = await rig.post("/api/stream/params", {"strength": 4})
        assert (status, answer["message"]) == (200, "Parameters updated successfully")
        assert ("params", {"strength": 4}) in processor.told
        assert await rig.get("/health") == {"status": "OK"}
        status = await rig.get("/stream/status")
        assert status["client_active"] is status["client_running"] is True
        assert set(status["fps"]) == {
            f"{w}_{k}_fps" for w in ("ingress", "egress") for k in ("video", "audio")
        }
        assert status["current_params"]["gateway_request_id"] == "one"

        await asyncio.wait_for(asyncio.gather(watching, listening), LIMIT)
        await rig.until_health("IDLE")
        assert await rig.get("/version") == {
            "pipeline": "byoc",
            "model_id": "inverter",
            "version": (await rig.get("/version"))["version"],
        }
        assert await rig.get("/app-version") == {"version": "7.1"}
        assert (await rig.get("/hardware/info"))["model_id"] == "inverter"
        status, answer = await rig.post("/stream/stop", {})
        assert (status, answer["message"]) == (400, "No active stream to stop")
    assert processor.told[-1] == ("stop", None)
    assert processor.shapes == {((1, 96, 128, 3), "torch.float32")}
    # The clip is dark green.
    assert len(viewer.pictures) > 10
    assert all(p.mean[0] > 150 and (p.width, p.height) == (128, 96) for p in viewer.pictures if p.segment)
    assert {channels for _, _, channels in viewer.sounds} == {2}
    assert viewer.segments == list(range(len(viewer.segments)))
    kinds = [(message["queue_event_type"], message["event"]["type"]) for message in heard]
    assert kinds[0] == ("stream_heartbeat", "heartbeat")
    assert kinds.count(("ai_stream_events", "params_updated")) == 1
    for name in ("receive_first_ingest_segment", "send_first_processed_segment", "stream_stopped"):
        assert kinds.count(("ai_stream_events", name)) == 1
    beat = heard[0]["event"]
    assert set(beat["urls"]) == {"subscribe", "publish", "control", "events", "data"}
    assert beat["dimensions"] == {"width": 128, "height": 96}


class Blocks(FrameProcessor):
    """Holds its thread, as a model without an await does."""

    async def process_video_async(self, frame):
        time.sleep(0.3)  # noqa: ASYNC251 (that is the point)
        return frame


async def test_a_handler_that_blocks_holds_up_neither_the_server_nor_the_stop():
    async with serving(Blocks()) as rig:
        await rig.until_health("IDLE")
        await rig.start()
        rig.play(clip(3))
        client = rig.server.current_client
        await rig.until(lambda: client.session.pipeline.figures.counts.frames_out >= 2)
        loop = asyncio.get_running_loop()
        begun, turns = loop.time(), 0
        while loop.time() < begun + 0.6:
            await rig.get("/health")
            turns += 1
        # Two answers would be what a loop that waits for the handler manages.
        assert turns > 10
        assert (await rig.stop())[0] == 200
        await rig.until_health("IDLE")


class Hangs(FrameProcessor):
    """The first stream's frame never comes back, until it is let go."""

    def __init__(self):
        super().__init__()
        self.let_go = False

    async def process_video_async(self, frame):
        while not self.let_go:
            time.sleep(0.05)  # noqa: ASYNC251 (that is the point)
        return frame


async def test_a_handler_that_never_returns_is_an_error_until_it_does(monkeypatch):
    monkeypatch.setattr(hosted, "ONE_FRAME", 0.2)
    processor = Hangs()
    server = StreamServer(processor, port=0, host="127.0.0.1")
    async with serving(server) as rig:
        await rig.until_health("IDLE")
        await rig.start()
        rig.play(clip(2))
        await rig.until(lambda: server.current_client.session.pipeline.figures.counts.frames_in > 2)
        status, answer = await rig.post("/stream/params", {"level": 1})
        assert status == 500
        assert "Hangs has held its thread" in answer["message"]
        await asyncio.wait_for(rig.stop(), 30)
        await rig.until_health("ERROR")
        status, answer = await rig.start("two")
        assert status == 503
        assert "has not come back" in answer["message"]
        processor.let_go = True
        await rig.until_health("IDLE")
        assert (await rig.start("three"))[0] == 200


class Withholds(FrameProcessor):
    """Shows nothing for a while, then a frame never comes back; its stop fails."""

    def __init__(self):
        super().__init__()
        self.count = 0

    async def process_video_async(self, frame):
        self.count += 1
        if self.count > 10:
            await asyncio.Event().wait()

    async def on_stream_stop(self):
        raise LookupError("nothing to stop")


async def test_notices_count_as_such_and_the_end_of_input_ends_a_stream_whose_frame_hangs(monkeypatch):
    monkeypatch.setattr(session, "LAST_FRAME", 0.2)
    overlay = OverlayConfig(auto_timeout_seconds=0)
    async with serving(Withholds(), overlay_config=overlay) as rig:
        await rig.until_health("IDLE")
        heard, listening = rig.listen()
        assert (await rig.start())[0] == 200
        figures = rig.server.current_client.session.pipeline.figures
        rig.play(clip(2))
        await rig.until(lambda: rig.server.frame_processor.count > 10)
        assert figures.counts.overlaid >= 9
        assert figures.answer_rate.last is not None
        assert figures.result_rate.last is None
        await rig.until_health("IDLE")
        await asyncio.wait_for(listening, LIMIT)
    told = {message["event"]["type"]: message["event"] for message in heard}
    assert told["error"]["message"] == "on_stream_stop failed: LookupError: nothing to stop"
    assert told["stream_stopped"]["reason"] == "the input ended"


class Forgets(FrameProcessor):
    def __init__(self):
        self.level = 1


class Plain(FrameProcessor):
    def load_model(self, **kwargs):
        self.level = 1


async def test_what_an_author_forgot_is_named():
    for supply in (Forgets(), Forgets):
        with pytest.raises(ProcessorError, match=r"Forgets.__init__ must call super"):
            StreamServer(supply)
    with pytest.raises(ProcessorError, match=r"Plain.load_model must be written with `async def`"):
        await Plain().ensure_model_loaded()


async def test_a_server_for_which_nothing_works_on_frames_says_so(caplog):
    async with serving(FrameProcessor()):
        assert "nothing works on pictures or sound" in caplog.text


async def test_start_answers_as_pytrickle_does_when_it_cannot():
    class Fails(Invert):
        async def load_model(self, **kwargs):
            raise OSError("no weights")

    async with serving(Invert()) as rig:
        await rig.until_health("IDLE")
        status, answer = await rig.post("/stream/start", {"params": {}})
        assert status == 400
        assert answer["message"].startswith("Error starting stream: gateway_request_id")
        status, answer = await rig.start(params={"width": 64})
        assert status == 400
        assert "Both 'width' and 'height' must be provided together" in answer["message"]
        async with rig.http.post(rig.base + "/stream/start", data="{}") as response:
            assert response.status == 400
        assert (await rig.start())[0] == 200
        status, answer = await rig.start("two")
        assert (status, answer["message"]) == (503, "Pipeline is still in use")
    async with serving(Fails()) as rig:
        await rig.until_health("ERROR")
        status, answer = await rig.start()
        assert status == 503
        assert answer["message"].startswith("Pipeline is still initializing")
        assert "no weights" in answer["message"]


async def test_the_application_takes_hooks_routes_and_context():
    done = []

    async def started(app):
        done.append(app["who"])

    async def hello(request):
        from aiohttp import web

        return web.json_response({"hello": request.app["who"]})

    server = StreamServer(
        Invert(),
        port=0,
        host="127.0.0.1",
        custom_routes=[
            RouteConfig("GET", "/hello", hello),
            {"method": "GET", "path": "/ho", "handler": hello},
        ],
        app_context={"who": "me"},
        route_prefix="/v1",
        on_startup=[started],
    )
    server.app.on_startup.append(started)
    async with serving(server) as rig:
        assert await rig.get("/hello") == await rig.get("/ho") == {"hello": "me"}
        assert (await rig.get("/v1/stream/status"))["client_active"] is False
        assert (await rig.get("/stream/status"))["client_active"] is False
    assert done == ["me", "me"]
    assert server.get_context("who") == "me"


async def test_a_token_guards_what_acts():
    async with serving(Invert(), token="secret") as rig:
        await rig.until_health("IDLE")
        status, _ = await rig.start()
        assert status == 401
        body = {"gateway_request_id": "one"}
        status, _ = await rig.post("/stream/start", body, Authorization="Bearer secret")
        assert status == 200


async def test_cleaning_up_the_runner_alone_ends_streams_and_threads():
    processor = Invert()
    server = StreamServer(processor, port=0, host="127.0.0.1")
    runner = await server.start_server()
    await server.pool.wait_loaded()
    url = f"http://127.0.0.1:{server.port}/stream/start"
    async with aiohttp.ClientSession() as http:
        async with http.post(url, json={"gateway_request_id": "one"}) as response:
            assert response.status == 200
        thread = server.pool._threads[processor]
        assert thread.running
        await runner.cleanup()
    assert not len(server.table)
    assert not thread.running
    assert processor.told[-1] == ("stop", None)


@pytest.mark.parametrize(("options", "field"), [({"capacity": 2}, "capacity")])
def test_an_instance_serves_one_stream(options, field):
    with pytest.raises(InvalidInput, match="one stream") as raised:
        StreamServer(Invert(), **options)
    assert raised.value.field == field


class Odd(FrameProcessor):
    """Returns pictures of an odd size with values that overflow, and raises at times."""

    count = 0

    async def process_video_async(self, frame):
        self.count += 1
        if self.count % 3 == 0:
            raise ValueError("every third")
        frame.tensor.numpy()[..., 0] = 1.5
        return frame.replace_tensor(frame.tensor[:, :63, :101]) if self.count % 3 == 1 else frame


async def test_odd_sizes_overflowing_values_and_exceptions_do_no_harm(caplog):
    async with serving(Odd(), overlay_config=OverlayConfig(enabled=False)) as rig:
        await rig.until_health("IDLE")
        viewer, watching = rig.watch()
        assert (await rig.start(params={"width": 127, "height": 95}))[0] == 200
        rig.play(clip(3))
        await rig.until(lambda: rig.server.frame_processor.count > 20)
        assert (await rig.get("/health"))["status"] == "OK"
        assert (await rig.get("/stream/status"))["session"]["counts"]["failed"] > 3
        await asyncio.wait_for(watching, LIMIT)
    assert 'raise ValueError("every third")' in caplog.text, "the author is not told where"
    # 4:2:0 has even sizes only.
    assert {(p.width, p.height) for p in viewer.pictures} == {(100, 62), (126, 94)}
    # What was written through numpy into the frame that came in is seen too.
    assert all(p.mean[0] > 235 for p in viewer.pictures)


class Small(Invert):
    async def process_video_async(self, frame):
        return frame.replace_tensor(frame.tensor[:, ::2, ::2])


@pytest.mark.parametrize(("detect", "size"), [("yes", (64, 48)), (0, (128, 96))])
async def test_the_size_that_goes_out_is_the_processors_or_the_streams(detect, size):
    async with serving(Small()) as rig:
        await rig.until_health("IDLE")
        viewer, _ = rig.watch()
        params = {"width": 128, "height": 96, "detect_out_resolution": detect}
        assert (await rig.start(params=params))[0] == 200
        rig.play(clip(3))
        await rig.until(lambda: len(viewer.pictures) > 5)
        assert (await rig.stop())[0] == 200
    assert {(p.width, p.height) for p in viewer.pictures} == {size}

"""Streams over a real trickle server, through the real codecs and a real engine."""

import asyncio
import io
import os
import signal
import time
from itertools import pairwise

import av
import pytest
import pytest_asyncio
from live_rig import INVERT, Rig, Viewer, clip, is_processed, is_raw, running

from stream.trickle.channels import ControlReader
from stream.trickle.publisher import TricklePublisher
from stream.trickle.subscriber import TrickleSubscriber

pytestmark = pytest.mark.asyncio(loop_scope="module")

TS_NULL = 0x47


async def _through(rig: Rig, segments, params=None, session: str = "one", **change) -> Viewer:
    """Start a stream, play a clip through it, and return what a viewer saw, once it has ended."""
    viewer = Viewer(rig.channel(f"{session}-out"))
    feeding = asyncio.create_task(rig.play(segments, session))
    status, answer = await rig.start(
        session, params={"width": 128, "height": 128, **(params or {})}, **change
    )
    assert status == 200, answer
    await asyncio.wait_for(asyncio.gather(feeding, viewer.run()), 60)
    await rig.until(lambda r: r["reason"] is not None, session)
    return viewer


async def test_a_stream_goes_in_a_workflow_works_on_it_and_it_comes_out(rig):
    seconds = 9  # of which a busy machine may take five before the first result
    viewer = await _through(rig, clip(seconds), {"workflow": INVERT})
    report = await rig.report()
    processed = [p for p in viewer.pictures if is_processed(p)]
    assert len(processed) > 10  # of 270; a busy machine leaves some out
    assert not any(is_raw(p) for p in viewer.pictures)
    assert report["reason"] == "the input ended"
    assert report["state"] == "OFFLINE"
    times = [p.time for p in viewer.pictures]
    assert times == sorted(times)
    # The source's own timestamps: its first picture is at 1.4 s.
    assert 1.4 <= times[0] < seconds + 0.5
    # On a busy machine the last result comes late, and the one before it is repeated until then.
    assert -0.2 < times[-1] - (1.4 + seconds - 1 / 30) < 1.5
    assert {channels for _, _, channels in viewer.sounds} == {2}
    assert abs(viewer.sounds[-1][1] - times[-1]) < 0.5


async def test_segments_begin_with_tables_and_a_key_picture_every_two_seconds(rig):
    viewer = await _through(rig, clip(7), {"workflow": "passthrough"})
    assert viewer.segments == list(range(len(viewer.segments)))
    starts = [next(p.time for p in viewer.pictures if p.segment == s) for s in viewer.segments]
    lengths = [b - a for a, b in pairwise(starts)]
    assert all(1.9 < length < 3.5 for length in lengths), lengths
    assert all(packet[0] == TS_NULL for packet in viewer.first_bytes)


async def test_pass_through_keeps_the_picture(rig):
    viewer = await _through(rig, clip(3), {"workflow": "passthrough"})
    seen = [p for p in viewer.pictures if is_raw(p)]
    assert len(seen) > 10


@pytest.mark.parametrize(
    ("recipe", "pictures", "sounds"),
    [
        ({"audio": None}, True, False),
        ({"audio": "libopus"}, True, True),
        ({"width": 322, "height": 182}, True, True),
    ],
)
async def test_video_alone_opus_and_other_sizes_work(rig, recipe, pictures, sounds):
    viewer = await _through(rig, clip(3, **recipe), {"workflow": INVERT})
    assert (len([p for p in viewer.pictures if is_processed(p)]) > 10) is pictures
    assert {(p.width, p.height) for p in viewer.pictures} == {(128, 128)}
    assert (len(viewer.sounds) > 50) is sounds


async def test_a_new_size_in_mid_stream_is_taken_in_stride(rig):
    small, large = clip(3), clip(3, width=192, height=160)
    viewer = await _through(rig, [*small, *_later(large, 3)], {"workflow": INVERT})
    report = await rig.report()
    large_ones = [p for p in viewer.pictures if is_processed(p) and p.time > 1.4 + 3.2]
    assert len(large_ones) > 15
    assert viewer.longest_gap() < 2.0
    assert report["counts"]["failed"] == 0


def _later(segments, seconds):
    """The same segments, due later; their timestamps begin again, as after a source's restart."""
    from dataclasses import replace

    return [[replace(chunk, due=chunk.due + seconds) for chunk in segment] for segment in segments]


async def _restarted(rig: Rig, before: int) -> None:
    """When the engine has been started again and is ready."""
    changed = asyncio.Event()
    unsubscribe = rig.worker.engine.subscribe(lambda _: changed.set())
    try:
        while rig.worker.engine.state != "ready" or rig.worker.engine.restarts == before:
            await changed.wait()
            changed.clear()
    finally:
        unsubscribe()


async def _wait_processed(viewer: Viewer, since: float, timeout: float = 20) -> float:
    """When the first processed picture arrived after ``since``."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        for picture in reversed(viewer.pictures):
            if picture.at > since and is_processed(picture):
                return next(p.at for p in viewer.pictures if p.at > since and is_processed(p))
        await asyncio.sleep(0.05)
    raise AssertionError("no processed picture came back")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def small_worker(tmp_path_factory):
    """A worker with one place and little patience."""
    async with running(tmp_path_factory.mktemp("small"), capacity=1, call_timeout=1.5) as rig:
        yield rig


@pytest_asyncio.fixture(loop_scope="module")
async def small(small_worker):
    rig = small_worker.fresh()
    yield rig
    await rig.end_sessions()


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_stream_outlives_its_engine(small, fault):
    """Killed or hung: the output goes on, raw input is never shown, results come back by themselves."""
    rig = small
    viewer = Viewer(rig.channel("one-out"))
    # Longer than is needed: a busy machine takes its time over an engine.
    feeding = asyncio.create_task(rig.play(clip(40)))
    await rig.start(params={"width": 128, "height": 128, "workflow": INVERT})
    watching = asyncio.create_task(viewer.run())
    await rig.until(lambda r: r["counts"]["frames_out"] > 60)
    session = rig.worker.table.find(f"{rig.prefix}one")
    killed, restarts = time.monotonic(), rig.worker.engine.restarts
    os.kill(rig.worker.engine.pid, fault)
    await asyncio.wait_for(_restarted(rig, restarts), 30)
    ready = time.monotonic()
    back = await _wait_processed(viewer, ready)
    assert rig.worker.table.find(f"{rig.prefix}one") is session
    status = await rig.get("/health")
    feeding.cancel()
    await asyncio.wait_for(asyncio.gather(feeding, watching, return_exceptions=True), 60)
    report = await rig.until(lambda r: r["reason"] is not None)
    assert status == {"status": "OK"}
    assert report["reason"] == "the input ended"
    # A picture each half second; a busy machine is slower, with the engine's return too.
    assert viewer.longest_gap(killed - 1, back + 1) < 0.6 * (ready - killed), "the output stopped"
    assert not any(is_raw(p) for p in viewer.pictures)
    assert back - ready < 15.0
    assert viewer.segments == list(range(len(viewer.segments)))


async def test_a_processor_that_raises_costs_its_frames_and_nothing_else(rig):
    viewer = Viewer(rig.channel("one-out"))
    feeding = asyncio.create_task(rig.play(clip(6)))
    await rig.start(
        params={"width": 128, "height": 128, "processor": "tests.live.live_processors:RaisesSometimes"}
    )
    watching = asyncio.create_task(viewer.run())
    report = await rig.until(lambda r: r["counts"]["failed"] > 3)
    assert "ValueError: every third frame" in report["error"]["message"]
    assert report["state"] in ("DEGRADED_INFERENCE", "LOADING")
    await asyncio.wait_for(asyncio.gather(feeding, watching), 60)
    assert len([p for p in viewer.pictures if is_raw(p)]) > 20


@pytest.mark.parametrize(
    ("processor", "words"),
    [("ReturnsNonsense", "str"), ("ReturnsWrongShape", "expected a picture"), ("Missing", "Missing")],
)
async def test_nonsense_is_named_in_the_status(rig, processor, words):
    feeding = asyncio.create_task(rig.play(clip(4)))
    await rig.start(
        params={"width": 128, "height": 128, "processor": f"tests.live.live_processors:{processor}"}
    )
    report = await rig.until(lambda r: r["error"] is not None)
    assert words in report["error"]["message"]
    feeding.cancel()
    await asyncio.gather(feeding, return_exceptions=True)


async def test_parameters_take_effect_between_two_frames_by_http_and_by_control_channel(rig):
    workflow = {
        **INVERT,
        "2": {
            "class_type": "ImageBlend",
            "inputs": {"image1": ["1", 0], "image2": ["4", 0], "blend_factor": 0.0, "blend_mode": "normal"},
        },
        "4": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    }
    viewer = Viewer(rig.channel("one-out"))
    control = TricklePublisher(rig.channel("one-control"), "application/json")
    await control.start()
    events: list = []
    reading = asyncio.create_task(_read_events(rig, events))
    feeding = asyncio.create_task(rig.play(clip(10)))
    await rig.start(
        control_url=rig.channel("one-control"),
        events_url=rig.channel("one-events"),
        params={"width": 128, "height": 128, "workflow": workflow},
    )
    watching = asyncio.create_task(viewer.run())
    await rig.until(lambda r: r["counts"]["frames_out"] > 30)
    assert is_raw(viewer.pictures[-1])

    status, answer = await rig.post("/stream/params", {"2.blend_factor": 7}, **{"X-Stream-Id": "one"})
    assert status == 400
    assert answer["field"] == "2.blend_factor"
    assert "7" in answer["message"]
    _, answer = await rig.post("/stream/params", {"max_framerate": 5}, **{"X-Stream-Id": "one"})
    assert answer["message"] == "max_framerate holds from a stream's start to its end"
    status, answer = await rig.post("/stream/params", {"2.blend_factor": 1.0}, **{"X-Stream-Id": "one"})
    assert status == 200
    assert answer["applied"]["frame"] > 0
    changed = time.monotonic()
    assert await _wait_processed(viewer, changed + 0.2) - changed < 10

    writer = await control.next_segment()
    await writer.write(b'{"2.blend_factor": 0.0}')
    await writer.close()
    await rig.until(lambda r: r["params"].get("2.blend_factor") == 0.0)
    await asyncio.sleep(0.5)
    assert is_raw(viewer.pictures[-1])
    await control.close()
    await asyncio.wait_for(asyncio.gather(feeding, watching, reading, return_exceptions=True), 60)
    kinds = [event["event"]["type"] for event in events]
    assert kinds.count("params_updated") == 2
    assert "status" in kinds
    assert "stream_stopped" in kinds


async def test_frames_flow_while_a_change_is_prepared(rig):
    viewer = Viewer(rig.channel("one-out"))
    feeding = asyncio.create_task(rig.play(clip(8)))
    await rig.start(
        params={"width": 128, "height": 128, "processor": "tests.live.live_processors:SlowToChange"}
    )
    watching = asyncio.create_task(viewer.run())
    before = (await rig.until(lambda r: r["counts"]["frames_out"] > 30))["counts"]["frames_out"]
    begun = time.monotonic()
    status, answer = await rig.post("/stream/params", {"seconds": 2.0}, **{"X-Stream-Id": "one"})
    assert status == 200
    changed = time.monotonic()
    assert changed - begun >= 2.0
    report = await rig.report()
    # Sixty on a quiet machine; none, where a change holds them up.
    assert report["counts"]["frames_out"] - before > 8
    assert report["counts"]["failed"] == 0
    assert answer["applied"]["frame"] >= before + 8
    assert all(is_raw(p) for p in viewer.pictures if begun + 0.3 < p.at < changed)
    assert await _wait_processed(viewer, changed + 0.2) - changed < 10
    feeding.cancel()
    await rig.post("/stream/stop", {}, **{"X-Stream-Id": "one"})
    await asyncio.gather(feeding, asyncio.wait_for(watching, 30), return_exceptions=True)


async def _read_events(rig: Rig, events: list) -> None:
    async for message in ControlReader(rig.channel("one-events"), start=0, not_found_grace=20).messages():
        events.append(message)


async def test_a_stop_ends_the_stream_its_channels_and_frees_its_place(small):
    rig = small
    feeding = asyncio.create_task(rig.play(clip(10)))
    viewer = Viewer(rig.channel("one-out"))
    await rig.start()
    watching = asyncio.create_task(viewer.run())
    await rig.until(lambda r: r["counts"]["frames_out"] > 10)
    status, answer = await rig.start()
    assert (status, answer["code"]) == (409, "conflict")
    status, answer = await rig.start("two")
    assert (status, answer["code"]) == (503, "at_capacity")
    status, _ = await rig.start("two", route="/live-video-to-video")
    assert status == 500
    status, _ = await rig.post("/stream/stop", {}, **{"X-Stream-Id": "one"})
    assert status == 200
    await asyncio.wait_for(watching, 10)
    assert (await rig.get("/health")) == {"status": "IDLE"}
    status, _ = await rig.post("/stream/stop", {}, **{"X-Stream-Id": "one"})
    assert status == 200
    feeding.cancel()
    await asyncio.gather(feeding, return_exceptions=True)


async def test_wrong_requests_are_refused_in_words(rig):
    status, answer = await rig.start(subscribe_url="ftp://x/y")
    assert (status, answer["field"]) == (400, "subscribe_url")
    status, answer = await rig.start(params={"width": 128})
    assert (status, answer["field"]) == (400, "width")
    status, answer = await rig.start(params={"workflow": "edgse"})
    assert status in (400, 404)
    assert "edges" in answer["message"]
    broken = {**INVERT, "2": {"class_type": "ImageInvertt", "inputs": {"image": ["9", 0]}}}
    status, answer = await rig.start(params={"workflow": broken})
    assert (status, answer["code"]) == (400, "invalid_workflow")
    assert "ImageInvert" in answer["details"][0]["message"]
    status, answer = await rig.start(params={"workflow": "edges", "2.low_threshold": "high"})
    assert (status, answer["field"]) == (400, "2.low_threshold")
    status, answer = await rig.post("/stream/params", {"a": 1})
    assert status == 400
    async with rig.http.post(
        rig.base + "/stream/start", data=b"{", headers={"Content-Type": "application/json"}
    ) as r:
        assert r.status == 400
    assert len(rig.worker.table) == 0


async def test_an_unreachable_source_and_a_missing_channel_end_in_error(rig):
    await rig.start("gone", subscribe_url=rig.channel("nobody-publishes-this"))
    report = await rig.until(lambda r: r["reason"] is not None, "gone")
    assert (report["state"], report["error"]["code"]) == ("ERROR", "source_failed")
    assert "404" in report["reason"] or "no channel" in report["reason"]
    await rig.start("dead", subscribe_url="http://127.0.0.1:9/x")
    report = await rig.until(lambda r: r["reason"] is not None, "dead")
    assert report["error"]["code"] == "source_failed"
    assert "127.0.0.1:9" in report["reason"]


def _foreign() -> bytes:
    """A transport stream of which nothing is of use."""
    made = io.BytesIO()
    with av.open(made, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(stream.encode(None))
    return made.getvalue()


async def test_a_stream_that_cannot_be_decoded_is_reported_and_harms_nothing(rig):
    publisher = TricklePublisher(rig.channel("one-in"))
    await publisher.start()
    await rig.start()
    for _ in range(3):
        writer = await publisher.next_segment()
        await writer.write(os.urandom(188 * 200))
        await writer.close()
        await asyncio.sleep(0.2)
    report = await rig.until(lambda r: r["state"] == "DEGRADED_INPUT")
    assert report["counts"]["frames_in"] == 0
    assert "no MPEG transport stream" in report["decoder"]["problem"]
    writer = await publisher.next_segment()
    await writer.write(_foreign())
    await writer.close()
    report = await rig.until(lambda r: "mpeg2video" in r["decoder"]["problem"])
    assert report["decoder"]["problem"] == "the video track is mpeg2video, which is not supported"
    await publisher.close()
    report = await rig.until(lambda r: r["reason"] is not None)
    assert report["reason"] == "the input ended"


async def test_emitted_text_reaches_the_data_channel(rig):
    items: list = []

    async def read() -> None:
        async for segment in TrickleSubscriber(
            rig.channel("one-data"), start=0, not_found_grace=20
        ).segments():
            items.append(await segment.read(1 << 20))

    reading = asyncio.create_task(read())
    feeding = asyncio.create_task(rig.play(clip(3)))
    await rig.start(
        data_url=rig.channel("one-data"),
        params={"width": 128, "height": 128, "processor": "tests.live.live_processors:Talks"},
    )
    await asyncio.wait_for(asyncio.gather(feeding, reading), 30)
    assert b'["frame' in b"".join(items).replace(b", ", b",")


async def test_several_sessions_share_an_engine_fairly(rig):
    viewers = await asyncio.gather(*(_through(rig, clip(5), {"workflow": INVERT}, f"s{i}") for i in range(3)))
    reports = [await rig.report(f"s{i}") for i in range(3)]
    assert all(len([p for p in v.pictures if is_processed(p)]) > 15 for v in viewers)
    results = [r["counts"]["frames_out"] - r["counts"]["repeated"] - r["counts"]["overlaid"] for r in reports]
    assert max(results) - min(results) <= 0.4 * max(results)

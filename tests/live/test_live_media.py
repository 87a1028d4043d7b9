"""What a live stream may hold beside the pictures of a source: sound, alone, late, stereo, touched by a
processor; pictures without a source."""

import asyncio
import io
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
from live_rig import INVERT, Rig, Viewer, clip, is_processed

from byoc.mock import clip as clips

pytestmark = pytest.mark.asyncio(loop_scope="module")

RATE = 48_000


def sound_alone(seconds: float) -> list[list[clips.Chunk]]:
    """A stream of AAC alone, a tone left and silence right, in segments of a second."""
    segments = []
    for second in range(int(seconds)):
        whole = io.BytesIO()
        with av.open(whole, "w", format="mpegts") as output:
            stream = output.add_stream("aac", rate=RATE, layout="stereo")
            for start in range(second * RATE, (second + 1) * RATE, 1024):
                times = np.arange(start, start + 1024) / RATE
                samples = np.stack((np.sin(times * 2764) * 0.5, np.zeros(1024))).astype(np.float32)
                frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
                frame.sample_rate, frame.pts, frame.time_base = RATE, start + 60480, Fraction(1, RATE)
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        data = whole.getvalue()
        pieces = [data[i : i + 188 * 5] for i in range(0, len(data), 188 * 5)]
        segments.append([clips.Chunk(p, second + i / len(pieces), None) for i, p in enumerate(pieces)])
    return segments


async def _watch(rig: Rig, segments, **params) -> Viewer:
    viewer = Viewer(rig.channel("one-out"))
    feeding = asyncio.create_task(rig.play(segments))
    status, answer = await rig.start(params={"width": 128, "height": 128, **params})
    assert status == 200, answer
    await asyncio.wait_for(asyncio.gather(feeding, viewer.run()), 60)
    return viewer


async def test_a_stream_of_sound_alone_goes_through_and_counts_as_online(rig):
    watching = asyncio.create_task(_watch(rig, sound_alone(6)))
    await rig.until(lambda r: r["state"] == "ONLINE" and r["counts"]["audio_in"] > 100)
    viewer = await watching
    assert viewer.pictures == []
    assert viewer.sounds[-1][1] - viewer.sounds[0][1] > 4
    assert len(viewer.segments) >= 2


async def test_sound_that_joins_late_is_heard(rig):
    silent, loud = clip(2, audio=None), clip(3)
    later = [[replace(chunk, due=chunk.due + 2) for chunk in segment] for segment in loud]
    viewer = await _watch(rig, [*silent, *later], workflow=INVERT)
    assert len(viewer.sounds) > 60
    assert len([p for p in viewer.pictures if is_processed(p)]) > 40


async def test_stereo_is_kept_and_a_processor_may_touch_it(rig):
    report = asyncio.create_task(rig.until(lambda r: r["counts"]["audio_in"] > 50))
    viewer = await _watch(rig, clip(4), processor="tests.live.live_processors:LeftOnly")
    await asyncio.gather(report, return_exceptions=True)
    assert {channels for _, _, channels in viewer.sounds} == {2}
    left, right = (np.mean([loud[side] for loud in viewer.loudness[20:]]) for side in (0, 1))
    assert left > 0.01
    assert right < left / 50


async def test_sound_leaves_when_the_picture_of_its_time_has_left(rig):
    viewer = await _watch(rig, clip(6), processor="tests.live.live_processors:Slow")
    lags = []
    for at, time, _ in viewer.sounds[50:-50]:
        shown = [p for p in viewer.pictures if p.at <= at]
        if shown:
            lags.append(time - shown[-1].time)
    # Sound is heard with its picture: neither before it nor long after.
    assert -1.0 < np.median(lags) < 0.15
    assert max(lags) < 0.5


async def test_nonsense_for_sound_is_named_and_the_original_goes_on(rig):
    watching = asyncio.create_task(_watch(rig, clip(4), processor="tests.live.live_processors:BreaksSound"))
    report = await rig.until(lambda r: r["error"] is not None)
    viewer = await watching
    assert "list" in report["error"]["message"] or "int" in report["error"]["message"]
    assert len(viewer.sounds) > 80
    assert len(viewer.pictures) > 40


async def test_a_processor_that_only_looks_is_online(rig):
    feeding = asyncio.create_task(rig.play(clip(20)))
    await rig.start(publish_url="", params={"processor": "tests.live.live_processors:Withholds"})
    report = await rig.until(lambda r: r["counts"]["withheld"] > 60)
    assert report["state"] == "ONLINE"
    feeding.cancel()
    await asyncio.gather(feeding, return_exceptions=True)


# -- pictures that a processor makes of nothing ----------------------------------------------------------


async def test_pictures_come_at_the_processors_rate_until_the_stop(rig):
    viewer = Viewer(rig.channel("one-out"))
    target = "tests.live.live_processors:Generates"
    status, answer = await rig.start(
        subscribe_url="", params={"width": 128, "height": 96, "processor": target}
    )
    assert status == 200, answer
    watching = asyncio.create_task(viewer.run())
    await rig.until(lambda report: report["counts"]["frames_out"] >= 30)
    status, answer = await rig.post("/stream/params", {"rate": 50}, **{"X-Stream-Id": "one"})
    assert status == 200, answer
    before = (await rig.report())["counts"]["frames_out"]
    await rig.until(lambda report: report["counts"]["frames_out"] >= before + 30)
    assert (await rig.report())["state"] == "ONLINE"
    status, _ = await rig.post("/stream/stop", {}, **{"X-Stream-Id": "one"})
    assert status == 200
    await asyncio.wait_for(watching, 20)
    assert {(p.width, p.height) for p in viewer.pictures} == {(128, 96)}
    assert viewer.pictures[-1].mean[0] > viewer.pictures[0].mean[0] + 40
    steps = [b.time - a.time for a, b in pairwise(viewer.pictures)]
    assert min(steps) > 0
    # Whole ticks of 1/25 s, then of 1/50 s.
    assert any(abs(step - 0.04) < 0.001 for step in steps[:20])
    assert any(abs(step - 0.02) < 0.001 for step in steps[-20:])


async def test_windows_and_typed_parameters_work_in_an_engine_too(rig):
    viewer = Viewer(rig.channel("one-out"))
    target = "tests.live.live_processors:TypedWindow"
    params = {"width": 128, "height": 96, "processor": target, "level": "0.5"}
    status, answer = await rig.start(subscribe_url="", params=params)
    assert status == 200, answer
    watching = asyncio.create_task(viewer.run())
    await rig.until(lambda report: report["counts"]["frames_out"] >= 10)
    status, answer = await rig.post("/stream/params", {"level": "bright"})
    assert (status, answer["field"]) == (400, "level")
    status, answer = await rig.post("/stream/params", {"level": 0.9})
    assert status == 200, answer
    before = (await rig.report())["counts"]["frames_out"]
    await rig.until(lambda report: report["counts"]["frames_out"] >= before + 20)
    schema = rig.worker.table.find(rig.prefix + "one").processor.info().schema
    assert schema["properties"]["level"]["type"] == "number"
    await rig.post("/stream/stop", {}, **{"X-Stream-Id": "one"})
    await asyncio.wait_for(watching, 20)
    greys = [round(picture.mean[0]) for picture in viewer.pictures]
    assert abs(greys[0] - 128) < 8
    assert abs(greys[-1] - 230) < 8

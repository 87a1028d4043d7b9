"""Sound on its way through a live stream: alone, late, stereo, touched by a processor."""

import asyncio
import io
from dataclasses import replace
from fractions import Fraction

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

"""A stream without input, of which a processor in an engine makes the pictures."""

import asyncio
from itertools import pairwise

import pytest
from live_rig import Viewer

pytestmark = pytest.mark.asyncio(loop_scope="module")


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

"""ComfyStream's control channel over a session whose workflow runs in a real engine."""

import asyncio
import contextlib
import copy
import time

import pytest
from live_rig import INVERT, Viewer, clip, is_processed, is_raw

from headrace.server.control_channel import Channels
from headrace.server.definitions import WorkerDefinitions
from headrace.server.specs import Specs
from tests.stream.webrtc.channel_pair import TestChannel

LIMIT = 60
BLUR = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}, "_meta": {"title": "In"}},
    "2": {
        "class_type": "ImageBlur",
        "inputs": {"image": ["1", 0], "blur_radius": 3, "sigma": 1.5},
        "_meta": {"title": "Soft"},
    },
    "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
}


pytestmark = pytest.mark.asyncio(loop_scope="module")


@contextlib.asynccontextmanager
async def controlled(rig, **params):
    """A stream that runs, the two channels to it and its viewer."""
    viewer = Viewer(rig.channel("one-out"))
    feeding, viewing = asyncio.create_task(rig.play(clip(60))), asyncio.create_task(viewer.run())
    channels = None
    try:
        status, answer = await rig.start(params={"width": 128, "height": 128, **params})
        assert status == 200, answer
        session = rig.worker.table.find(f"{rig.prefix}one")
        channels = Channels(session, Specs(WorkerDefinitions()), rig.worker.feeds)
        control, data = TestChannel("control"), TestChannel("data")
        channels.opened("control", control)
        channels.opened("data", data)
        yield session, control, data, viewer
    finally:
        if channels is not None:
            channels.close()
        for task in (feeding, viewing):
            task.cancel()
        await asyncio.gather(feeding, viewing, return_exceptions=True)


async def shows(viewer, so):
    """Wait until the newest picture is ``so``."""
    end = time.monotonic() + LIMIT
    while True:
        if viewer.pictures and so(viewer.pictures[-1]):
            return
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


async def test_the_six_messages(rig):
    async with controlled(rig, workflow=BLUR) as (session, control, _, viewer):
        # Known before anything is loaded.
        early = (await control.ask({"type": "get_nodes"}))["nodes"]
        assert early["0"]["2"]["inputs"]["sigma"]["value"] == 1.5
        await rig.until(lambda r: r["counts"]["frames_out"] > 5)
        answer = await control.ask({"type": "get_nodes"})
        assert set(answer) == {"type", "nodes"}
        node = answer["nodes"]["0"]["2"]
        assert node["class_type"] == "ImageBlur"
        assert node["inputs"]["image"]["value"] == ["1", 0]
        sigma = node["inputs"]["sigma"]
        assert set(sigma) == {"value", "type", "min", "max", "widget"}
        assert (sigma["type"], sigma["value"]) == ("FLOAT", 1.5)
        assert sigma["min"] < sigma["value"] < sigma["max"]

        # One value is another: that becomes a change of parameters. Pages send numbers as text.
        changed = copy.deepcopy(BLUR)
        changed["2"]["inputs"]["sigma"] = "2.5"
        answer = await control.ask({"type": "update_prompts", "prompts": [changed]})
        assert (answer["type"], answer["success"], answer["changed"]) == ("prompts_updated", True, "params")
        assert session.params == {"2.sigma": 2.5}
        assert (await control.ask({"type": "get_nodes"}))["nodes"]["0"]["2"]["inputs"]["sigma"][
            "value"
        ] == 2.5
        again = await control.ask({"type": "update_prompts", "prompts": [changed]})
        assert (again["success"], again["changed"]) == (True, None)

        # Another workflow is put in its place; a broken one is not, and says all that is wrong.
        answer = await control.ask({"type": "update_prompts", "prompts": [INVERT]})
        assert (answer["success"], answer["changed"]) == (True, "workflow")
        broken = {"1": {"class_type": "Nope", "inputs": {}}, "2": {"class_type": "Neither", "inputs": {}}}
        answer = await control.ask({"type": "update_prompts", "prompts": [broken]})
        assert (answer["success"], answer["code"]) == (False, "invalid_workflow")
        assert {d["class_type"] for d in answer["details"] if "class_type" in d} == {"Nope", "Neither"}
        assert list((await control.ask({"type": "get_nodes"}))["nodes"]["0"]) == ["1", "2", "3"]
        two = await control.ask({"type": "update_prompts", "prompts": [INVERT, BLUR]})
        assert two["success"]
        assert set((await control.ask({"type": "get_nodes"}))["nodes"]) == {"0", "1"}

        answer = await control.ask({"type": "update_resolution", "width": 96, "height": 64})
        assert (answer["type"], answer["success"]) == ("resolution_updated", True)
        await shows(viewer, lambda picture: (picture.width, picture.height) == (96, 64))
        answer = await control.ask({"type": "update_resolution", "width": 5, "height": "x"})
        assert (answer["success"], answer["field"]) == (False, "width")


async def test_paused_the_last_processed_picture_is_held(rig):
    async with controlled(rig, workflow=INVERT) as (_, control, _, viewer):
        await rig.until(lambda r: r["counts"]["frames_out"] > 5)
        await shows(viewer, is_processed)
        begun = len(viewer.pictures)
        assert await control.ask({"type": "pause_prompts"}) == {"type": "prompts_paused", "success": True}
        repeated = (await rig.report())["counts"]["repeated"]
        report = await rig.until(lambda r: r["counts"]["repeated"] > repeated + 3)
        assert report["state"] == "ONLINE"
        assert await control.ask({"type": "stop_prompts"}) == {"type": "prompts_stopped", "success": True}
        await shows(viewer, lambda picture: not is_processed(picture))
        assert await control.ask({"type": "resume_prompts"}) == {"type": "prompts_resumed", "success": True}
        await shows(viewer, is_processed)
        assert not any(is_raw(picture) for picture in viewer.pictures[begun:])


async def test_our_own_messages_and_the_news(rig):
    async with controlled(rig, workflow=BLUR) as (_, control, data, _):
        schema = (await control.ask({"type": "get_schema"}))["schema"]
        assert schema["properties"]["2.sigma"]["type"] == "number"
        # It waits for the load, as ComfyStream's offers did.
        answer = await control.ask({"type": "update_params", "params": {"Soft.sigma": 4}, "id": "s"})
        assert (answer["success"], answer["id"]) == (True, "s")
        answer = await control.ask({"type": "update_params", "params": {"2.sigma": "wide"}})
        assert (answer["success"], answer["field"]) == (False, "2.sigma")
        answer = await control.ask({"type": "switch_workflow", "workflow": "edges", "id": 4})
        assert (answer["type"], answer["success"], answer["id"]) == ("workflow_switched", True, 4)
        answer = await control.ask({"type": "switch_workflow", "workflow": "/etc/passwd"})
        assert (answer["success"], answer["code"]) == (False, "not_found")
        assert (await control.ask({"type": "get_status"}))["status"]["id"] == f"{rig.prefix}one"
        told = [message["event"] for message in data.sent]
        assert told[0]["type"] == "state"
        assert next(event["params"] for event in told if event["type"] == "params") == {"Soft.sigma": 4}


async def test_prompt_and_statistics_over_http_and_no_recording_without_a_folder(rig):
    async with controlled(rig) as (session, _, _, _):
        await rig.until(lambda r: r["counts"]["frames_out"] > 5)
        for route, workflow in (("/prompt", INVERT), ("/live/prompt", [BLUR])):
            async with rig.http.post(rig.base + route, json=workflow) as response:
                assert (response.status, await response.text()) == (200, "OK")
            assert session.params["workflow"] == workflow
        async with rig.http.post(
            f"{rig.base}/prompt", json={"1": {"class_type": "Nope", "inputs": {}}}
        ) as response:
            assert response.status == 400
            assert (await response.json())["details"]
        await asyncio.sleep(2.2)
        stats = await rig.get("/live/streams/stats")
        one = f"{rig.prefix}one"
        assert set(stats) == {one}
        assert set(stats[one]) == {"timestamp", "fps", "minute_avg_fps", "minute_fps_array"}
        assert stats[one]["minute_fps_array"][-1]["fps"] > 0
        assert (await rig.get(f"/stream/{one}/stats"))["fps"] > 0
        assert (await rig.get("/stream/none/stats"))["error"] == "Stream not found"
        status, answer = await rig.post("/stream/record", {"stream_id": one})
        assert (status, answer["code"]) == (403, "forbidden")
        assert "--recordings" in answer["message"]

"""A worker with a ComfyUI beside its own engine: streams go where their classes are, and move."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_rig import INVERT, Rig, Viewer, clip, is_processed, is_raw, running
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "headrace" / "comfyui"))

from stand_in import write_installation

HALF_A_MINUTE = 30.0
LOAD = {"class_type": "LoadTensor", "inputs": {}}


def graph(*classes: str, **inputs: Any) -> dict[str, Any]:
    """in -> nodes of ``classes`` in a row -> out; ``inputs`` go to the last one."""
    made: dict[str, Any] = {"0": LOAD}
    for number, name in enumerate(classes):
        more = inputs if number == len(classes) - 1 else {}
        made[str(number + 1)] = {"class_type": name, "inputs": {"image": [str(number), 0], **more}}
    made["out"] = {"class_type": "SaveTensor", "inputs": {"images": [str(len(classes)), 0]}}
    return made


def white_picture() -> str:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "white").save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def picture_in(url: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


async def change(rig: Rig, **params: Any) -> tuple[int, Any]:
    return await rig.post("/stream/params", params, **{"X-Stream-Id": "one"})


async def test_a_stream_moves_between_our_engine_and_two_of_comfyui(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    settings: dict[str, Any] = {
        "comfyui": write_installation(tmp_path / "ComfyUI"),
        "comfyui_python": sys.executable,
        "comfyui_second": "on",
        "engine_device": "cpu",
        "batch": False,
        "workflows": tmp_path / "kept",
    }
    segments = clip(60, fps=15)
    async with running(tmp_path, **settings) as rig:
        assert rig.worker.comfyui is not None
        comfyui = rig.worker.comfyui.service
        await comfyui.wait_introduced(HALF_A_MINUTE)
        report = await rig.get("/comfyui")
        assert report["version"] == "9.9.9"
        assert {pack["name"] for pack in report["failed"]} == {"fails", "exits", "leaves", "ComfyUI-Manager"}

        # Refused before anything begins: what is in neither, and what is in both.
        params = {"width": 128, "height": 128}
        status, body = await rig.start(params={**params, "workflow": graph("Invertt")})
        assert status == 400
        assert "did you mean Invert?" in json.dumps(body) or "unknown_class" in json.dumps(body)
        status, body = await rig.start(params={**params, "workflow": graph("Invert", "ImageInvert")})
        assert status == 400
        assert "mixed_engines" in json.dumps(body)

        status, body = await rig.start(params={**params, "workflow": graph("Invert")})
        assert status == 200, body
        viewer = Viewer(rig.channel("one-out"))
        watching = asyncio.ensure_future(viewer.run())
        playing = asyncio.ensure_future(rig.play(segments))
        try:
            await rig.until(lambda report: any(map(is_processed, viewer.pictures)), timeout=HALF_A_MINUTE)
            assert comfyui.uses == {"comfyui": 1}

            # In a second ComfyUI; its picture is dark where the first one's was bright.
            status, body = await change(rig, workflow=graph("Scale", by=0.0))
            assert status == 200, body
            await rig.until(lambda report: max(viewer.pictures[-1].mean) < 20, timeout=HALF_A_MINUTE)
            assert comfyui.uses["comfyui-2"] == 1
            status, body = await change(rig, **{"1.by": 1.0})
            assert status == 200, body
            await rig.until(lambda report: is_raw(viewer.pictures[-1]), timeout=HALF_A_MINUTE)

            # What was tuned there is kept, and runs there as a request.
            status, body = await rig.post("/workflows/mine/save", {"session": "one"})
            assert (status, body["changed"]) == (201, ["1.by"]), body
            asked = {"image": white_picture(), "params": {"1.by": 0.5}}
            status, body = await rig.post("/workflows/mine/run", asked, Accept="application/json")
            assert status == 200, body
            assert picture_in(body["images"][0]["url"]).mean() == pytest.approx(127, abs=2)

            # What cannot run leaves it as it is.
            for bad in (graph("Nonsense"), graph("Scale", by=99.0)):
                status, body = await change(rig, workflow=bad)
                assert status >= 400
            assert (await rig.report())["state"] == "ONLINE"
            assert sum(comfyui.uses.values()) == 1

            # Home again, with the built-in nodes.
            status, body = await change(rig, workflow=INVERT)
            assert status == 200, body
            await rig.until(lambda report: is_processed(viewer.pictures[-1]), timeout=HALF_A_MINUTE)
            assert sum(comfyui.uses.values()) == 0
        finally:
            for task in (playing, watching):
                task.cancel()
            await asyncio.gather(playing, watching, return_exceptions=True)
            await rig.post("/stream/stop", {"stream_id": "one"})

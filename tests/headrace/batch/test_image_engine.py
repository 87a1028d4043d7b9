"""Pictures through a real batch engine process: progress, cancelling, files, requests side by side."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import numpy as np
import pytest
from models_here import store_of
from pictures_here import Asking, pictures, upload

from headrace.batch.client import BatchEngine, BatchSettings
from headrace.batch.contract import Progress
from headrace.engine.settings import EngineSettings
from stream.errors import InvalidInput

WAIT = 120.0
WISH: dict[str, Any] = {
    "prompt": "a cat",
    "height": 64,
    "width": 64,
    "num_inference_steps": 4,
    "guidance_scale": 5.0,
    "seed": 3,
}
SD = "demo:tiny-sd"


async def test_pictures_through_the_engine_are_those_of_the_pipeline_and_a_cancelled_request_ends(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    roots = store_of(request.config).roots
    folders = {"models": str(roots.models), "hub": str(roots.hub), "cache": str(roots.cache)}
    settings = BatchSettings(
        EngineSettings(name="batch", device="cpu", threads=1, call_timeout=30.0), folders=folders
    )
    async with BatchEngine(settings) as engine:
        await engine.wait_ready(WAIT)
        heard: list[Progress] = []
        made = await engine.run("text-to-image", SD, WISH, on_progress=heard.append, timeout=WAIT)
        assert made.blobs == Asking(store_of(request.config)).text(**WISH).blobs
        assert {told.phase for told in heard} == {"loading", "running"}

        many = await asyncio.gather(
            *(engine.run("text-to-image", SD, {**WISH, "seed": n % 2 * 3}, timeout=WAIT) for n in range(4)),
            engine.run("image-to-image", SD, {**WISH, "strength": 0.8}, upload(), timeout=WAIT),
            engine.run(
                "segment-anything-2", "demo:tiny-sam2", {"mask_format": "rle"}, upload(), timeout=WAIT
            ),
            engine.run("image-to-text", "demo:tiny-blip", {"max_new_tokens": 3}, upload(), timeout=WAIT),
        )
        # They may be made together, which rounds otherwise.
        zero, three, *rest = (pictures(one)[0].astype(int) for one in many[:4])
        for one, other in ((three, pictures(made)[0]), (three, rest[1]), (zero, rest[0])):
            assert np.abs(one - other).max() <= 1
        assert np.abs(zero - three).max() > 1
        assert pictures(many[4])[0].shape == (48, 64, 3)
        assert many[5].body["masks"][0]["size"] == [48, 64]

        steps: list[Progress] = []
        long = {**WISH, "num_inference_steps": 200, "num_images_per_prompt": 16}
        task = asyncio.create_task(
            engine.run("text-to-image", SD, long, on_progress=steps.append, timeout=WAIT)
        )
        async with asyncio.timeout(WAIT):
            while not any(told.phase == "running" for told in steps):  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            while engine.under_way:  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.01)
        assert steps[-1].step < steps[-1].of
        with pytest.raises(InvalidInput, match="height is 60") as caught:
            await engine.run("text-to-image", SD, {**WISH, "height": 60}, timeout=WAIT)
        assert caught.value.field == "height"
        assert all(entry["leases"] == 0 for entry in await engine.models())
        # The last request's thread ends a moment after its answer.
        await asyncio.sleep(0.5)
    assert "the engine ends" not in caplog.text, "a thread was left running"

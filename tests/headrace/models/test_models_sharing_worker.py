"""A worker whose engines share weights: what it starts, what it tells, and that nothing is left of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest
from aiohttp.test_utils import TestClient, TestServer

from headrace.server.app import build_app
from headrace.server.worker import Worker
from headrace.settings import Settings

WAIT = 90.0


@pytest.mark.descriptors
async def test_a_worker_shares_weights_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    worker = Worker(
        Settings(share_weights="on", engine_device="cpu", models_folder=tmp_path, port=0, hardware="off")
    )
    async with TestClient(TestServer(build_app(worker))) as client:
        await worker.start()
        try:
            await worker.engine.wait_ready(WAIT)
            live = psutil.Process(worker.engine.pid)
            prefix = worker.holders.addresses["cpu"]
            assert f"--holder=cpu={prefix}" in live.cmdline()
            wanted = {"model_id": "demo:tiny-llama", "wait": True}
            async with asyncio.timeout(WAIT):
                warm = await client.post("/models/warm", json=wanted)
                assert warm.status == 200, await warm.text()
            told = await (await client.get("/models")).json()
            assert told["sharing"] == {"batch": "shared"}
            holder = told["holders"]["cpu"]
            assert (holder["state"], holder["restarts"], holder["last_exit"]) == ("running", 0, "")
            (entry,) = told["models"]
            assert entry["state"] == "loaded"
            assert any(part.startswith("held:") for part in entry["parts"])
            children = psutil.Process().children(recursive=True)
            assert holder["pid"] in {child.pid for child in children}
        finally:
            await worker.stop()
    assert not [child for child in children if child.is_running()]
    assert prefix not in await asyncio.to_thread(Path("/proc/net/unix").read_text)


async def test_without_sharing_there_is_no_holder(tmp_path: Path) -> None:
    for settings in (Settings(share_weights="off"), Settings(share_weights="auto")):
        worker = Worker(settings)
        kinds = set(worker.holders.addresses)
        assert kinds == ({"cuda"} if settings.share_weights == "auto" else set())
        assert worker.engine.settings.holders == worker.holders.addresses
        await worker.stop()

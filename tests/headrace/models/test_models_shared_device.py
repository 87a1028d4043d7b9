"""Engines that share a device, as processes: the worker's ledger, its routes and the command line."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import Application

from headrace.batch.client import BatchEngine, BatchSettings
from headrace.engine.client import EngineProcessor
from headrace.engine.link import Message
from headrace.engine.settings import EngineSettings
from headrace.models import ledger_service
from headrace.models.errors import ModelTooLarge, NoRoom
from headrace.models.ledger_service import LedgerService
from headrace.models.live_models import watch_models
from headrace.models.roots import Roots
from headrace.models.routes import ModelRoutes
from headrace.models.store import ModelStore
from stream.frames import Picture, VideoFrame

HERE = Path(__file__).parent
ROOT = Path(__file__).parents[3]
BUDGET = 100_000_000
WAIT = 60.0

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Keeper:
    """Makes models warm in one engine, as the batch service does."""

    def __init__(self, engine: BatchEngine) -> None:
        self.engine = engine

    async def warm(self, pipeline: str, model: str) -> None:
        await self.engine.warm(pipeline, model)

    async def unload(self, model: str) -> int:
        return await self.engine.unload(model)


def engine(name: str, folder: Path, ledger: LedgerService) -> BatchEngine:
    settings = BatchSettings(
        EngineSettings(name=name, device="cpu", threads=1, nice=5, extra_path=(str(HERE),)),
        folders={part: str(folder / part) for part in ("models", "hub", "cache")},
        pipelines={"sized": "sized_pipelines:Sized"},
    )
    return BatchEngine(settings, ledger)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With files of models that look as such; there is nothing in them."""
    folder = tmp_path_factory.mktemp("device")
    for name in ("a-30", "halted-30", "broken-30", "z-30"):
        model = folder / "models" / "m" / name
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ledger() -> AsyncIterator[LedgerService]:
    ledger = LedgerService(BUDGET)
    yield ledger
    await ledger.close()


Pair = tuple[BatchEngine, BatchEngine]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(folder: Path, ledger: LedgerService) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        pair = [await stack.enter_async_context(engine(name, folder, ledger)) for name in ("one", "two")]
        watch_models(pair[1].engine, ledger, name="streams")
        await asyncio.gather(*(one.wait_ready(WAIT) for one in pair))
        yield pair[0], pair[1]


@pytest_asyncio.fixture(loop_scope="module")
async def engines(both: Pair, ledger: LedgerService) -> Pair:
    """The module's two engines, with nothing loaded in them."""
    for one in both:
        await one.wait_ready(WAIT)
        for entry in await one.models():
            await one.unload(entry["key"]["ref"])
    for entry in ledger.report()["models"]:
        if entry["engine"] == "streams":
            await ledger.unload(entry["model"])
    await until(lambda: held(ledger) == {})
    return both


@pytest_asyncio.fixture(loop_scope="module")
async def client(folder: Path, ledger: LedgerService, engines: Pair) -> AsyncIterator[TestClient[Any, Any]]:
    roots = Roots(folder / "models", folder / "hub", folder / "cache")
    routes = ModelRoutes(ModelStore(roots), ledger, Keeper(engines[0]))
    app = Application()
    routes.register(app)
    async with TestClient(TestServer(app)) as client:
        yield client
    await routes.close()


def held(ledger: LedgerService) -> dict[str, str]:
    """What is loaded, by model, and in which engine."""
    models = ledger.report()["models"]
    return {entry["model"]: entry["engine"] for entry in models if entry["state"] == "loaded"}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT):
        while not condition():  # noqa: ASYNC110 (what changes is in another process)
            await asyncio.sleep(0.02)


async def test_a_load_in_one_engine_sends_the_idle_model_of_another_away(
    engines: Pair, ledger: LedgerService
) -> None:
    one, two = engines
    await one.run("sized", "m/old-40", {})
    await two.run("sized", "m/new-40", {})
    assert held(ledger) == {"m/old-40": "one", "m/new-40": "two"}
    await two.run("sized", "m/more-50", {})
    await until(lambda: held(ledger) == {"m/new-40": "two", "m/more-50": "two"})
    assert ledger.report()["devices"]["cpu"]["used"] == 90_000_000
    # What is in use stays, and is waited for.
    using = asyncio.create_task(two.run("sized", "m/more-50", {"hold": 1.0}))
    await until(lambda: any(entry["leases"] for entry in ledger.report()["models"]))
    await one.run("sized", "m/last-60", {})
    assert (await using).body["bytes"] == 50_000_000
    # Of two that could go, the one that makes room alone does.
    await until(lambda: held(ledger) == {"m/last-60": "one", "m/new-40": "two"})
    with pytest.raises(
        ModelTooLarge, match=r"m/huge-101 needs 101\.0 MB; the budget of the device is 100\.0 MB"
    ):
        await one.run("sized", "m/huge-101", {})


async def test_an_engine_that_dies_leaves_its_memory_to_the_others(
    engines: Pair, ledger: LedgerService
) -> None:
    one, two = engines
    await one.warm("sized", "m/pinned-80")
    assert one.engine.pid is not None
    os.kill(one.engine.pid, signal.SIGKILL)
    assert (await two.run("sized", "m/other-80", {})).body["weights"] == "random"
    # What was warm comes back, now that the other is idle.
    await until(lambda: held(ledger) == {"m/pinned-80": "one"})


def stream(engine: BatchEngine, folder: Path, model: str, **kwargs: Any) -> EngineProcessor:
    given = {"model": model, "folder": str(folder), **kwargs}
    spec = {"kind": "class", "target": "sized_pipelines:SizedStream", "kwargs": given}
    return EngineProcessor(engine.engine, spec, session=model)


async def test_the_models_of_streams_are_told_of_and_make_room_and_stay(
    engines: Pair, ledger: LedgerService, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = engines
    await one.run("sized", "m/idle-60", {})
    (folder / "wait").touch()
    live = stream(two, folder, "m/live-50")
    opening = asyncio.create_task(live.load_model())

    def entry(model: str) -> dict[str, Any]:
        return next((told for told in ledger.report()["models"] if told["model"] == model), {"state": ""})

    # The idle model of the batch engine goes, so that the stream's can be loaded; how far that is, is told.
    await until(lambda: entry("m/live-50").get("progress") == 0.5)
    assert (entry("m/live-50")["state"], entry("m/live-50")["what"]) == ("loading", "reading")
    assert entry("m/idle-60")["state"] == ""
    (folder / "wait").unlink()
    await opening
    await until(lambda: entry("m/live-50")["state"] == "loaded" and entry("m/live-50")["leases"] == 1)
    told = entry("m/live-50")
    assert (told["engine"], told["bytes"], told["weights"]) == ("streams", 50_000_000, "random")
    assert told["last_used"] > 0
    # A batch load does not have it, also not when one stream of two has left it idle.
    other = stream(two, folder, "m/more-30")
    await other.load_model()
    await live.on_stream_stop()
    await until(lambda: entry("m/live-50")["leases"] == 0)
    with monkeypatch.context() as hurry:
        hurry.setattr(ledger_service, "PATIENCE", 0.2)
        with pytest.raises(NoRoom, match="m/big-60 needs"):
            await one.run("sized", "m/big-60", {})
    assert held(ledger) == {"m/live-50": "streams", "m/more-30": "streams"}
    # Another stream does; it, too, is not let in where there is no room.
    third = stream(two, folder, "m/third-60")
    await third.load_model()
    await until(lambda: held(ledger) == {"m/third-60": "streams", "m/more-30": "streams"})
    with monkeypatch.context() as hurry:
        hurry.setattr(ledger_service, "PATIENCE", 0.2)
        with pytest.raises(NoRoom, match="m/fourth-20 needs"):
            await stream(two, folder, "m/fourth-20").load_model()
    # Without streams they are idle models as others.
    await third.on_stream_stop()
    await other.on_stream_stop()
    await one.run("sized", "m/big-60", {})
    await until(lambda: held(ledger) == {"m/more-30": "streams", "m/big-60": "one"})


async def test_a_load_that_frames_wait_for_waits_for_nobody(
    engines: Pair, ledger: LedgerService, folder: Path
) -> None:
    one, two = engines
    await one.warm("sized", "m/pinned-90")
    late = stream(two, folder, "m/late-20", late=True)
    await late.load_model()
    await late.on_stream_start({})
    await late.process_video_async(
        VideoFrame.from_picture(Picture.from_rgb(np.zeros((8, 8, 3), np.uint8)), 0, Fraction(1, 30))
    )
    await until(lambda: held(ledger) == {"m/pinned-90": "one", "m/late-20": "streams"})
    await late.on_stream_stop()


async def test_models_are_made_warm_and_unloaded_over_http(
    client: TestClient[Any, Any], folder: Path
) -> None:
    asked = await client.post("/models/warm", json={"model_id": "m/halted-30", "pipeline": "sized"})
    assert (asked.status, (await asked.json())["status"]) == (202, "loading")

    async def entry_with(**wanted: object) -> dict[str, Any]:
        async with asyncio.timeout(WAIT):
            while True:
                for entry in (await (await client.get("/models")).json())["models"]:
                    if wanted.items() <= entry.items():
                        found: dict[str, Any] = entry
                        return found
                await asyncio.sleep(0.02)

    await entry_with(model="m/halted-30", state="loading", progress=0.5, what="reading", warm=False)
    (folder / "models" / "go").touch()
    entry = await entry_with(model="m/halted-30", state="loaded", warm=True)
    assert (entry["engine"], entry["bytes"], entry["leases"]) == ("one", 30_000_000, 0)
    assert (entry["weights"], entry["device"], entry["dtype"]) == ("random", "cpu", "uint8")
    on_disk = await (await client.get("/models?disk=1")).json()
    assert "m/halted-30" in {one["model"] for one in on_disk["disk"]}
    freed = await (await client.post("/models/unload", json={"model": "m/halted-30"})).json()
    assert freed["freed"] == 30_000_000
    again = await client.post("/models/unload", json={"model": "m/halted-30"})
    assert (again.status, (await again.json())["code"]) == (404, "not_found")


async def test_a_model_that_fails_says_why_to_whoever_waits_and_to_whoever_looks(
    client: TestClient[Any, Any],
) -> None:
    waiting = {"model_id": "m/broken-30", "pipeline": "sized", "wait": True}
    failed = await client.post("/models/warm", json=waiting)
    assert (failed.status, (await failed.json())["code"]) == (500, "load_failed")
    failures = (await (await client.get("/models")).json())["failures"]
    assert [one["message"] for one in failures if one["model"] == "m/broken-30"] == ["a bad file"]
    good = await client.post("/models/warm", json={"model_id": "m/z-30", "pipeline": "sized", "wait": True})
    assert (good.status, (await good.json())["status"]) == (200, "warm")


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"{", 400, None),
        (b"[]", 400, None),
        (b"{}", 400, "model_id"),
        (b'{"model_id": 5}', 400, "model_id"),
        (b'{"model_id": "../../etc"}', 400, "model_id"),
        (b'{"model_id": "m/none"}', 404, "model_id"),
        (b'{"model_id": "m/a-30"}', 400, "pipeline"),
        (b'{"model_id": "m/a-30", "pipeline": 1}', 400, "pipeline"),
        (b'{"model_id": "m/a-30", "wait": "yes"}', 400, "wait"),
        (b'"' + b"x" * 70_000 + b'"', 400, None),
    ],
)
async def test_bad_requests_name_the_field(
    folder: Path, ledger: LedgerService, body: bytes, status: int, field: str | None
) -> None:
    roots = Roots(folder / "models", folder / "hub", folder / "cache")
    routes = ModelRoutes(ModelStore(roots), ledger, Keeper(engine("none", folder, ledger)))
    app = Application()
    routes.register(app)
    async with TestClient(TestServer(app)) as client:
        answer = await client.post("/models/warm", data=body)
        found = await answer.json()
        assert (answer.status, found.get("field")) == (status, field), found
    await routes.close()


async def test_the_command_line_makes_warm_and_unloads(client: TestClient[Any, Any]) -> None:
    url = str(client.make_url(""))

    async def headrace(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "headrace", "models", *arguments, "--url", url]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, cwd=ROOT, timeout=WAIT
        )
        return done.returncode, done.stdout + done.stderr

    assert await headrace("warm", "m/a-30", "--pipeline", "sized") == (0, "m/a-30 is warm\n")
    status, words = await headrace("list", "--loaded")
    assert status == 0
    assert re.search(r"m/a-30 +warm +30.0 MB .* s ago", words), words
    assert await headrace("unload", "m/a-30") == (0, "m/a-30: 30.0 MB freed\n")
    assert await headrace("list", "--loaded") == (0, "no model is loaded\n")
    assert await headrace("unload", "m/a-30") == (1, "headrace: error: model m/a-30 is not loaded\n")
    status, words = await headrace("warm", "m/broken-30", "--pipeline", "sized")
    assert (status, words) == (1, "headrace: error: a bad file\n")
    status, words = await headrace("warm", "m/none")
    assert status == 1
    assert "headrace models pull m/none" in words


async def test_what_makes_no_sense_is_left_out() -> None:
    ledger = LedgerService(BUDGET)
    for body in (
        {},
        {"kind": "report"},
        {"kind": "admit", "key": 5},
        {"kind": "report", "entries": [{}], "device": 1},
    ):
        ledger.received("one", Message(dict(body)))
    assert ledger.report()["models"] == []
    assert json.dumps(ledger.report())
    await ledger.close()

"""ComfyUI beside a worker's own engine: what the operator allows, and the second engine that another
workflow is loaded in."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from stand_in import write_installation

from headrace.comfyui import service as service_module
from headrace.comfyui.placement import GAP
from headrace.comfyui.service import ComfyService
from headrace.comfyui.setup import ComfyBeside, wait_until_known
from headrace.engine.guardian import Engine
from headrace.engine.settings import EngineSettings
from headrace.engine.swapping import SwappingProcessor
from headrace.server.definitions import WorkerDefinitions
from headrace.server.specs import Specs
from headrace.settings import load_settings
from stream.frames import Picture, VideoFrame
from stream.processor import Emission

pytestmark = pytest.mark.asyncio(loop_scope="module")

READY = 120.0


def chain(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {
        "in": {"class_type": "LoadTensor", "inputs": {}},
        "x": {"class_type": class_type, "inputs": {"image": ["in", 0], **inputs}},
        "out": {"class_type": "SaveTensor", "inputs": {"images": ["x", 0]}},
    }


class Worker:
    """One whose own engine never starts."""

    def __init__(self, folder: Path) -> None:
        self.settings = load_settings(
            {
                "comfyui": folder,
                "comfyui_python": sys.executable,
                "comfyui_prestart": True,
                "comfyui_network": True,
                "comfyui_skip_packs": ["comfyui-manager"],
                "comfyui_second": "auto",
                "engine_device": "cpu",
            }
        )
        self.engine = Engine(EngineSettings(name="live", device="cpu"))
        self.specs = Specs(WorkerDefinitions())


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def worker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Worker]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Worker(write_installation(tmp_path_factory.mktemp("installation")))


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def beside(worker: Worker) -> AsyncIterator[ComfyBeside]:
    made = ComfyBeside(worker)
    await wait_until_known(made.service, READY)
    yield made
    await made.service.stop()


class Stream:
    """A session and what it has said."""

    def __init__(self, processor: SwappingProcessor) -> None:
        self.processor = processor
        self.told: list[Emission] = []

    @classmethod
    async def of(cls, worker: Worker, beside: ComfyBeside, workflow: dict[str, Any]) -> Stream:
        made = cls(beside.processor(worker.specs.of_workflow(workflow), session="s"))
        made.processor.bind(made.told.append)
        await made.processor.load_model()
        await made.processor.on_stream_start({})
        return made

    async def change(self, workflow: dict[str, Any]) -> None:
        await self.processor.prepare_params({"workflow": workflow})
        await self.processor.update_params({"workflow": workflow})

    async def shade(self) -> int:
        """What becomes of 100."""
        picture = Picture.from_rgb(np.full((16, 16, 3), 100, np.uint8))
        frame = VideoFrame.from_picture(picture, 0, Fraction(1, 30))
        result = await self.processor.process_video_async(frame)
        assert isinstance(result, VideoFrame)
        return int(result.tensor[0, 0, 0, 0] * 255 + 0.5)

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [one.data for one in self.told if one.kind == "event" and one.data["type"] == kind]


def stub(name: str) -> Engine:
    """An engine without torch and without ComfyUI."""
    host = Path(__file__).parents[1] / "engine" / "stub_host.py"
    env = {"STUB": "serve"}
    return Engine(EngineSettings(name=name, python=(sys.executable, str(host)), env=env))


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(READY):
        while not reached():  # noqa: ASYNC110 (nothing tells of it)
            await asyncio.sleep(0.05)


async def free_is(service: ComfyService, size: int | None) -> None:
    """Have the first engine say that so much is free of its device."""
    told = service._scratch / "comfyui" / "temp" / "free"
    told.unlink(missing_ok=True) if size is None else told.write_text(str(size))
    memory = service._memory["comfyui"]
    await until(lambda: memory.free == (64 << 30 if size is None else size))


async def test_network_nodes_and_pre_start_scripts_are_there_where_they_are_allowed(
    worker: Worker, beside: ComfyBeside
) -> None:
    known = beside.service.definitions
    assert {"Paid", "PRESTARTED"} <= set(known)
    assert "MANAGED" not in known, "the script of a pack that is left out has run"
    stream = await Stream.of(worker, beside, chain("Paid"))
    assert await stream.shade() == 100
    await stream.processor.on_stream_stop()


async def test_the_same_nodes_in_another_order_stay_where_they_are(
    worker: Worker, beside: ComfyBeside
) -> None:
    stream = await Stream.of(worker, beside, chain("Scale", by=1.0))
    inner = stream.processor.inner
    await stream.change(dict(reversed(chain("Scale", by=0.5).items())))
    assert stream.processor.inner is inner
    assert await stream.shade() == 50
    assert beside.service.engines[1].state == "stopped"
    assert not stream.events("notice")
    await stream.processor.on_stream_stop()


async def test_without_memory_for_a_second_engine_the_gap_is_announced_and_with_it_the_second_is_used(
    worker: Worker, beside: ComfyBeside
) -> None:
    first, second = beside.service.engines
    stream = await Stream.of(worker, beside, chain("Scale", by=0.5))
    await free_is(beside.service, 1 << 20)
    await stream.change(chain("Invert"))
    assert [one["message"] for one in stream.events("notice")] == [GAP]
    assert await stream.shade() == 155
    assert (stream.processor.inner.engine, second.state) == (first, "stopped")

    await free_is(beside.service, None)
    stream.told.clear()
    change = asyncio.ensure_future(stream.change(chain("Scale", by=2.0)))
    while stream.processor.inner.engine is first:
        assert await stream.shade() in (155, 200)
        await asyncio.sleep(0.05)
    await change
    assert not stream.events("notice")
    assert (stream.processor.inner.engine, await stream.shade()) == (second, 200)
    told = [one["message"] for one in stream.events("progress")]
    assert told[0] == "the other workflow: the engine is starting"
    assert told[-1] == "the other workflow: ready"
    await stream.processor.on_stream_stop()
    await second.stop()


async def test_of_two_engines_that_become_idle_together_one_stays(
    beside: ComfyBeside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "IDLE", 0.05)
    service = ComfyService(beside.service.settings, lambda _: None)
    service.engines = [stub(engine.settings.name) for engine in service.engines]
    try:
        for engine in service.engines:
            await service.made_ready(engine)
            service.entered(engine)
        for engine in service.engines:
            service.left(engine)
        await until(lambda: any(engine.state == "stopped" for engine in service.engines))
        await asyncio.sleep(0.1)
        assert [engine.state for engine in service.engines].count("ready") == 1
        assert service.first.state == "ready"
    finally:
        await service.stop()

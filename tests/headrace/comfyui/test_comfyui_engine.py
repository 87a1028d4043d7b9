"""An engine in an installation of ComfyUI's layout: start-up, packs, confinement, memory, sessions."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from stand_in import tree_of, write_installation

from headrace.comfyui.host.options import ComfyOptions
from headrace.comfyui.installation import Installation
from headrace.comfyui.service import ComfyService, ComfySettings
from headrace.comfyui.setup import wait_until_known
from headrace.engine.client import EngineProcessor
from headrace.engine.link import Message
from headrace.models.ledger_service import LedgerService
from headrace.models.refs import ModelKey
from stream.errors import HeadraceError, InvalidWorkflow, ProcessorError
from stream.frames import Picture, VideoFrame
from workflows.definitions import Definitions

pytestmark = pytest.mark.asyncio(loop_scope="module")

READY = 120.0
BUDGET = 64 << 30
"""Bytes, of the ledger."""
LOAD = {"class_type": "LoadTensor", "inputs": {}, "_meta": {"title": "input"}}


def chain(class_type: str, **inputs: Any) -> dict[str, Any]:
    """in -> the node ``x``, which takes the frame as ``image`` -> out."""
    return {
        "in": LOAD,
        "x": {"class_type": class_type, "inputs": {"image": ["in", 0], **inputs}},
        "out": {"class_type": "SaveTensor", "inputs": {"images": ["x", 0]}},
    }


def scaled_by(class_type: str, **inputs: Any) -> dict[str, Any]:
    """in -> Scale, by what the node ``made`` gives -> out."""
    return {**chain("Scale", by=["made", 0]), "made": {"class_type": class_type, "inputs": inputs}}


class Rig:
    """A running service on a stand-in installation."""

    def __init__(self, folder: Path, cache: Path, ledger: LedgerService | None, **options: Any) -> None:
        self.folder = folder
        self.before = tree_of(folder)
        self.told: list[Definitions] = []
        settings = ComfySettings(
            Installation(folder, os.environ.get("HEADRACE_TEST_COMFYUI_PYTHON") or sys.executable),
            ComfyOptions(str(folder), "", skip_packs=("comfyui-manager",), **options),
            cache,
            device="cpu",
            second="off",
            env={"QUESTIONS": str(cache)},
        )
        self.ledger = ledger or LedgerService()
        self.service = ComfyService(settings, self.told.append, ledger)

    def models(self) -> list[dict[str, Any]]:
        """Its entries in the ledger."""
        return [entry for entry in self.ledger.report()["models"] if entry["engine"] == "comfyui"]

    async def session(self, workflow: dict[str, Any], **spec: Any) -> EngineProcessor:
        made = EngineProcessor(
            self.service.first, {"kind": "workflow", "workflow": workflow, **spec}, session="s"
        )
        await made.load_model()
        await made.on_stream_start({})
        return made


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    folder = write_installation(tmp_path_factory.mktemp("installation"))
    made = Rig(
        folder,
        tmp_path_factory.mktemp("cache"),
        LedgerService(BUDGET),
        keep=0.5,
        classes=(
            "Inv*",
            "Scale",
            "Shift",
            "Slow",
            "Asked",
            "Checkpoint",
            "Sample",
            "LoadImage",
            "ReadFile",
            "Text",
            "Quits",
            "Blend",
        ),
    )
    await wait_until_known(made.service, READY)
    yield made
    await made.service.stop()


async def frame_of(processor: EngineProcessor, value: int = 51) -> int:
    picture = Picture.from_rgb(np.full((16, 16, 3), value, np.uint8))
    result = await processor.process_video_async(VideoFrame.from_picture(picture, 0, Fraction(1, 30)))
    assert isinstance(result, VideoFrame)
    return int(result.tensor[0, 0, 0, 0] * 255 + 0.5)


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(READY):
        while not reached():  # noqa: ASYNC110 (nothing tells of it)
            await asyncio.sleep(0.05)


async def test_packs_are_loaded_and_those_that_cannot_be_are_named(rig: Rig) -> None:
    report = rig.service.report()
    packs = {pack["name"]: pack for pack in report["packs"]}
    assert packs["good"]["loaded"]
    assert packs["good"]["classes"] == 6
    assert packs["prints"]["loaded"]
    assert packs["serves"]["loaded"]
    reasons = {pack["name"]: pack["reason"] for pack in rig.service.failed_packs()}
    assert set(reasons) == {"fails", "exits", "leaves", "ComfyUI-Manager"}
    assert "a_package_that_nobody_has" in reasons["fails"]
    assert "sys.exit(no GPU, no fun)" in reasons["exits"]
    assert "os._exit(7)" in reasons["leaves"]
    assert "left out" in reasons["ComfyUI-Manager"]
    assert report["version"] == "9.9.9"
    assert report["engines"][0]["state"] == "ready"
    assert rig.service.facts is not None
    assert rig.service.facts["server_uses"]["send_sync"] == 1


async def test_its_classes_are_known_and_network_nodes_and_pre_start_scripts_are_off(rig: Rig) -> None:
    known = rig.service.definitions
    assert {"Invert", "Shift", "LoadImage", "LoadTensor"} <= set(known)
    assert not {"Paid", "PRESTARTED", "MANAGED"} & set(known)
    assert known["Checkpoint"].inputs["ckpt_name"].choices == ("further.safetensors", "tiny.safetensors")
    assert known["LoadImage"].validates == {"image"}
    assert rig.told[-1] is known


async def test_definitions_are_kept_for_the_time_before_the_engine_is_up(rig: Rig) -> None:
    told: list[Definitions] = []
    again = ComfyService(rig.service.settings, told.append)
    try:
        assert set(told[0]) == set(rig.service.definitions)
    finally:
        await again.stop()
    pack = rig.folder / "custom_nodes" / "good" / "__init__.py"
    before = rig.service.settings.installation.state()
    text = pack.read_text()
    pack.write_text(text + "\n# changed\n")
    assert rig.service.settings.installation.state() != before
    pack.write_text(text)


async def test_frames_go_through_its_nodes(rig: Rig) -> None:
    processor = await rig.session(chain("Invert"))
    assert await frame_of(processor, 51) == 204
    await processor.update_params({"workflow": chain("Scale", by=0.5)})
    assert await frame_of(processor, 100) == 50
    await processor.update_params({"x.by": 2.0})
    assert await frame_of(processor, 100) == 200
    await processor.on_stream_stop()


async def test_sessions_have_node_instances_of_their_own(rig: Rig) -> None:
    first, second = [await rig.session(chain("Shift", by=0.2)) for _ in range(2)]
    for processor in (first, second):
        assert await frame_of(processor, 0) == 0
    assert [await frame_of(first) for _ in range(3)] == [51, 102, 153]
    assert await frame_of(second) == 51
    for processor in (first, second):
        await processor.on_stream_stop()


async def test_a_node_that_calls_sys_exit_costs_the_frame_alone(rig: Rig) -> None:
    processor = await rig.session(chain("Quits"))
    pid = rig.service.first.pid
    with pytest.raises(ProcessorError, match="SystemExit: 3"):
        await frame_of(processor, 255)
    assert await frame_of(processor, 51) == 51
    await processor.update_params({"workflow": chain("Invert")})
    assert await frame_of(processor, 51) == 204
    assert rig.service.first.pid == pid
    await processor.on_stream_stop()


@pytest.mark.parametrize(
    ("workflow", "words"),
    [
        (scaled_by("ReadFile", file_path="/etc/passwd"), "outside of the folders"),
        (scaled_by("ReadFile", file_path="../../secret"), "leads out of its folder"),
        (scaled_by("ReadFile", file_path="~/.ssh/id"), "tilde"),
        (scaled_by("ReadFile", file_path="C:\\secret"), "another system"),
        (scaled_by("ReadFile", file_path="https://example.org/x"), "names a URL"),
        ({**scaled_by("ReadFile", file_path=["text", 0]),
          "text": {"class_type": "Text", "inputs": {"text": "/etc"}}}, "chooses a file"),
        ({**chain("Blend", other=["pic", 0]),
          "pic": {"class_type": "LoadImage", "inputs": {"image": "../main.py"}}}, "leads out of its folder"),
        (chain("Prints"), "may not be used"),
    ],
)  # fmt: skip
async def test_what_is_not_confined_is_refused_before_any_call(
    rig: Rig, workflow: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidWorkflow, match=words) as caught:
        await rig.session(workflow)
    assert caught.value.details[0]["code"] in ("not_confined", "class_not_allowed")
    running = await rig.session(chain("Invert"))
    with pytest.raises(InvalidWorkflow, match=words):
        await running.update_params({"workflow": workflow})
    assert await frame_of(running, 51) == 204
    await running.on_stream_stop()


async def test_its_own_folders_may_be_named_and_a_changed_literal_is_confined_too(rig: Rig) -> None:
    inside = str(rig.folder / "input" / "cat.png")
    processor = await rig.session(scaled_by("ReadFile", file_path=inside))
    assert await frame_of(processor, 100) == 50
    with pytest.raises(HeadraceError, match="outside of the folders"):
        await processor.update_params({"made.file_path": "/etc/passwd"})
    assert await frame_of(processor, 100) == 50
    await processor.on_stream_stop()


async def test_the_operators_own_workflow_may_use_all_classes_and_what_replaces_it_may_not(rig: Rig) -> None:
    processor = await rig.session(chain("Prints"), trusted=True)
    assert await frame_of(processor, 51) == 51
    await processor.update_params({"workflow": chain("Invert")})
    with pytest.raises(InvalidWorkflow, match="may not be used"):
        await processor.update_params({"workflow": chain("Prints")})
    assert await frame_of(processor, 51) == 204
    await processor.on_stream_stop()


async def test_frames_that_cannot_have_the_lock_are_left_out_with_the_reason_and_go_on(rig: Rig) -> None:
    running = await rig.session(chain("Invert"))
    assert await frame_of(running, 51) == 204
    loading = asyncio.ensure_future(rig.session(scaled_by("Slow", seconds=2.5, value=0.5)))
    seen: list[str] = []
    while not loading.done():
        try:
            await frame_of(running, 51)
        except HeadraceError as error:
            seen.append(f"{error.code}: {error.message}")
    assert any("the picture stands still" in words for words in seen)
    assert all(words.startswith("engine") for words in seen)
    assert await frame_of(running, 51) == 204
    slow = await loading
    assert await frame_of(slow, 100) == 50
    for processor in (running, slow):
        await processor.on_stream_stop()


async def test_frames_go_on_while_a_class_hashes_its_file(rig: Rig) -> None:
    processor = await rig.session(scaled_by("Asked", value=0.5))
    hold, asked = [rig.service.settings.cache / name for name in ("hold", "asked")]
    hold.touch()
    try:
        async with asyncio.timeout(READY):
            while not asked.exists():
                assert await frame_of(processor, 100) == 50
        for _ in range(3):
            assert await frame_of(processor, 100) == 50
        asked.unlink()
        change = asyncio.ensure_future(processor.prepare_params({"made.value": 0.25}))
        async with asyncio.timeout(READY):
            while not asked.exists():
                assert await frame_of(processor, 100) == 50
        for _ in range(3):
            assert await frame_of(processor, 100) == 50
        assert not change.done()
    finally:
        hold.unlink()
    await change
    await processor.update_params({"made.value": 0.25})
    assert await frame_of(processor, 100) == 25
    await processor.on_stream_stop()


class Batch:
    """An engine beside it on the same device, as far as the ledger sees one. ``asked``: what it is told."""

    def __init__(self, ledger: LedgerService) -> None:
        self._ledger = ledger
        self.asked: list[Mapping[str, Any]] = []
        self.may_release = asyncio.Event()
        ledger.attach("batch", self.ask)

    async def ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.append(body)
        if body["what"] != "release":
            return {}
        await self.may_release.wait()
        return {"released": body["keys"]}

    def has(self, size: int) -> None:
        """An idle model of that many bytes."""
        report = {"state": "loaded", "progress": 1.0, "what": "", "leases": 0, "pinned": False}
        report |= {"last_used": 1.0, "weights": "real", "load_seconds": 0.0}
        entry = {**report, "key": ModelKey("m", "", "", "cpu", "x").as_dict(), "parts": {"w": size}}
        body = {"kind": "report", "device": "cpu", "total": 0, "entries": [entry] if size else []}
        self._ledger.received("batch", Message(body))

    def wants(self, size: int) -> None:
        key = ModelKey("n", "", "", "cpu", "x").as_dict()
        body = {"kind": "admit", "device": "cpu", "request": 7, "key": key, "size": size}
        self._ledger.received("batch", Message(body))


async def test_its_loads_ask_the_ledger_which_has_others_make_room(rig: Rig) -> None:
    batch = Batch(rig.ledger)
    batch.has(BUDGET)
    loading = asyncio.ensure_future(rig.session(scaled_by("Checkpoint", ckpt_name="tiny.safetensors")))
    await until(lambda: bool(batch.asked))
    assert [one["what"] for one in batch.asked] == ["release"]
    assert not loading.done()
    batch.may_release.set()
    processor = await loading
    assert await frame_of(processor, 100) == 50
    memory = rig.service._memory["comfyui"]
    await until(lambda: memory.reclaimable == 4 << 30)
    assert [entry["bytes"] for entry in rig.models()] == [4 << 30]
    assert not rig.ledger._books["cpu"].waiting
    await processor.on_stream_stop()


async def test_what_is_too_large_for_the_ledger_is_comfyuis_own_affair(rig: Rig) -> None:
    processor = await rig.session(scaled_by("Checkpoint", ckpt_name="further.safetensors"))
    assert await frame_of(processor, 100) == 50
    memory = rig.service._memory["comfyui"]
    await until(lambda: memory.reclaimable > BUDGET)
    async with asyncio.timeout(READY):
        while memory.reclaimable:  # until the frame is long enough ago
            assert await memory._ask({"what": "release", "keys": []}) == {"released": []}
            await asyncio.sleep(0.1)
    await processor.on_stream_stop()


async def test_models_that_no_stream_uses_are_let_go_when_others_need_the_room(rig: Rig) -> None:
    loader = {"class_type": "Checkpoint", "inputs": {"ckpt_name": "tiny.safetensors"}}
    graph = {**chain("Sample", by=["made", 0]), "made": loader}
    processor = await rig.session(graph)
    memory, batch = rig.service._memory["comfyui"], Batch(rig.ledger)

    async def shown_until(reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(READY):
            while not reached():
                assert await frame_of(processor, 100) == 50
                await asyncio.sleep(0.02)

    await shown_until(lambda: memory.idle >= 4 << 30 and memory.reclaimable > memory.idle)
    leases = {entry["revision"]: entry["leases"] for entry in rig.models()}
    assert leases == {"in use": 1, "idle": 0}
    batch.wants(BUDGET - (2 << 30))
    await shown_until(lambda: bool(batch.asked))
    assert batch.asked == [{"what": "admitted", "request": 7}]
    await shown_until(lambda: memory.idle == 0)
    assert memory.reclaimable == 50 << 20
    rig.ledger.lost("batch")
    await processor.on_stream_stop()


async def test_a_session_comes_back_after_its_engine_was_killed(tmp_path: Path) -> None:
    rig = Rig(write_installation(tmp_path / "installation"), tmp_path / "cache", None)
    try:
        await wait_until_known(rig.service, READY)
        processor = await rig.session(chain("Shift", by=0.2))
        assert await frame_of(processor, 0) == 0
        assert [await frame_of(processor) for _ in range(2)] == [51, 102]
        engine, generation = rig.service.first, rig.service.first.generation
        engine.condemn("is killed by the test")
        await until(lambda: engine.generation > generation)
        await processor.wait_ready(READY)
        assert await frame_of(processor, 0) == 0
        assert await frame_of(processor) == 51
        await processor.on_stream_stop()
    finally:
        await rig.service.stop()


async def test_nothing_was_written_into_the_installation(rig: Rig) -> None:
    assert tree_of(rig.folder) == rig.before

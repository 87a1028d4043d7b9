"""Engines that get their weights from one process: by memory files, on the CPU, as they would on CUDA."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from headrace.batch.client import BatchEngine, BatchSettings
from headrace.engine.guardian import Engine
from headrace.engine.link import Message
from headrace.engine.settings import EngineSettings
from headrace.models.holder_service import HolderService
from headrace.models.ledger_service import LedgerService
from headrace.models.live_memory import watch_memory

HERE = Path(__file__).parent
WAIT = 60.0
MODELS = ("m/one", "m/two")

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of some 13 MB."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("sharing")
    for number, name in enumerate(MODELS):
        torch.manual_seed(number)
        config = LlamaConfig(
            vocab_size=2048,
            hidden_size=512,
            intermediate_size=1024,
            num_hidden_layers=1,
            num_attention_heads=8,
            num_key_value_heads=8,
        )
        LlamaForCausalLM(config).save_pretrained(folder / "models" / name)
    return folder


def size_of(folder: Path, model: str = MODELS[0]) -> int:
    return (folder / "models" / model / "model.safetensors").stat().st_size


def engine(name: str, folder: Path, ledger: LedgerService, holders: HolderService) -> BatchEngine:
    settings = BatchSettings(
        EngineSettings(
            name=name,
            device="cpu",
            threads=1,
            nice=5,
            call_timeout=30.0,
            extra_path=(str(HERE),),
            holders=holders.addresses,
        ),
        folders={part: str(folder / part) for part in ("models", "hub", "cache")},
        pipelines={"held": "held_pipelines:Held", "hoard": "held_pipelines:Hoard"},
    )
    made = BatchEngine(settings, ledger)
    holders.watch(made.engine)
    return made


MODULE = {"scope": "module", "loop_scope": "module"}


@pytest_asyncio.fixture(**MODULE)
async def shared_ledger() -> AsyncIterator[LedgerService]:
    ledger = LedgerService(10**9)
    yield ledger
    await ledger.close()


@pytest_asyncio.fixture(loop_scope="module")
async def ledger() -> AsyncIterator[LedgerService]:
    ledger = LedgerService(10**9)
    yield ledger
    await ledger.close()


@pytest_asyncio.fixture(**MODULE)
async def holders() -> AsyncIterator[HolderService]:
    holders = HolderService("on")
    yield holders
    await holders.close()


@pytest_asyncio.fixture(**MODULE)
async def engines(
    folder: Path, shared_ledger: LedgerService, holders: HolderService
) -> AsyncIterator[tuple[BatchEngine, BatchEngine]]:
    async with AsyncExitStack() as stack:
        pair = [
            await stack.enter_async_context(engine(name, folder, shared_ledger, holders))
            for name in ("one", "two")
        ]
        await asyncio.gather(*(one.wait_ready(WAIT) for one in pair))
        yield pair[0], pair[1]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT):
        while not condition():  # noqa: ASYNC110 (what changes is in another process)
            await asyncio.sleep(0.02)


def holder_pid(holders: HolderService) -> int:
    return int(holders.report()["cpu"]["pid"])


def held_bytes(pid: int) -> int:
    """What a holder has in memory files."""
    total = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{name}"
        if "headrace-weights" in os.readlink(path):
            total += os.stat(path).st_size
    return total


def listening(holders: HolderService) -> bool:
    return holders.addresses["cpu"] in Path("/proc/net/unix").read_text()


async def test_two_engines_have_weights_once_until_both_let_go(
    folder: Path,
    engines: tuple[BatchEngine, BatchEngine],
    shared_ledger: LedgerService,
    holders: HolderService,
) -> None:
    one, two = engines
    (await one.run("held", "m/one", {})), (await two.run("held", "m/one", {}))
    bodies = [(await e.run("held", "m/one", {})).body for e in engines]
    assert bodies[0]["sum"] == bodies[1]["sum"]
    assert bodies[0]["touched"] == bodies[1]["touched"] > 0
    size = size_of(folder)
    # Every page of it is in use by both, and counts as half in each of them.
    assert 0.95 * size < bodies[0]["held"] + bodies[1]["held"] < 1.05 * size, bodies
    assert [body["files"] for body in bodies] == [0, 0]
    assert held_bytes(holder_pid(holders)) == size
    report = shared_ledger.report()
    assert report["sharing"] == {"one": "shared", "two": "shared"}
    # So it does in the ledger: once for both, beside the few bytes that each has for itself.
    assert size <= report["devices"]["cpu"]["used"] < size + 1_000_000
    await one.unload("m/one")
    assert (await two.run("held", "m/one", {})).body["sum"] == bodies[0]["sum"]
    assert held_bytes(holder_pid(holders)) == size
    await two.unload("m/one")
    await until(lambda: held_bytes(holder_pid(holders)) == 0)
    # What was let go can be had again.
    assert (await one.run("held", "m/one", {})).body["sum"] == bodies[0]["sum"]
    assert held_bytes(holder_pid(holders)) == size


async def test_requests_go_on_when_the_holder_is_killed(
    folder: Path,
    engines: tuple[BatchEngine, BatchEngine],
    shared_ledger: LedgerService,
    holders: HolderService,
) -> None:
    one, _ = engines
    first = (await one.run("held", "m/one", {})).body
    pids = [e.engine.pid for e in engines]
    steps = asyncio.Event()
    running = asyncio.create_task(
        one.run("held", "m/one", {"steps": 20, "pause": 0.02}, on_progress=lambda _: steps.set())
    )
    await asyncio.wait_for(steps.wait(), WAIT)
    os.kill(killed := holder_pid(holders), signal.SIGKILL)
    # One load while there is none, or just so, and one when it is back.
    other = (await one.run("held", "m/two", {})).body
    assert (await running).body["sum"] == first["sum"]
    assert (await one.run("held", "m/one", {})).body["sum"] == first["sum"]
    await until(lambda: holders.report()["cpu"]["state"] == "running" and holder_pid(holders) != killed)
    assert holders.report()["cpu"]["restarts"] == 1
    assert holders.report()["cpu"]["last_exit"] == "was killed by SIGKILL"
    await one.unload("m/two")
    again = (await one.run("held", "m/two", {})).body
    assert again["sum"] == other["sum"]
    assert held_bytes(holder_pid(holders)) == size_of(folder)
    assert shared_ledger.report()["sharing"]["one"] == "shared"
    assert [e.engine.pid for e in engines] == pids


@pytest.mark.descriptors
async def test_nothing_is_left_of_a_holder_and_without_one_an_engine_loads_its_own_and_says_what_it_has_taken(
    folder: Path, ledger: LedgerService, caplog: pytest.LogCaptureFixture
) -> None:
    def held() -> int:
        devices = ledger.report()["devices"]
        return int(devices["cpu"]["held"].get("alone", 0)) if "cpu" in devices else 0

    caplog.set_level(logging.INFO)
    holders = HolderService("on")
    async with engine("alone", folder, ledger, holders) as alone:
        watch_memory(alone.engine, ledger)
        await alone.wait_ready(WAIT)
        await alone.run("held", "m/one", {})
        pid = holder_pid(holders)
        assert listening(holders)
        os.kill(pid, signal.SIGSTOP)  # one that does not listen to SIGTERM
        async with asyncio.timeout(10):
            await holders.close()  # from now on none is started
        assert not psutil.pid_exists(pid)
        assert holders.report() == {}
        assert (await alone.run("held", "m/one", {})).body["held"] > 0
        await alone.unload("m/one")
        body = (await alone.run("held", "m/one", {})).body
        assert (body["held"], body["files"] > 0) == (0, True)
        await until(lambda: "no holder of weights answers" in ledger.report()["sharing"].get("alone", ""))
        before = held()
        await alone.run("hoard", "m/one", {"bytes": 200_000_000})
        await until(lambda: held() >= before + 190_000_000)
    assert "this engine loads its own" in caplog.text
    assert ledger.report()["sharing"] == {}
    assert held() == 0
    assert not listening(holders)


async def test_devices_get_a_holder_as_the_mode_says() -> None:
    assert HolderService("off").addresses == {}
    assert set(HolderService("auto").addresses) == {"cuda"}
    holders = HolderService("auto")
    holders.ensure("cpu")
    assert holders.report() == {}


async def test_what_live_sessions_take_is_held_in_the_ledger(ledger: LedgerService) -> None:
    live = Engine(EngineSettings(name="live"))
    told: dict[str, Any] = {}
    live.route = lambda name, callback: told.update({name: callback})  # type: ignore[method-assign, assignment]
    watch_memory(live, ledger)
    (callback,) = told.values()
    callback(Message({"device": "cpu", "bytes": 5_000_000}))
    assert ledger.report()["devices"]["cpu"]["held"] == {"live": 5_000_000}
    for wrong in ({}, {"device": 5, "bytes": 1}, {"device": "cpu", "bytes": -1}):
        callback(Message(dict(wrong)))
    assert ledger.report()["devices"]["cpu"]["used"] == 5_000_000
    live._set_state("restarting")
    assert ledger.report()["devices"]["cpu"]["used"] == 0

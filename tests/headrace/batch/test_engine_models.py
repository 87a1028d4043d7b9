"""Real small models in a real batch engine: many requests at once, a kill in the middle, no leftovers."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import psutil
import pytest
import pytest_asyncio
from models_here import needs, store_of

from headrace.batch.client import BatchEngine, BatchSettings
from headrace.batch.contract import Result
from headrace.batch.errors import Interrupted, UnsupportedMedia
from headrace.engine.settings import EngineSettings

WAIT = 120.0
TINY = "demo:tiny-llama"

pytestmark = pytest.mark.asyncio(loop_scope="module")


def settings(config: pytest.Config) -> BatchSettings:
    roots = store_of(config).roots
    folders = {"models": str(roots.models), "hub": str(roots.hub), "cache": str(roots.cache)}
    return BatchSettings(
        EngineSettings(name="batch", device="cpu", threads=1, call_timeout=30.0), folders=folders
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[BatchEngine]:
    async with BatchEngine(settings(request.config)) as engine:
        await engine.wait_ready(WAIT)
        yield engine


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(WAIT):
        while not condition():  # noqa: ASYNC110 (what changes is in another process)
            await asyncio.sleep(0.01)


def asking(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, "seed": 0, **more}


async def test_thirty_streams_at_once_each_get_their_own_answer_and_leave_nothing_open(
    engine: BatchEngine,
) -> None:
    async def one(number: int) -> tuple[Result, str]:
        pieces: list[str] = []
        inputs = asking(f"{number} " * (number % 5 + 1), max_tokens=10 + number, temperature=1, seed=number)
        result = await engine.run(
            "llm", TINY, inputs, on_piece=lambda piece: pieces.append(piece["text"]), timeout=WAIT
        )
        return result, "".join(pieces)

    alone = [await one(number) for number in range(0, 30, 10)]
    assert engine.engine.pid is not None
    process = psutil.Process(engine.engine.pid)
    before = process.num_fds()
    running = asyncio.gather(*(one(number) for number in range(30)))
    answers = 0
    while not running.done():
        # The engine's loop answers while its threads compute.
        answers += len(await engine.models())
    together = await running
    assert answers > 5
    assert all(result.body["text"] == streamed for result, streamed in together)
    assert all(result.body["usage"]["completion_tokens"] <= 10 + n for n, (result, _) in enumerate(together))
    assert [result.body for result, _ in together[::10]] == [result.body for result, _ in alone]
    await until(lambda: process.num_threads() <= 8 and process.num_fds() <= before)


async def test_a_stream_whose_reader_leaves_stops_in_the_engine(engine: BatchEngine) -> None:
    pieces: list[dict[str, Any]] = []
    asked = asking("x", max_tokens=1900, temperature=1.5)
    task = asyncio.create_task(engine.run("llm", TINY, asked, on_piece=pieces.append, timeout=WAIT))
    await until(lambda: len(pieces) > 5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: engine.under_way == 0)
    assert len(pieces) < 1000
    (entry,) = await engine.models()
    assert entry["leases"] == 0


@needs("hibari")
@needs("whisper-tiny.en")
async def test_speech_goes_through_the_engine_as_files(engine: BatchEngine) -> None:
    spoken = await engine.run(
        "text-to-speech", "demo:hibari", {"text": "Good morning, everybody.", "seed": 1}, timeout=WAIT
    )
    heard = await engine.run(
        "audio-to-text", "demo:whisper-tiny.en", {}, {"audio": spoken.blobs["speech.wav"]}, timeout=WAIT
    )
    assert "good morning" in heard.body["text"].lower()
    with pytest.raises(UnsupportedMedia, match="malformed file: Invalid data") as caught:
        await engine.run("audio-to-text", "demo:whisper-tiny.en", {}, {"audio": b"no sound"}, timeout=WAIT)
    assert (caught.value.status, caught.value.field) == (415, "audio")


async def test_a_kill_in_the_middle_of_an_answer_interrupts_it_and_the_next_engine_answers(
    engine: BatchEngine,
) -> None:
    pieces: list[dict[str, Any]] = []
    asked = asking("x", max_tokens=1900, temperature=1.5)
    waiting = [
        asyncio.create_task(engine.run("llm", TINY, asked, on_piece=pieces.append, timeout=WAIT))
        for _ in range(3)
    ]
    await until(lambda: len(pieces) > 5)
    assert engine.engine.pid is not None
    os.kill(engine.engine.pid, signal.SIGKILL)
    for error in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(error, Interrupted)
        assert "may be sent again" in error.message
        assert (error.status, error.retry_after > 0) == (503, True)
    result = await engine.run("llm", TINY, asking("x", max_tokens=3), timeout=WAIT)
    assert result.body["usage"]["completion_tokens"] == 3

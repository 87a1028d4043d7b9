"""Parler-TTS in an interpreter of its own, with a stand-in for its package."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from models_here import job_for

from headrace.batch.client import BatchSettings
from headrace.batch.contract import Progress
from headrace.batch.errors import Interrupted
from headrace.batch.parler_engine import BatchEngineWithParler
from headrace.batch.pipelines.text_to_speech import TextToSpeech
from headrace.engine.settings import EngineSettings
from headrace.models.cache import ModelCache
from headrace.models.roots import Roots
from headrace.models.store import ModelStore
from stream.errors import InvalidInput, NotInstalled

PACKAGES = str(Path(__file__).parent / "interpreter")
MODEL = "parler-tiny"


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    model = tmp_path / "models" / MODEL
    from headrace.models.tiny_text import chat_tokenizer

    chat_tokenizer().save_pretrained(model)
    config = {"model_type": "parler_tts", "architectures": ["ParlerTTSForConditionalGeneration"]}
    (model / "config.json").write_text(json.dumps(config))
    from safetensors.torch import save_file
    from torch import zeros

    save_file({"weight": zeros(10)}, model / "model.safetensors")
    return {name: str(tmp_path / name) for name in ("models", "hub", "cache")}


async def test_parler_speaks_in_an_interpreter_of_its_own(folders: dict[str, str]) -> None:
    engine = EngineSettings(name="batch", device="cpu", extra_path=(PACKAGES,))
    settings = BatchSettings(engine, folders=folders)
    asked = {"text": "ab", "description": "cd", "seed": 0}
    async with BatchEngineWithParler(settings, python=sys.executable) as batch:
        assert not batch.parler.ready
        results = [await batch.run("text-to-speech", MODEL, asked, timeout=60) for _ in range(2)]
        assert batch.parler.ready
        (entry,) = await batch.models()
        assert (entry["key"]["ref"], entry["key"]["kind"]) == (MODEL, "parler")
        with pytest.raises(InvalidInput, match="speed"):
            await batch.run("text-to-speech", MODEL, {**asked, "speed": 2}, timeout=60)
        assert await batch.unload(MODEL) > 0
        await killed_in_mid_request(batch)
        again = await batch.run("text-to-speech", MODEL, asked, timeout=60)
    assert again.blobs == results[0].blobs
    first, second = results
    assert first.blobs == second.blobs
    assert (first.body["sample_rate"], first.body["weights"]) == (44_100, "real")
    with wave.open(io.BytesIO(first.blobs["speech.wav"])) as file:
        samples = np.frombuffer(file.readframes(100), "<i2") / 32767
    from headrace.models.tiny_text import chat_tokenizer

    tokens = chat_tokenizer()("abcd")["input_ids"]
    assert np.abs(samples[:4] * 1000 - tokens).max() < 0.1


async def killed_in_mid_request(batch: BatchEngineWithParler) -> None:
    """Its client is told to send it again, and the other engine does not notice."""
    speaking = asyncio.Event()

    def heard(progress: Progress) -> None:
        if progress.note == "tokens":
            speaking.set()

    wish = {"text": "a mill by a river " * 4}
    long = asyncio.create_task(batch.run("text-to-speech", MODEL, wish, on_progress=heard, timeout=60))
    async with asyncio.timeout(30):
        await speaking.wait()
    assert batch.parler.engine.pid is not None
    os.kill(batch.parler.engine.pid, signal.SIGKILL)
    with pytest.raises(Interrupted, match="may be sent again") as caught:
        await long
    assert caught.value.status == 503
    assert caught.value.retry_after is not None
    assert batch.ready


def test_without_its_package_parler_is_refused_with_the_way_out(folders: dict[str, str]) -> None:
    store = ModelStore(Roots(*(Path(folders[name]) for name in ("models", "hub", "cache"))))
    job = job_for(store, "text-to-speech", MODEL, {"text": "Hello."})
    with pytest.raises(NotInstalled, match="parler_python"):
        TextToSpeech().run(job, ModelCache("cpu"))

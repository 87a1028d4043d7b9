"""Text to speech: VITS by transformers, the small one of the demo, and Parler where there is one."""

from __future__ import annotations

import importlib.util
import json
import secrets
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from headrace.batch.contract import Job, Result
from headrace.batch.pipelines.audio_decoding import Samples, wav
from headrace.batch.pipelines.text_to_speech_parts import parts_of
from headrace.models import loading, memory
from headrace.models.cache import Lease, Loaded, LoadProgress, ModelCache
from headrace.models.refs import ModelKey
from headrace.models.store import Located, ModelStore
from headrace.models.tiny import ensure_built
from stream.errors import InvalidInput, NotInstalled

_PAUSE = 0.15
"""Seconds of silence between two parts."""


class Voice(Protocol):
    """A loaded model that speaks."""

    rate: int

    def check(self, job: Job) -> None:
        """Raise `InvalidInput` for fields that this model cannot do anything with."""

    def parts(self, text: str) -> list[str]:
        """What is spoken at once: sentences."""

    def speak(self, text: str, job: Job, seed: int) -> Samples:
        """One part of the text."""


class TextToSpeech:
    """``/text-to-speech``: see `headrace.batch.contract.BatchPipeline`.

    Inputs: ``text``, ``description`` (models that are told how to speak), ``voice`` (models with several),
    ``speed``, ``seed``. The body has ``audio``, a WAV file, its ``duration`` in seconds, ``sample_rate`` and
    ``seed``.
    """

    name: ClassVar[str] = "text-to-speech"

    def run(self, job: Job, models: ModelCache) -> Result:
        seed = job.inputs.get("seed")
        seed = secrets.randbits(32) if seed is None else int(seed)
        with _acquire(job, models) as lease:
            voice: Voice = lease.model
            voice.check(job)
            parts = voice.parts(str(job.inputs["text"]))
            spoken: list[Samples] = []
            with job.turn():
                for number, part in enumerate(parts):
                    spoken.append(voice.speak(part, job, seed + number))
                    spoken.append(np.zeros(int(_PAUSE * voice.rate), np.float32))
                    job.progress(number + 1, len(parts), "parts")
            samples = np.concatenate(spoken[:-1]) if spoken else np.zeros(0, np.float32)
            if not samples.size:
                raise InvalidInput("text has nothing in it that can be spoken", field="text")
            body = {
                "audio": {"blob": "speech.wav"},
                "duration": round(samples.size / voice.rate, 3),
                "sample_rate": voice.rate,
                "seed": seed,
                "weights": lease.weights,
            }
            return Result(body, {"speech.wav": wav(samples, voice.rate)})

    def warm(self, job: Job, models: ModelCache) -> None:
        _acquire(job, models).release()


# -- voices --------------------------------------------------------------------------------------------


@dataclass
class Vits:
    """`VitsModel` of transformers (MMS-TTS and others)."""

    model: Any
    tokenizer: Any

    @property
    def rate(self) -> int:
        return int(self.model.config.sampling_rate)

    @property
    def _speakers(self) -> int:
        return int(getattr(self.model.config, "num_speakers", 1) or 1)

    def check(self, job: Job) -> None:
        self._speaker(job)

    def parts(self, text: str) -> list[str]:
        return list(parts_of(text))

    def _speaker(self, job: Job) -> int | None:
        wanted = str(job.inputs.get("voice") or "")
        if self._speakers <= 1 or not wanted:
            return None if self._speakers <= 1 else 0
        if not wanted.isdecimal() or int(wanted) >= self._speakers:
            raise InvalidInput(
                f"voice is {wanted!r}; model {job.model} has the voices 0 to {self._speakers - 1}",
                field="voice",
            )
        return int(wanted)

    def speak(self, text: str, job: Job, seed: int) -> Samples:
        encoded = self.tokenizer(text, return_tensors="pt")
        if not encoded.input_ids.numel():
            return np.zeros(0, np.float32)
        # The model draws from the one generator of all threads, and has its speed as an attribute; the device
        # is held, so nobody else of ours does meanwhile.
        with torch.random.fork_rng(devices=[self.model.device] if self.model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            before = self.model.speaking_rate
            self.model.speaking_rate = before * float(job.inputs.get("speed") or 1.0)
            try:
                speaker = self._speaker(job)
                told = {} if speaker is None else {"speaker_id": speaker}
                made = self.model(**encoded.to(self.model.device), **told).waveform[0]
            finally:
                self.model.speaking_rate = before
        return made.float().cpu().numpy()  # type: ignore[no-any-return]


@dataclass
class Hibari:
    """The small English voice of the package hibari-tts, on onnxruntime."""

    speaker: Any

    @property
    def rate(self) -> int:
        return int(self.speaker.sample_rate)

    def check(self, job: Job) -> None:
        return  # OpenAI's clients must name some voice; there is one

    def parts(self, text: str) -> list[str]:
        # It knows abbreviations of its own, and cuts what is too long.
        return list(self.speaker.split_sentences(text))

    def speak(self, text: str, job: Job, seed: int) -> Samples:
        speed = float(job.inputs.get("speed") or 1.0)
        return np.asarray(self.speaker(text, speed=speed, seed=seed), dtype=np.float32)


# -- loading -------------------------------------------------------------------------------------------


def _acquire(job: Job, models: ModelCache) -> Lease:
    assert job.store is not None
    found = job.store.find(job.model, variant=loading.variant_for(job.device))
    if found.kind == "onnx":
        return _acquire_hibari(job, models, found)
    if found.kind != "transformers":
        raise InvalidInput(f"model {job.model} is no text-to-speech model ({found.kind})", field="model_id")
    kind = _architecture(found)
    if kind.startswith("Parler"):
        from headrace.batch.pipelines.text_to_speech_parler import acquire

        return acquire(job, models, found)
    if kind not in ("VitsModel", ""):
        raise InvalidInput(
            f"model {job.model} is a {kind}; VITS and Parler-TTS can be spoken with", field="model_id"
        )
    return _acquire_vits(job, models, found, job.store)


def _architecture(found: Located) -> str:
    if not found.built:
        return ""
    config = json.loads((found.path / "config.json").read_text())
    names = config.get("architectures") or [""]
    return str(names[0])


def _acquire_vits(job: Job, models: ModelCache, found: Located, store: ModelStore) -> Lease:
    dtype = torch.float32  # half precision is heard
    key = ModelKey(job.model, found.revision, loading.name_of(dtype), job.device, "vits")

    def load(progress: LoadProgress) -> Loaded:
        from transformers import AutoTokenizer, VitsModel

        built = ensure_built(found, store)
        loaded = loading.load_transformers(
            built, VitsModel, cache=store.roots.cache, device=job.device, dtype=dtype, progress=progress
        )
        tokenizer = AutoTokenizer.from_pretrained(built.path, local_files_only=True)
        if getattr(tokenizer, "phonemize", False) and importlib.util.find_spec("phonemizer") is None:
            raise NotInstalled(
                f"model {job.model} speaks phonemes, which need phonemizer: pip install phonemizer"
            )
        parts = memory.parts_of(loaded.model, name=str(key))
        return Loaded(Vits(loaded.model, tokenizer), parts, loaded.weights)

    size = partial(loading.expected_bytes, found, dtype)
    return models.acquire(key, load, size=size, cancel=job.check, on_progress=job.loading)


def _acquire_hibari(job: Job, models: ModelCache, found: Located) -> Lease:
    key = ModelKey(job.model, found.revision, "float32", "cpu", "hibari")

    def load(progress: LoadProgress) -> Loaded:
        import hibari

        speaker = hibari.Hibari(model=str(found.path), threads=torch.get_num_threads())
        speaker("Ready.", seed=0)  # its rules of pronunciation are read with the first word
        return Loaded(Hibari(speaker), {str(key): found.bytes}, found.weights)

    return models.acquire(key, load, size=found.bytes, cancel=job.check, on_progress=job.loading)

"""Speech to text: Whisper by transformers, window after window, with times of segments or words."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from headrace.batch.contract import Job, Result
from headrace.batch.pipelines.acquiring import acquire
from headrace.batch.pipelines.audio_decoding import Samples, decode_audio
from headrace.batch.pipelines.audio_to_text_words import words_of
from headrace.models import loading
from headrace.models.cache import Lease, Loaded, LoadProgress, ModelCache
from headrace.models.store import Located
from stream.errors import InvalidInput

RATE = 16_000
MAX_WORD_SECONDS = 3600
"""Words are timed by attention weights, which take memory for every second."""
_WINDOW = 30
_FRAMES = 100
"""Frames of features in a second."""
_TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Tried one after the other where the surest transcript is improbable or repeats itself."""


@dataclass(frozen=True)
class Recogniser:
    """What the cache keeps of one model."""

    model: Any
    tokenizer: Any
    features: Any

    @property
    def multilingual(self) -> bool:
        return bool(getattr(self.model.generation_config, "is_multilingual", False))

    @property
    def first_time(self) -> int:
        """The token for 0.00 s; those below are text and orders."""
        return int(self.model.generation_config.no_timestamps_token_id) + 1

    def text(self, tokens: Any) -> str:
        return str(
            self.tokenizer.decode([t for t in tokens if t < self.first_time], skip_special_tokens=True)
        )


class AudioToText:
    """``/audio-to-text``: see `headrace.batch.contract.BatchPipeline`.

    Inputs: ``timestamps`` (``segment``, ``word``, ``none``), ``language``, ``task`` (``transcribe``,
    ``translate``), ``prompt``, ``temperature``; the blob ``audio``. The body has ``text``, ``chunks`` (each
    with ``timestamp`` and ``text``), ``duration`` in seconds and ``language`` where it is known.
    """

    name: ClassVar[str] = "audio-to-text"

    def run(self, job: Job, models: ModelCache) -> Result:
        samples = decode_audio(job.blobs["audio"], RATE)
        seconds = len(samples) / RATE
        wanted = job.inputs.get("timestamps", "segment")
        if wanted == "word" and seconds > MAX_WORD_SECONDS:
            raise InvalidInput(
                "Word timestamps are only supported for audio files up to 60 minutes for model "
                f"{job.model}; this one has {seconds / 60:.0f}",
                field="return_timestamps",
            )
        with _acquire(job, models) as lease:
            recogniser: Recogniser = lease.model
            with job.turn():
                language, segments = _transcribe(job, recogniser, samples, words=wanted == "word")
            body: dict[str, Any] = {
                "text": "".join(recogniser.text(segment["tokens"].tolist()) for segment in segments),
                "chunks": _chunks(recogniser, segments, wanted, language, seconds),
                "duration": round(seconds, 3),
                "weights": lease.weights,
            }
            return Result(body if language is None else {**body, "language": language})

    def warm(self, job: Job, models: ModelCache) -> None:
        _acquire(job, models).release()


def _transcribe(
    job: Job, recogniser: Recogniser, samples: Samples, *, words: bool
) -> tuple[str | None, list[dict[str, Any]]]:
    """The language, and Whisper's segments with absolute times."""
    model, inputs = recogniser.model, job.inputs
    short = len(samples) <= _WINDOW * RATE
    length: dict[str, Any] = {} if short else {"truncation": False, "padding": "longest"}
    encoded = recogniser.features(
        samples, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True, **length
    )
    features = encoded.input_features.to(model.device, model.dtype)
    language = _language(job, recogniser, features)
    options: dict[str, Any] = {}
    if recogniser.multilingual:
        options = {"language": language, "task": inputs.get("task") or "transcribe"}
    if prompt := str(inputs.get("prompt") or "").strip():
        options["prompt_ids"] = recogniser.tokenizer.get_prompt_ids(prompt, return_tensors="pt").to(
            model.device
        )
    total = len(samples) / RATE

    def window(done: torch.Tensor) -> None:
        job.progress(round(min(float(done[0, 0]) / _FRAMES, total), 1), round(total, 1), "seconds")

    wish = float(inputs.get("temperature") or 0.0)
    answer = model.generate(
        features,
        attention_mask=encoded.attention_mask.to(model.device),
        return_timestamps=True,
        return_segments=True,
        return_token_timestamps=words,
        temperature=tuple(t for t in _TEMPERATURES if t >= wish) or wish,
        compression_ratio_threshold=2.4,
        logprob_threshold=-1.0,
        no_speech_threshold=0.6,
        condition_on_prev_tokens=False,
        monitor_progress=window,
        logits_processor=[_Checking(job)],
        **options,
    )
    segments: list[dict[str, Any]] = answer["segments"][0]
    return language, segments


class _Checking:
    """Called for every token: raises when the request was given up."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._job.check()
        return scores


def _language(job: Job, recogniser: Recogniser, features: torch.Tensor) -> str | None:
    """The code of the language: as asked, or as heard in the first window; None where it is not known.

    Raises `InvalidInput` for one that the model does not have.
    """
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    asked = str(job.inputs.get("language") or "").strip().lower()
    code: str = TO_LANGUAGE_CODE.get(asked, asked)
    if not recogniser.multilingual:
        if code not in ("", "en") or job.inputs.get("task") == "translate":
            raise InvalidInput(
                f"model {job.model} knows English alone, and translates nothing",
                field="language" if code not in ("", "en") else "task",
            )
        return "en"
    known: dict[str, int] = recogniser.model.generation_config.lang_to_id
    if not code:
        heard = int(recogniser.model.detect_language(features[:, :, : _WINDOW * _FRAMES])[0])
        return next((word.strip("<|>") for word, number in known.items() if number == heard), None)
    if f"<|{code}|>" not in known:
        raise InvalidInput(f"language {asked!r} is none that model {job.model} knows", field="language")
    return code


def _chunks(
    recogniser: Recogniser, segments: list[dict[str, Any]], wanted: str, language: str | None, seconds: float
) -> list[dict[str, Any]]:
    """Segments or words with their times, within the recording."""
    chunks: list[dict[str, Any]] = []
    for segment in segments if wanted != "none" else ():
        tokens = segment["tokens"].tolist()
        start, end = (min(float(segment[side]), seconds) for side in ("start", "end"))
        if wanted == "word":
            times = segment["token_timestamps"].tolist()
            text = [(t, at) for t, at in zip(tokens, times, strict=True) if t < recogniser.first_time]
            found = words_of(
                [t for t, _ in text],
                [at for _, at in text],
                recogniser.text,
                end=max(end, text[-1][1]) if text else end,
                language=language,
            )
            chunks += [{"timestamp": [w.start, min(w.end, round(seconds, 2))], "text": w.text} for w in found]
        elif text_of := recogniser.text(tokens):
            chunks.append({"timestamp": [round(start, 2), round(end, 2)], "text": text_of})
    return chunks


# -- loading -------------------------------------------------------------------------------------------


def _check_kind(found: Located, model: str) -> None:
    config = json.loads((found.path / "config.json").read_text())
    if config.get("model_type") != "whisper":
        raise InvalidInput(
            f"model {model} is a {config.get('model_type')}; speech is recognised by Whisper alone",
            field="model_id",
        )


def _hasten(encoder: Any) -> None:
    """Have the encoder alone attend by torch's own kernel: nobody asks for its weights."""
    config = copy.deepcopy(encoder.config)
    config._attn_implementation = "sdpa"
    for module in encoder.modules():
        if hasattr(module, "config"):
            module.config = config


def _acquire(job: Job, models: ModelCache) -> Lease:
    assert job.store is not None
    store = job.store
    found = store.find(job.model, variant=loading.variant_for(job.device))
    if found.kind not in ("transformers", "ct2"):
        raise InvalidInput(f"model {job.model} is no speech recogniser ({found.kind})", field="model_id")
    dtype = loading.dtype_for(job.device)

    def load(built: Located, progress: LoadProgress) -> tuple[Recogniser, Loaded]:
        from transformers import AutoFeatureExtractor, AutoTokenizer, WhisperForConditionalGeneration

        if built.kind == "ct2":
            from headrace.batch.pipelines.audio_to_text_ct2 import prepared

            progress(0.05, "converting, once")
            built = prepared(built, store.roots.cache)
        _check_kind(built, job.model)
        loaded = loading.load_transformers(
            built,
            WhisperForConditionalGeneration,
            cache=store.roots.cache,
            device=job.device,
            dtype=dtype,
            progress=progress,
            # Words are timed by attention weights, which faster kernels do not give.
            attn_implementation="eager",
        )
        _hasten(loaded.model.get_encoder())
        folder = loading.text_folder(built, store.roots.cache)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        features = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
        return Recogniser(loaded.model, tokenizer, features), loaded

    return acquire(job, models, found, kind="whisper", dtype=dtype, load=load)

"""Parler-TTS, which is told in words how to speak. Its package wants an older transformers than ours.

So it runs in an engine with an interpreter of its own (setting ``parler_python``), which loads this module by
the same names; in ours it is refused with that reason.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from headrace.batch.contract import Job
from headrace.batch.pipelines.audio_decoding import Samples
from headrace.batch.pipelines.text_to_speech_parts import parts_of
from headrace.models import loading, memory
from headrace.models.cache import Lease, Loaded, LoadProgress, ModelCache
from headrace.models.refs import ModelKey
from headrace.models.store import Located
from stream.errors import InvalidInput, NotInstalled

_REFUSAL = (
    "Parler-TTS needs the package parler-tts, which wants an older transformers than this engine has; name "
    "an interpreter that has it by the setting parler_python (headrace serve --parler-python PATH)"
)


@dataclass
class Parler:
    """`ParlerTTSForConditionalGeneration` of the package parler-tts."""

    model: Any
    tokenizer: Any

    @property
    def rate(self) -> int:
        return int(self.model.config.sampling_rate)

    def check(self, job: Job) -> None:
        speed = float(job.inputs.get("speed") or 1.0)
        if speed != 1.0:
            raise InvalidInput(
                f"speed is {speed:g}; Parler-TTS is told how fast to speak in the description", field="speed"
            )

    def parts(self, text: str) -> list[str]:
        return list(parts_of(text))

    def speak(self, text: str, job: Job, seed: int) -> Samples:
        device = self.model.device
        how = self.tokenizer(str(job.inputs.get("description") or ""), return_tensors="pt").to(device)
        what = self.tokenizer(text, return_tensors="pt").to(device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            made = self.model.generate(
                input_ids=how.input_ids,
                attention_mask=how.attention_mask,
                prompt_input_ids=what.input_ids,
                prompt_attention_mask=what.attention_mask,
                stopping_criteria=[_Stopping(job)],
            )
        return np.asarray(made.float().cpu().numpy().reshape(-1), dtype=np.float32)


class _Stopping:
    """Asked after every token whether it was the last: tells the job, which raises when it was given up."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._tokens = 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self._tokens += 1
        self._job.progress(self._tokens, 0, "tokens")
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def acquire(job: Job, models: ModelCache, found: Located) -> Lease:
    """A lease on a `Parler`. Raises `NotInstalled` where its package is not."""
    if importlib.util.find_spec("parler_tts") is None:
        raise NotInstalled(_REFUSAL)
    dtype = torch.float32
    key = ModelKey(job.model, found.revision, loading.name_of(dtype), job.device, "parler")

    def load(progress: LoadProgress) -> Loaded:
        from parler_tts import ParlerTTSForConditionalGeneration
        from transformers import AutoTokenizer

        progress(0.1, "loading")
        kind: Any = ParlerTTSForConditionalGeneration
        model = kind.from_pretrained(found.path, torch_dtype=dtype, local_files_only=True)
        model = model.to(job.device).eval()
        tokenizer = AutoTokenizer.from_pretrained(found.path, local_files_only=True)
        return Loaded(Parler(model, tokenizer), memory.parts_of(model, name=str(key)), found.weights)

    return models.acquire(key, load, size=found.bytes, cancel=job.check, on_progress=job.loading)

"""The safety checker of Stable Diffusion: flags pictures, and withholds them where that is asked for.

It is there where its model is on this machine; where it is not, answers say ``unchecked``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace.batch.contract import Job
from headrace.batch.pipelines.pictures import Pixels
from headrace.models import loading, memory
from headrace.models.cache import Lease, Loaded, LoadProgress, ModelCache
from headrace.models.errors import ModelNotFound
from headrace.models.refs import ModelKey
from headrace.models.store import Located

MODEL = "CompVis/stable-diffusion-safety-checker"

CHECKED, UNCHECKED, OFF = "checked", "unchecked", "off"
"""What an answer's ``safety`` says: a checker looked, there is none here, none was asked for."""


class Safety:
    """Looks at the pictures of one request. ``state`` is one of the words above."""

    def __init__(self, state: str, model: Any = None, *, withhold: bool = False) -> None:
        self.state = state
        self._model = model
        self.withholds = withhold
        """Whether flagged pictures are not to be shown."""

    def look(self, pictures: Sequence[Pixels]) -> tuple[list[Pixels], list[bool]]:
        """The pictures, black in place of flagged ones where these are withheld; and which are flagged.

        Uses the device, so call it while the job has its turn.
        """
        if self._model is None or not pictures:
            return list(pictures), [False] * len(pictures)
        flags = [self._flags(picture) for picture in pictures]
        if not self.withholds:
            return list(pictures), flags
        shown = [np.zeros_like(p) if flag else p for p, flag in zip(pictures, flags, strict=True)]
        return shown, flags

    def look_for(self, job: Job, pictures: Sequence[Pixels]) -> tuple[list[Pixels], list[bool]]:
        """As `look`, for a job that has no turn."""
        with contextlib.nullcontext() if self._model is None else job.short_turn():
            return self.look(pictures)

    def _flags(self, picture: Pixels) -> bool:
        from PIL import Image
        from transformers import CLIPImageProcessor

        # Its defaults are those of the encoder that the checker was trained on.
        seen = CLIPImageProcessor()(Image.fromarray(picture), return_tensors="pt").pixel_values
        weight = self._model.visual_projection.weight
        with torch.no_grad():
            # It blackens what it flags in the second argument: not the picture itself.
            _, (flag,) = self._model(
                clip_input=seen.to(weight.device, weight.dtype), images=[np.zeros((1, 1, 3))]
            )
        return bool(flag)


@contextlib.contextmanager
def checker(job: Job, models: ModelCache) -> Iterator[Safety]:
    """The checker for this request, leased until the block ends. Load it before the job takes its turn.

    Inputs: ``safety_check`` (true unless said), ``withhold`` (flagged pictures come black).
    """
    if job.inputs.get("safety_check", True) is False:
        yield Safety(OFF)
        return
    lease = _acquire(job, models)
    if lease is None:
        yield Safety(UNCHECKED)
        return
    with lease:
        yield Safety(CHECKED, lease.model, withhold=bool(job.inputs.get("withhold")))


def _acquire(job: Job, models: ModelCache) -> Lease | None:
    assert job.store is not None
    store = job.store
    try:
        found: Located = store.find(MODEL, variant=loading.variant_for(job.device))
    except ModelNotFound:
        return None
    dtype = loading.dtype_for(job.device)
    key = ModelKey(MODEL, found.revision, loading.name_of(dtype), job.device, "safety checker")
    cache: Path = store.roots.cache

    def load(progress: LoadProgress) -> Loaded:
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        loaded = loading.load_transformers(
            found, StableDiffusionSafetyChecker, cache=cache, device=job.device, dtype=dtype,
            progress=progress,
        )  # fmt: skip
        return Loaded(loaded.model, memory.parts_of(loaded.model, name=str(key)), loaded.weights)

    size = partial(loading.expected_bytes, found, dtype)
    return models.acquire(key, load, size=size, cancel=job.check, on_progress=job.loading)

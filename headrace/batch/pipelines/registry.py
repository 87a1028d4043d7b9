"""Which module answers which endpoint. Modules are imported with the first request for them."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping
from typing import cast

from headrace.batch.contract import BatchPipeline
from stream.errors import NotFound

_HERE = "headrace.batch.pipelines"

PIPELINES: Mapping[str, str] = {
    "text-to-image": f"{_HERE}.text_to_image:TextToImage",
    "image-to-image": f"{_HERE}.image_to_image:ImageToImage",
    "image-to-video": f"{_HERE}.image_to_video:ImageToVideo",
    "image-to-text": f"{_HERE}.image_to_text:ImageToText",
    "audio-to-text": f"{_HERE}.audio_to_text:AudioToText",
    "text-to-speech": f"{_HERE}.text_to_speech:TextToSpeech",
    "upscale": f"{_HERE}.upscale:Upscale",
    "segment-anything-2": f"{_HERE}.segment_anything:SegmentAnything",
    "llm": f"{_HERE}.llm:Llm",
}
"""Endpoint to ``module:Class``."""


class Pipelines:
    """One object of each pipeline, made when it is first asked for. Safe in several threads.

    ``extra`` adds or replaces entries of `PIPELINES`.
    """

    def __init__(self, extra: Mapping[str, str] | None = None) -> None:
        self._targets = {**PIPELINES, **(extra or {})}
        self._made: dict[str, BatchPipeline] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> BatchPipeline:
        """Raises `NotFound` for an unknown name, and what the import of its module raises."""
        target = self._targets.get(name)
        if target is None:
            raise NotFound(f"there is no pipeline {name!r}; there are {', '.join(self._targets)}")
        with self._lock:
            if name not in self._made:
                module, _, kind = target.partition(":")
                # Under the lock: two first requests must not import one module half each.
                made = getattr(importlib.import_module(module), kind)()
                self._made[name] = cast(BatchPipeline, made)
            return self._made[name]

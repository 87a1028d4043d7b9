"""Pictures and short ways to ask pipelines for them, for tests."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from models_here import Heard, job_for
from PIL import Image

from headrace.batch.contract import BatchPipeline, Result
from headrace.batch.pipelines.image_to_image import ImageToImage
from headrace.batch.pipelines.pictures import png
from headrace.batch.pipelines.text_to_image import TextToImage
from headrace.models.cache import ModelCache
from headrace.models.roots import Roots
from headrace.models.store import ModelStore

Pixels = npt.NDArray[np.uint8]

SMALL: dict[str, Any] = {
    "height": 64,
    "width": 64,
    "num_inference_steps": 3,
    "guidance_scale": 5.0,
    "seed": 3,
}


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    made: Pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return made


def upload(height: int = 48, width: int = 64, seed: int = 0) -> dict[str, bytes]:
    return {"image": png(noise(height, width, seed))}


def pictures(result: Result) -> list[Pixels]:
    """The pictures of an answer, in order."""
    return [np.asarray(Image.open(io.BytesIO(result.blobs[one["blob"]]))) for one in result.body["images"]]


def with_own_models(store: ModelStore, folder: Path) -> ModelStore:
    """A store with the same cache and nothing else in it."""
    return ModelStore(Roots(folder / "models", folder / "hub", store.roots.cache))


class Asking:
    """Asks pipelines in this process, with one cache."""

    def __init__(self, store: ModelStore) -> None:
        self.store = store
        self.models = ModelCache()

    def ask(
        self,
        pipeline: BatchPipeline,
        model: str,
        inputs: dict[str, Any],
        blobs: dict[str, bytes] | None = None,
        listener: Heard | None = None,
    ) -> Result:
        job = job_for(self.store, pipeline.name, model, inputs, blobs, listener=listener)
        return pipeline.run(job, self.models)

    def text(self, model: str = "demo:tiny-sd", *, listener: Heard | None = None, **inputs: Any) -> Result:
        return self.ask(TextToImage(), model, {"prompt": "a cat", **SMALL, **inputs}, listener=listener)

    def image(
        self, model: str = "demo:tiny-sd", blobs: dict[str, bytes] | None = None, **inputs: Any
    ) -> Result:
        return self.ask(ImageToImage(), model, {"prompt": "a cat", **SMALL, **inputs}, blobs or upload())

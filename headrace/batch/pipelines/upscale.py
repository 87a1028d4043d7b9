"""Larger pictures: networks out of files, the demo's x2, and Stable Diffusion's x4 upscaler."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from headrace.batch.contract import Job, Result
from headrace.batch.pipelines.pictures import Pixels, png, read_picture
from headrace.batch.pipelines.upscale_networks import Upscaler
from headrace.batch.pipelines.upscale_others import network_of
from headrace.batch.pipelines.upscale_tiles import upscale
from headrace.models import loading, memory
from headrace.models.cache import Lease, Loaded, LoadProgress, ModelCache
from headrace.models.refs import ModelKey
from headrace.models.store import Located
from stream.errors import InvalidInput, TooLarge

MAX_PIXELS = 64_000_000
"""Of the enlarged picture."""
_TILE = {"cpu": 256, "cuda": 512}
_NETWORK = "arnet-hdn"
"""The network of pyanime4k that keeps photographs best."""


class DiffusionUpscale(Protocol):
    """What `headrace.batch.pipelines.upscale_diffusion` has for models of diffusers."""

    def run(self, job: Job, models: ModelCache, found: Located) -> Result: ...

    def warm(self, job: Job, models: ModelCache, found: Located) -> None: ...


class Upscale:
    """``/upscale``: see `headrace.batch.contract.BatchPipeline`.

    The blob ``image``; diffusion models take ``prompt``, ``seed`` and ``num_inference_steps`` too. The body
    has ``images`` with one PNG file. Networks draw nothing: their seed is the one that was asked for, or 0.
    """

    name: ClassVar[str] = "upscale"

    def run(self, job: Job, models: ModelCache) -> Result:
        found = _found(job)
        if found.kind == "diffusers":
            return _diffusion().run(job, models, found)
        picture = read_picture(job.blobs["image"], "image")
        with _acquire(job, models, found) as lease:
            scale: int = 2 if found.kind == "package" else lease.model.scale
            _check_size(picture, scale)
            with job.turn():
                if found.kind == "package":
                    larger = np.asarray(lease.model(picture, 2.0))
                    job.progress(1, 1)
                else:
                    larger = _through(lease.model, picture, job)
            seed = job.inputs.get("seed")
            image = {"blob": "image-0.png", "seed": 0 if seed is None else int(seed), "nsfw": False}
            body = {"images": [image], "weights": lease.weights, "scale": scale}
            return Result(body, {"image-0.png": png(larger)})

    def warm(self, job: Job, models: ModelCache) -> None:
        found = _found(job)
        if found.kind == "diffusers":
            _diffusion().warm(job, models, found)
        else:
            _acquire(job, models, found).release()


def _through(network: Upscaler, picture: Pixels, job: Job) -> Pixels:
    device = torch.device(job.device)
    tensor = torch.from_numpy(picture).to(device).permute(2, 0, 1)[None].float().div_(255)
    made = upscale(
        network, tensor, tile=_TILE[device.type], on_tile=lambda n, of: job.progress(n, of, "tiles")
    )
    larger: Pixels = made[0].permute(1, 2, 0).mul_(255).round_().clamp_(0, 255).to(torch.uint8).numpy()
    return larger


def _check_size(picture: Pixels, scale: int) -> None:
    height, width = picture.shape[:2]
    pixels = height * width * scale**2
    if pixels > MAX_PIXELS:
        raise TooLarge(
            f"image is {width} x {height}; {scale} times as large it would have {pixels} pixels, and "
            f"{MAX_PIXELS} are the limit",
            field="image",
        )


def _diffusion() -> DiffusionUpscale:
    made: DiffusionUpscale = importlib.import_module(
        "headrace.batch.pipelines.upscale_diffusion"
    ).DiffusionUpscale()
    return made


# -- loading -------------------------------------------------------------------------------------------


def _found(job: Job) -> Located:
    assert job.store is not None
    found = job.store.find(job.model, variant=loading.variant_for(job.device))
    if found.kind not in ("diffusers", "package", "safetensors", "pickle"):
        raise InvalidInput(f"model {job.model} is no upscaler ({found.kind})", field="model_id")
    return found


def _acquire(job: Job, models: ModelCache, found: Located) -> Lease:
    device = "cpu" if found.kind == "package" else job.device
    key = ModelKey(job.model, found.revision, "float32", device, "upscaler")

    def load(progress: LoadProgress) -> Loaded:
        if found.kind == "package":
            return Loaded(_anime4k(), {str(key): found.bytes}, found.weights)
        tensors = loading.load_tensors(found)
        network = network_of(tensors.model, str(found.ref), field="model_id").to(device)
        return Loaded(network, memory.parts_of(network, name=str(key)), tensors.weights)

    return models.acquire(key, load, size=found.bytes, cancel=job.check, on_progress=job.loading)


def _anime4k() -> Any:
    from pyanime4k import pyac

    return pyac.core.Processor("cpu", 0, _NETWORK)

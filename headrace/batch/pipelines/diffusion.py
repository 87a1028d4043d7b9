"""Models of diffusers in the cache, and the pipelines that requests get over them.

The components of a model are loaded once and shared, read-only. A request gets a fresh pipeline object over
them with a scheduler of its own (`headrace.models.loading.view`), so nothing that it sets is felt by others.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from headrace.batch.contract import Job
from headrace.batch.pipelines import lightning
from headrace.batch.pipelines.diffusion_together import Studio
from headrace.models import loading, memory
from headrace.models.cache import Lease, Loaded, LoadProgress, ModelCache
from headrace.models.refs import ModelKey
from headrace.models.single.folder import is_single, pipeline_class, prepared
from headrace.models.store import Located, ModelStore
from headrace.models.tiny import ensure_built
from stream.errors import InvalidInput

Task = str
"""``text-to-image`` or ``image-to-image``."""

_SD, _SDXL, _SD3 = "StableDiffusion", "StableDiffusionXL", "StableDiffusion3"

_CLASSES: Mapping[Task, Mapping[str, str]] = {
    "text-to-image": {
        **{f"{family}{end}": f"{family}Pipeline" for family in (_SD, _SDXL, _SD3, "Flux")
           for end in ("Pipeline", "Img2ImgPipeline")},
    },
    "image-to-image": {
        **{f"{family}{end}": f"{family}Img2ImgPipeline" for family in (_SD, _SDXL, _SD3, "Flux")
           for end in ("Pipeline", "Img2ImgPipeline")},
        **{name: name for name in ("StableDiffusionInstructPix2PixPipeline", "FluxKontextPipeline",
                                   "StableDiffusionXLInstructPix2PixPipeline")},
    },
}  # fmt: skip
"""For each task, by the class that ``model_index.json`` names, the class that does it."""

_WIDE = ("Flux", _SD3)
"""Families whose values do not fit into float16."""


@dataclass
class Checkpoint:
    """A model of diffusers in memory.

    ``parts`` are shared and read-only. ``index`` is the class that ``model_index.json`` names, ``options``
    the plain values beside it, which are arguments of that class. ``studio`` makes pictures.
    """

    parts: loading.Components
    index: str
    studio: Studio
    options: dict[str, Any] = field(default_factory=dict)
    _unused: dict[Hashable, Any] = field(default_factory=dict)
    _views: dict[Hashable, Any] = field(default_factory=dict)

    def scheduler(self, kind: type[Any] | None = None, **changes: Any) -> Any:
        """A fresh scheduler with the configuration of the model's own, of its class or another ``kind``."""
        key = (kind, *sorted(changes.items()))
        if key not in self._unused:
            self._unused[key] = loading.fresh_scheduler(self.parts["scheduler"], kind, **changes)
        return loading.unused_copy(self._unused[key])

    def view(self, kind: type[Any], parts: loading.Components | None = None, *, scheduler: Any = None) -> Any:
        """A fresh pipeline of ``kind``, over ``parts`` in place of the shared ones where given.

        ``scheduler`` is one that has not run.
        """
        if scheduler is None or (parts is not None and parts is not self.parts):
            return self._view(kind, parts or self.parts, scheduler)
        # To make a pipeline takes some ten times as long as to copy one.
        facts = frozenset((name, repr(value)) for name, value in scheduler.config.items())
        key = (kind, type(scheduler), facts)
        if key not in self._views:
            self._views[key] = self._view(kind, self.parts, scheduler)
        unused = self._views[key]
        made = copy.copy(unused)
        vars(made)["scheduler"] = loading.unused_copy(unused.scheduler)
        return made

    def _view(self, kind: type[Any], parts: loading.Components, scheduler: Any) -> Any:
        takes = loading.arguments_of(cast(Any, kind))
        options = {name: value for name, value in self.options.items() if name in takes}
        options.pop("requires_safety_checker", None)
        if "add_watermarker" in takes:
            options["add_watermarker"] = False  # else it depends on what is installed
        return loading.view(kind, parts, scheduler=scheduler, **options)


def class_for(task: Task, index: str, model: str) -> type[Any]:
    """The pipeline class of diffusers that does ``task`` with a model of class ``index``.

    Raises `InvalidInput` (field ``model_id``) for models that cannot do it.
    """
    import diffusers

    name = _CLASSES[task].get(index)
    if name is not None:
        found: type[Any] = getattr(diffusers, name)
        return found
    # Others by diffusers' own table; its module imports every pipeline there is, so it is asked last.
    from diffusers.pipelines import auto_pipeline

    text, image = (
        auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
        auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    )
    families = [name for table in (text, image) for name, kind in table.items() if kind.__name__ == index]
    table = text if task == "text-to-image" else image
    for family in families:
        if family in table:
            other: type[Any] = table[family]
            return other
    raise InvalidInput(f"model {model} is a {index or 'pipeline'}, which does no {task}", field="model_id")


# -- loading -------------------------------------------------------------------------------------------


def locate(job: Job) -> Located:
    """The files of the job's model. Raises `InvalidInput` where they are no model of diffusers."""
    assert job.store is not None
    found = job.store.find(lightning.base_of(job.model) or job.model)
    if is_single(found):
        return dataclasses.replace(found, index=pipeline_class(found))
    if found.kind != "diffusers":
        raise InvalidInput(
            f"model {job.model} is no pipeline of diffusers ({found.kind}), so it does no {job.pipeline}",
            field="model_id",
        )
    variant = loading.variant_for(job.device)
    if variant is not None and not is_wide(found):
        found = job.store.find(found.ref, variant=variant)
    return found


def is_wide(found: Located) -> bool:
    """Whether the model overflows in float16."""
    return (found.index or "").startswith(_WIDE)


def acquire(job: Job, models: ModelCache, found: Located | None = None) -> Lease:
    """A lease whose model is a `Checkpoint`; all endpoints share one entry."""
    assert job.store is not None
    store, device, turns = job.store, job.device, job.turns
    found = found or locate(job)
    dtype = loading.dtype_for(device, wide=is_wide(found))
    unet = lightning.unet_of(job.model, store)
    revision = found.revision if unet is None else f"{found.revision}+{unet.revision}"
    key = ModelKey(job.model, revision, loading.name_of(dtype), device, "diffusers")

    def load(progress: LoadProgress) -> Loaded:
        loaded = _load(found, unet, store, Studio(turns, device), device, dtype, progress)
        return Loaded(loaded.model, memory.parts_of(loaded.model, name=str(key)), loaded.weights)

    size = partial(loading.expected_bytes, found, dtype)
    return models.acquire(key, load, size=size, cancel=job.check, on_progress=job.loading)


def _load(
    found: Located,
    unet: Located | None,
    store: ModelStore,
    studio: Studio,
    device: str,
    dtype: torch.dtype,
    progress: LoadProgress,
) -> Loaded:
    if is_single(found):
        progress(0.0, "converting the file, once")
        found = prepared(found, store.roots.cache, loading.name_of(dtype))
    found = ensure_built(found, store)
    index = _read_index(found.path)
    names = {name for name, value in index.items() if isinstance(value, list) and name != "safety_checker"}
    only = names if unet is None else names - {"unet"}
    cache = store.roots.cache
    loaded = loading.load_diffusers(
        found, cache=cache, device=device, dtype=dtype, only=only, progress=progress
    )
    parts: loading.Components = loaded.model
    if unet is not None:
        progress(0.8, "loading the distilled unet")
        parts["unet"] = lightning.load_unet(found, unet, cache=cache, device=device, dtype=dtype)
    vae = parts.get("vae")
    if vae is not None:
        _settle(vae, index)
    options = {
        name: value
        for name, value in index.items()
        if not name.startswith("_") and isinstance(value, bool | int | float | str)
    }
    return Loaded(
        Checkpoint(parts, str(index.get("_class_name", "")), studio, options), weights=loaded.weights
    )


def _settle(vae: Any, index: Mapping[str, Any]) -> None:
    """What holds for all requests, set before anybody else has the autoencoder."""
    if hasattr(vae, "enable_slicing") and getattr(vae, "use_slicing", None) is False:
        # One picture of a batch after the other: decoding is where memory peaks.
        vae.enable_slicing()
    if not getattr(vae.config, "force_upcast", False) or vae.dtype == torch.bfloat16:
        return
    # Some pipelines change the type of what is shared around every request; not where there is no need.
    if "Upscale" in str(index.get("_class_name")):
        vae.float()
    if vae.dtype == torch.float32:
        loading.steady(vae)


def _read_index(folder: Path) -> dict[str, Any]:
    index = json.loads((folder / "model_index.json").read_text())
    return dict(index)

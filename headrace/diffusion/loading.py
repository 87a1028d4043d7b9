"""The networks of a real-time pipeline out of the model cache: one copy, however many streams run on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch

from headrace.batch.contract import Job
from headrace.batch.pipelines import diffusion as checkpoints
from headrace.diffusion.calls import SharedCalls
from headrace.diffusion.networks import Networks
from headrace.diffusion.parameters import StreamDiffusionParams
from headrace.models import loading, memory
from headrace.models.cache import Lease, Loaded, LoadProgress, ModelCache
from headrace.models.errors import ModelNotFound
from headrace.models.refs import ModelKey
from headrace.models.roots import Roots
from headrace.models.store import Located, ModelStore
from stream.errors import InvalidInput

Progress = Callable[[float, str], None]

SMALL_AUTOENCODERS = {False: "madebyollin/taesd", True: "madebyollin/taesdxl"}
"""TAESD (MIT) for the latents of Stable Diffusion, and for those of SDXL (True)."""
_CACHES: dict[str, ModelCache] = {}
_CALLS: WeakValueDictionary[tuple[int, int], SharedCalls] = WeakValueDictionary()
"""By the UNet and the autoencoder: sessions with the same ones share calls."""
_LOCK = threading.Lock()


@dataclass
class Held:
    """Networks and the leases that keep their weights. ``autoencoder`` names the one in use."""

    networks: Networks
    calls: SharedCalls
    autoencoder: str
    weights: str
    leases: list[Lease]
    nets: dict[str, Any]
    """ControlNets by their ids."""

    def release(self) -> None:
        for lease in self.leases:
            lease.release()
        self.leases.clear()


def acquire(params: StreamDiffusionParams, device: torch.device, on_progress: Progress | None = None) -> Held:
    """Load, or share, what ``params`` name. Blocks; for a thread beside the frames.

    Raises `ModelNotFound` with the command that fetches the model, `InvalidInput` for one that cannot stream.
    """
    store, models = ModelStore(Roots.from_environment()), cache_of(device)
    job = Job("stream", "text-to-image", params.model_id, {}, device=str(device))
    job.store = store
    leases = [_checkpoint(job, models, on_progress)]
    try:
        parts = dict(leases[0].model.parts)
        is_xl = parts.get("text_encoder_2") is not None
        found = _small_autoencoder(params.autoencoder, store, is_xl=is_xl)
        if found is not None:
            leases.append(_autoencoder(found, store, models, device))
            parts["vae"] = leases[-1].model
        calls = _calls_of(parts, device)
        nets: dict[str, Any] = {}
        for control in params.controlnets:
            if on_progress is not None:
                on_progress(0.5, f"loading {control.model_id}")
            leases.append(_control_net(control.model_id, calls.networks, store, models))
            nets[control.model_id] = leases[-1].model
        return Held(
            calls.networks,
            calls,
            str(found.ref) if found else "the model's own",
            leases[0].weights,
            leases,
            nets,
        )
    except BaseException:
        for lease in leases:
            lease.release()
        raise


def cache_of(device: torch.device) -> ModelCache:
    """The cache of this process for ``device``."""
    with _LOCK:
        return _CACHES.setdefault(str(device), ModelCache(str(device)))


def _calls_of(parts: Mapping[str, Any], device: torch.device) -> SharedCalls:
    with _LOCK:
        key = (id(parts.get("unet")), id(parts.get("vae")))
        calls = _CALLS.get(key)
        if calls is None:
            networks = Networks(parts, device, loading.dtype_for(str(device)))
            calls = _CALLS[key] = SharedCalls(networks)
        return calls


def _checkpoint(job: Job, models: ModelCache, on_progress: Progress | None) -> Lease:
    if on_progress is not None:
        on_progress(0.05, f"loading {job.model}")
    return checkpoints.acquire(job, models)


def _small_autoencoder(name: str, store: ModelStore, *, is_xl: bool) -> Located | None:
    if name == "none":
        return None
    if name != "auto":
        return store.find(name)
    try:
        return store.find(SMALL_AUTOENCODERS[is_xl])
    except ModelNotFound:
        return None


def _autoencoder(found: Located, store: ModelStore, models: ModelCache, device: torch.device) -> Lease:
    from diffusers import AutoencoderTiny

    return _network(found, AutoencoderTiny, "autoencoder", store, models, device)


def _control_net(name: str, networks: Networks, store: ModelStore, models: ModelCache) -> Lease:
    from diffusers import ControlNetModel

    try:
        found = store.find(name)
    except ModelNotFound as error:
        raise ModelNotFound(error.message, field="controlnets") from None
    lease = _network(found, ControlNetModel, "controlnets", store, models, networks.device)
    width, wanted = lease.model.config.cross_attention_dim, networks.unet.config.cross_attention_dim
    if width != wanted:
        lease.release()
        raise InvalidInput(
            f"controlnets: {name} is made for prompts of width {width}, this model's are {wanted} wide",
            field="controlnets",
        )
    return lease


def _network(
    found: Located, kind: Any, field: str, store: ModelStore, models: ModelCache, device: torch.device
) -> Lease:
    """One network in a folder of its own, by its class."""
    dtype = loading.dtype_for(str(device))
    key = ModelKey(str(found.ref), found.revision, loading.name_of(dtype), str(device), field)

    def load(progress: LoadProgress) -> Loaded:
        if found.kind not in ("transformers", "diffusers"):
            raise InvalidInput(f"{field}: {found.ref} is a {found.kind}, not a folder", field=field)
        loaded = loading.load_transformers(
            found, kind, cache=store.roots.cache, device=str(device), dtype=dtype, progress=progress
        )
        return Loaded(loaded.model, memory.parts_of(loaded.model, name=str(key)), loaded.weights)

    return models.acquire(key, load, size=loading.expected_bytes(found, dtype))

"""The models of a live engine: one cache in the process for workflows' nodes and for pipelines.

What is handed on keeps its lease for as long as anybody has it, and no longer.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from headrace.models import engine_side, loading, memory
from headrace.models.cache import Lease, Loaded, LoadProgress, ModelCache
from headrace.models.refs import ModelKey
from headrace.models.single.folder import is_single, prepared
from headrace.models.store import Located, ModelStore
from headrace.models.tiny import ensure_built
from stream.errors import InvalidInput

_lock = threading.Lock()
_caches: dict[str, ModelCache] = {}


def cache_of(device: str) -> ModelCache:
    """The cache of this process for ``device``."""
    threads = torch.get_num_threads()

    def settle() -> None:
        torch.set_num_threads(threads)
        if device.startswith("cuda"):
            torch.cuda.set_device(device)

    with _lock:
        if device not in _caches:
            _caches[device] = _cache(device, settle)
        return _caches[device]


def _cache(device: str, settle: Callable[[], None]) -> ModelCache:
    """One that is known to the worker, for the engine's own device."""
    side = engine_side.of_streams()
    if side is None or device != device_of_engine():
        return ModelCache(device, on_thread=settle)
    cache = ModelCache(device, gate=side, on_change=side.changed, on_thread=settle)
    side.serve(cache)
    return cache


def device_of_engine() -> str:
    """CUDA where the engine has put torch there, else the CPU."""
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return f"cuda:{torch.cuda.current_device()}" if used else "cpu"


class Held:
    """A model and the lease on it, which goes back by `release`, or soon after this object has gone."""

    def __init__(self, lease: Lease) -> None:
        self.model: Any = lease.model
        self.key = lease.key
        self.weights = lease.weights
        self._finalizer = weakref.finalize(self, _dropped, lease)
        self._finalizer.atexit = False

    def release(self) -> None:
        """Give it back now; safe to call twice."""
        self.model = None
        if (kept := self._finalizer.detach()) is not None:
            kept[2][0].release()


def _dropped(lease: Lease) -> None:
    side = engine_side.of_streams()
    if side is None:
        lease.release()
    else:
        side.soon(lease.release)


def hold(
    found: Located,
    kind: str,
    load: Callable[[LoadProgress], Loaded],
    *,
    dtype: str = "as stored",
    device: str | None = None,
    revision: str = "",
) -> Held:
    """What ``load`` makes of a file, once for all who ask; ``revision`` tells apart what else went in."""
    device = device or device_of_engine()
    key = ModelKey(str(found.ref), found.revision + revision, dtype, device, kind)

    def measured(progress: LoadProgress) -> Loaded:
        made = load(progress)
        return Loaded(made.model, memory.parts_of(made.model, name=str(key)), made.weights)

    if (side := engine_side.of_streams()) is not None:
        side.excuse(key)
    return Held(cache_of(device).acquire(key, measured, size=partial(loading.expected_bytes, found)))


def hold_parts(found: Located, store: ModelStore) -> Held:
    """The modules of a checkpoint, or of a file with a part alone, by their names in a pipeline.

    Raises `InvalidInput` for what is neither.
    """
    device = device_of_engine()
    dtype = loading.dtype_for(device)

    def load(progress: LoadProgress) -> Loaded:
        cache, source = store.roots.cache, found
        if is_single(source):
            progress(0.0, "converting the file, once")
            source = prepared(source, cache, loading.name_of(dtype))
        source = ensure_built(source, store)
        if source.kind != "diffusers":
            raise InvalidInput(f"model {source.ref} is no checkpoint ({source.kind})", field="model_id")
        return loading.load_diffusers(source, cache=cache, device=device, dtype=dtype, progress=progress)

    return hold(found, "diffusers", load, dtype=loading.name_of(dtype), device=device)

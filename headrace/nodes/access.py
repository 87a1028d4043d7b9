"""The models of an engine's nodes: one cache in the process, whatever graphs ask.

What a node hands on (MODEL, CLIP, VAE) keeps its lease for as long as anybody has it, and no longer.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch

from headrace.models import loading, memory
from headrace.models.cache import Lease, Loaded, LoadProgress, ModelCache
from headrace.models.refs import ModelKey
from headrace.models.roots import Roots
from headrace.models.single.folder import is_single, prepared
from headrace.models.store import Located, ModelStore
from headrace.models.tiny import ensure_built
from headrace.nodes.files import ModelFiles
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
            _caches[device] = ModelCache(device, on_thread=settle)
        return _caches[device]


def device_of_engine() -> str:
    """CUDA where the engine has put torch there, else the CPU."""
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return f"cuda:{torch.cuda.current_device()}" if used else "cpu"


class Models:
    """Loads what nodes name. ``roots`` as in `ModelStore`."""

    def __init__(self, roots: Roots) -> None:
        self.files = ModelFiles(roots)
        self._store = ModelStore(roots)

    def find(self, kind: str, name: str) -> Located:
        """Raises `ModelNotFound`, or what the store raises."""
        return self._store.find(self.files.ref(kind, name))

    def parts(self, kind: str, name: str) -> Held:
        """The modules of a checkpoint or of a file with a part alone, by their names in a pipeline."""
        found = self.find(kind, name)
        device = device_of_engine()
        dtype = loading.dtype_for(device)

        def load(progress: LoadProgress) -> Loaded:
            return self._load(found, device, dtype, progress)

        return self.hold(found, "diffusers", load, dtype=loading.name_of(dtype), device=device)

    def _load(self, found: Located, device: str, dtype: torch.dtype, progress: LoadProgress) -> Loaded:
        cache = self._store.roots.cache
        if is_single(found):
            progress(0.0, "converting the file, once")
            found = prepared(found, cache, loading.name_of(dtype))
        found = ensure_built(found, self._store)
        if found.kind != "diffusers":
            raise InvalidInput(f"model {found.ref} is no checkpoint ({found.kind})", field="model_id")
        return loading.load_diffusers(found, cache=cache, device=device, dtype=dtype, progress=progress)

    def hold(
        self,
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

        return Held(cache_of(device).acquire(key, measured, size=loading.expected_bytes(found)))


class Held:
    """A model and the lease on it, which goes back when this object does."""

    def __init__(self, lease: Lease) -> None:
        self.model: Any = lease.model
        self.key = lease.key
        self.weights = lease.weights
        weakref.finalize(self, lease.release)

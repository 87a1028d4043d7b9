"""The steps from a located model to a lease that are the same for every pipeline of its own kind of model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from headrace.batch.contract import Job
from headrace.models import loading, memory
from headrace.models.cache import Lease, Loaded, LoadProgress, ModelCache
from headrace.models.refs import ModelKey
from headrace.models.store import Located
from headrace.models.tiny import ensure_built

if TYPE_CHECKING:
    import torch

Load = Callable[[Located, LoadProgress], tuple[Any, Loaded]]
"""From the files (built, where they are a recipe) to what the cache keeps, and the module in it as loaded."""


def acquire(
    job: Job, models: ModelCache, found: Located, *, kind: str, dtype: torch.dtype, load: Load
) -> Lease:
    """A lease on what ``load`` makes of ``found``, once for all requests; ``kind`` tells it from other uses.

    Tells the job of the load, and raises `Cancelled` while it waits for it.
    """
    assert job.store is not None
    store = job.store
    key = ModelKey(job.model, found.revision, loading.name_of(dtype), job.device, kind)

    def measured(progress: LoadProgress) -> Loaded:
        kept, loaded = load(ensure_built(found, store), progress)
        return Loaded(kept, memory.parts_of(loaded.model, name=str(key)), loaded.weights)

    size = partial(loading.expected_bytes, found, dtype)
    return models.acquire(key, measured, size=size, cancel=job.check, on_progress=job.loading)

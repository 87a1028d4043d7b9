"""A pipeline whose weights engines share; engines import it by name."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

import torch

from headrace.batch.contract import Job, Result
from headrace.models import loading, memory
from headrace.models.cache import Lease, Loaded, LoadProgress, ModelCache
from headrace.models.refs import ModelKey


class Held:
    """Runs a language model ``steps`` times and tells what it says and where its weights are."""

    name: ClassVar[str] = "held"

    def run(self, job: Job, models: ModelCache) -> Result:
        with self._acquire(job, models) as lease:
            for step in range(int(job.inputs.get("steps", 1))):
                with torch.no_grad():
                    logits = lease.model(input_ids=torch.arange(8)[None]).logits
                job.progress(step + 1, int(job.inputs.get("steps", 1)))
                time.sleep(float(job.inputs.get("pause", 0)))
            touched = sum(int(p.view(-1).view(torch.uint8)[::512].sum()) for p in lease.model.parameters())
            body = {"sum": float(logits.double().sum()), "touched": touched, "weights": lease.weights}
            return Result({**body, "held": pss("headrace-weights"), "files": pss(".safetensors")})

    def warm(self, job: Job, models: ModelCache) -> None:
        self._acquire(job, models).release()

    def _acquire(self, job: Job, models: ModelCache) -> Lease:
        from transformers import LlamaForCausalLM

        assert job.store is not None
        store, found = job.store, job.store.find(job.model)
        key = ModelKey(job.model, found.revision, "float32", job.device, "held")

        def load(progress: LoadProgress) -> Loaded:
            loaded: Any = loading.load_transformers(
                found, LlamaForCausalLM, cache=store.roots.cache, device=job.device, dtype=torch.float32
            )
            return Loaded(loaded.model, memory.parts_of(loaded.model, name=str(key)), loaded.weights)

        return models.acquire(key, load, size=found.bytes, cancel=job.check)


def pss(name: str) -> int:
    """This process's share of the memory that is mapped of files called so, in bytes (proc(5), smaps)."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(maxsplit=1)[0]:
            inside = name in line
        elif inside and line.startswith("Pss:"):
            total += int(line.split()[1]) * 1024
    return total


class Hoard:
    """Takes memory and keeps it."""

    name: ClassVar[str] = "hoard"
    kept: ClassVar[list[torch.Tensor]] = []

    def run(self, job: Job, models: ModelCache) -> Result:
        self.kept.append(torch.ones(int(job.inputs["bytes"]), dtype=torch.uint8))
        return Result({"weights": "random"})

    def warm(self, job: Job, models: ModelCache) -> None:
        return None

"""Pipelines for tests of the batch engine; the engine imports them by name."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from typing import Any, ClassVar

import torch

from headrace.batch.contract import Job, Result
from headrace.models.cache import Loaded, LoadProgress, ModelCache
from headrace.models.refs import ModelKey
from stream.errors import InvalidInput

TARGET = f"{__name__}:"
loads = 0


class Echo:
    """Answers with its inputs and its blobs reversed; `steps` steps of `pause` seconds in between."""

    name: ClassVar[str] = "echo"

    def run(self, job: Job, models: ModelCache) -> Result:
        pause = float(job.inputs.get("pause", 0))
        with job.turn():
            for step in range(int(job.inputs.get("steps", 0))):
                time.sleep(pause)
                job.progress(step + 1, int(job.inputs["steps"]), f"step {step + 1}")
        for number in range(int(job.inputs.get("pieces", 0))):
            job.emit({"number": number})
        blobs = {name: bytes(view)[::-1] for name, view in job.blobs.items()}
        body = {"inputs": job.inputs, "threads": torch.get_num_threads(), "weights": "random"}
        return Result({**body, "grad": torch.is_grad_enabled(), "pid": os.getpid()}, blobs)

    def warm(self, job: Job, models: ModelCache) -> None:
        return None


class Trouble:
    """Ends in the way that the input names."""

    name: ClassVar[str] = "trouble"

    def run(self, job: Job, models: ModelCache) -> Result:
        match job.inputs["how"]:
            case "invalid":
                raise InvalidInput("steps is 0; it must be 1 to 100", field="steps")
            case "foreign":
                raise ZeroDivisionError("a model's own fault")
            case "exit":
                raise SystemExit(3)
            case "crash":
                os._exit(7)
            case "memory":
                raise MemoryError
            case "hold the lock":
                # C code that keeps the interpreter's lock.
                ctypes.PyDLL(None).sleep(3600)
            case "deaf":
                time.sleep(3600)
            case "unsaid":
                return Result({})
        raise AssertionError(job.inputs)

    def warm(self, job: Job, models: ModelCache) -> None:
        raise InvalidInput("never warm", field="model_id")


class Slow:
    """A model that takes a while to load; tells how often that happened."""

    name: ClassVar[str] = "slow"
    lock = threading.Lock()

    def run(self, job: Job, models: ModelCache) -> Result:
        with self._acquire(job, models) as lease:
            return Result({"loads": loads, "sum": float(lease.model.sum()), "weights": lease.weights})

    def warm(self, job: Job, models: ModelCache) -> None:
        self._acquire(job, models).release()

    def _acquire(self, job: Job, models: ModelCache) -> Any:
        def load(progress: LoadProgress) -> Loaded:
            global loads
            loads += 1
            for step in range(10):
                time.sleep(0.05)
                progress((step + 1) / 10, "reading")
            return Loaded(torch.ones(1000), weights="random")

        key = ModelKey(job.model, "1", "float32", job.device, "slow")
        return models.acquire(key, load, cancel=job.check, on_progress=job.loading)

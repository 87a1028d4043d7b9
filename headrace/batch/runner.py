"""What the batch engine runs requests with: the pipelines, the model cache and the device's turns."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.batch.contract import Job, Result
from headrace.batch.pipelines import registry
from headrace.batch.turns import DeviceTurns
from headrace.models.cache import EntryReport, ModelCache
from headrace.models.engine_side import QUESTIONS, EngineSide, Later, Say
from headrace.models.roots import Roots
from headrace.models.store import ModelStore
from stream.errors import InvalidInput, NotFound, ProcessorError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


class Runner:
    """Runs jobs, each in the thread that asks. ``wishes`` is what the worker said in ``batch_set``."""

    def __init__(
        self, device: torch.device, wishes: dict[str, Any], say: Say | None = None, later: Later | None = None
    ) -> None:
        models = wishes.get("models") or {}
        budget = models.get("budget")
        self.side: EngineSide | None = None
        if models.get("ledger") and say is not None and later is not None:
            self.side = EngineSide(say, later)
        self.cache = ModelCache(
            str(device),
            budget if type(budget) is int else None,
            gate=self.side,
            on_change=self.side.changed if self.side is not None else None,
            on_thread=_as_this_thread(device),
        )
        if self.side is not None:
            self.side.serve(self.cache)
        self.store = ModelStore(_roots(models.get("folders") or {}))
        self.pipelines = registry.Pipelines(wishes.get("pipelines"))
        self.turns = DeviceTurns(*_on_cuda(device)) if device.type == "cuda" else DeviceTurns()

    def run(self, job: Job) -> Result:
        """Raises what the pipeline raised."""
        pipeline = self.pipelines.get(job.pipeline)
        self._equip(job)
        job.check()
        result = self.cache.guarded(lambda: pipeline.run(job.once(), self.cache))
        if not isinstance(result.body.get("weights"), str):
            raise ProcessorError(f"pipeline {job.pipeline} did not say which weights it used")
        return result

    def warm(self, job: Job) -> None:
        """Load and keep the model of ``job``."""
        self._equip(job)
        self.pipelines.get(job.pipeline).warm(job, self.cache)
        for entry in self._of(job.model):
            self.cache.pin(entry.key)

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """Answer a question of the worker about the cache: ``models`` or ``unload``."""
        what = body.get("what")
        if what in QUESTIONS and self.side is not None:
            return self.side.ask(body)
        if what == "models":
            return {"models": [entry.as_dict() for entry in self.cache.entries()], "used": self.cache.used}
        if what == "unload":
            before = self.cache.used
            found = self._of(str(body.get("model")))
            if not found:
                raise NotFound(f"model {body.get('model')} is not loaded", field="model_id")
            for entry in found:
                self.cache.unload(entry.key)
            return {"freed": before - self.cache.used}
        raise InvalidInput(f"{what!r} is no question to the model cache", field="what")

    def _of(self, model: str) -> list[EntryReport]:
        return [entry for entry in self.cache.entries() if entry.key.ref == model]

    def _equip(self, job: Job) -> None:
        job.turns, job.store = self.turns, self.store


def _roots(folders: dict[str, str]) -> Roots:
    """Those of the environment, with what the worker names in their place."""
    return dataclasses.replace(
        Roots.from_environment(), **{name: Path(folder) for name, folder in folders.items()}
    )


def _as_this_thread(device: torch.device) -> Callable[[], None]:
    """Gives a thread that loads the settings of the one that calls this: both hold for one thread."""
    import torch

    threads = torch.get_num_threads()

    def settle() -> None:
        torch.set_num_threads(threads)
        if device.type == "cuda":
            torch.cuda.set_device(device)

    return settle


def _on_cuda(device: torch.device) -> tuple[Any, Any]:
    """A stream below that of live work, and what keeps one step at most in flight on it."""
    import torch

    cuda: Any = torch.cuda
    lowest, _ = cuda.Stream.priority_range()
    stream = cuda.Stream(device, priority=lowest)

    def scope() -> contextlib.AbstractContextManager[Any]:
        # What other threads put on the default stream (a load) comes before.
        stream.wait_stream(cuda.default_stream(device))
        entered: contextlib.AbstractContextManager[Any] = cuda.stream(stream)
        return entered

    return scope, stream.synchronize

"""Models for tests: a cache folder that outlives a run, and jobs without an engine."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.batch.contract import Job, Progress
from headrace.batch.turns import DeviceTurns
from headrace.models.demos import DEMOS
from headrace.models.roots import Roots
from headrace.models.store import ModelStore

# Two threads of one operation wait for each other where another process has one of the cores.
torch.set_num_threads(1)


def store_of(config: pytest.Config) -> ModelStore:
    """A store whose cache is kept between runs, because converting the demo models takes a while."""
    assert config.cache is not None
    folder = Path(config.cache.mkdir("headrace-models"))
    return ModelStore(Roots(folder / "models", folder / "hub", folder / "cache"))


def needs(demo: str) -> pytest.MarkDecorator:
    """Skips where the package with a demo model is not installed."""
    package = DEMOS[demo].package
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{DEMOS[demo].install} is not installed (make venv)")


class Heard:
    """A listener that keeps everything."""

    def __init__(self) -> None:
        self.told: list[Progress] = []
        self.pieces: list[dict[str, Any]] = []

    def progress(self, progress: Progress) -> None:
        self.told.append(progress)

    def piece(self, piece: dict[str, Any]) -> None:
        self.pieces.append(piece)


def job_for(
    store: ModelStore,
    pipeline: str,
    model: str,
    inputs: dict[str, Any],
    blobs: dict[str, bytes] | None = None,
    *,
    listener: Heard | None = None,
    turns: DeviceTurns | None = None,
) -> Job:
    job = Job("1", pipeline, model, inputs, blobs, listener=listener)
    job.store, job.turns = store, turns
    return job

"""A pipeline whose models have the size that their names say; engines of tests import it by name."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

import torch

from headrace.batch.contract import Job, Result
from headrace.models.cache import Loaded, LoadProgress, ModelCache
from headrace.models.errors import LoadFailed
from headrace.models.live_cache import Held, hold
from headrace.models.refs import ModelKey, ModelRef
from headrace.models.store import Located
from stream.frames import VideoFrame
from stream.processor import FrameProcessor

UNIT = 1_000_000


class Sized:
    """``any/name-7`` takes seven million bytes; ``hold``: seconds for which a request keeps it.

    One with ``halted`` in its name is half loaded until there is a file ``go`` in the models folder.
    """

    name: ClassVar[str] = "sized"

    def run(self, job: Job, models: ModelCache) -> Result:
        with self._acquire(job, models) as lease:
            end = time.monotonic() + float(job.inputs.get("hold", 0))
            while time.monotonic() < end:
                time.sleep(0.02)
                job.check()
            return Result({"weights": lease.weights, "bytes": int(lease.model.nbytes)})

    def warm(self, job: Job, models: ModelCache) -> None:
        self._acquire(job, models).release()

    def _acquire(self, job: Job, models: ModelCache) -> Any:
        size = int(job.model.rpartition("-")[2]) * UNIT

        def load(progress: LoadProgress) -> Loaded:
            if "broken" in job.model:
                raise LoadFailed("a bad file")
            progress(0.5, "reading")
            while "halted" in job.model and job.store and not (job.store.roots.models / "go").exists():
                time.sleep(0.02)
            return Loaded(torch.zeros(size, dtype=torch.uint8), weights="random")

        key = ModelKey(job.model, "1", "uint8", job.device, "sized")
        return models.acquire(key, load, size=size, cancel=job.check, on_progress=job.loading)


class SizedStream(FrameProcessor):
    """A stream on a model of that size, half loaded while there is a file ``wait`` in ``folder``.

    With ``late`` it is loaded by its first frame, in the thread of the frames.
    """

    def __init__(self, model: str, folder: str, *, late: bool = False) -> None:
        super().__init__()
        self._size = int(model.rpartition("-")[2]) * UNIT
        self._found = Located(
            ModelRef.parse(model), Path(folder) / "none", "transformers", "1", self._size, "folder", "random"
        )
        self._folder = Path(folder)
        self._late = late
        self._held: Held | None = None

    async def load_model(self, **kwargs: Any) -> None:
        if not self._late:
            self._held = hold(self._found, "sized", self._load, dtype="uint8")

    def _load(self, progress: LoadProgress) -> Loaded:
        progress(0.5, "reading")
        while (self._folder / "wait").exists():
            time.sleep(0.02)
        return Loaded(torch.ones(self._size, dtype=torch.uint8), weights="random")

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        if self._held is None:
            self._held = hold(self._found, "sized", self._load, dtype="uint8")
        return frame

    async def on_stream_stop(self) -> None:
        if self._held is not None:
            self._held.release()

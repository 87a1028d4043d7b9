"""The worker's side of the batch engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from headrace.batch.contract import Progress, Result
from headrace.engine.settings import EngineSettings

OnProgress = Callable[[Progress], None]
OnPiece = Callable[[dict[str, Any]], None]
Blob = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """The batch engine and the folders of its models; filled from the worker's settings."""

    engine: EngineSettings
    parler_python: str | None = None


class BatchEngine:
    """Requests to the engine that runs batch pipelines. Belongs to the loop of the main thread."""

    def __init__(self, settings: BatchSettings) -> None:
        self.settings = settings

    async def start(self) -> None:
        """Start the engine's process and return at once."""
        raise NotImplementedError

    async def stop(self) -> None:
        """End it; requests that are under way get `EngineError`."""
        raise NotImplementedError

    async def wait_ready(self, timeout: float) -> None:
        raise NotImplementedError

    async def run(
        self,
        pipeline: str,
        model: str,
        inputs: Mapping[str, Any],
        blobs: Mapping[str, Blob] | None = None,
        *,
        on_progress: OnProgress | None = None,
        on_piece: OnPiece | None = None,
        timeout: float = 600.0,
    ) -> Result:
        """The answer of ``pipeline`` (the endpoint's name without its slash) with ``model``.

        ``on_progress`` and ``on_piece`` are called on the loop and must not wait. A cancelled task cancels
        the request in the engine. Raises `TimedOut` (504) after ``timeout`` seconds, `EngineError` (503) when
        the engine is not there or dies meanwhile, and what the pipeline raised.
        """
        raise NotImplementedError

    async def warm(
        self, pipeline: str, model: str, *, on_progress: OnProgress | None = None, timeout: float = 1800.0
    ) -> None:
        """Load a model and leave it in the cache. Raises as `run` does."""
        raise NotImplementedError

    async def unload(self, model: str) -> int:
        """Forget a model that nobody uses; the bytes that this freed."""
        raise NotImplementedError

    async def models(self) -> list[dict[str, Any]]:
        """What the cache holds, entry by entry, as `ModelCache.report` tells it."""
        raise NotImplementedError

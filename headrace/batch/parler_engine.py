"""A second batch engine for Parler-TTS, whose package wants an older transformers than ours."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.batch.client import BatchEngine, BatchSettings, Blob, OnPiece, OnProgress
from headrace.batch.contract import Result
from headrace.engine.guardian import Engine
from headrace.models.ledger_service import LedgerService
from headrace.models.roots import Roots
from headrace.models.store import ModelStore
from stream.errors import HeadraceError, NotFound

_PIPELINE = "text-to-speech"


class BatchEngineWithParler(BatchEngine):
    """A `BatchEngine` that has the speech of Parler-TTS models made by another interpreter.

    ``python``: the interpreter, with torch and parler-tts. Its engine is started by the first such request.
    """

    def __init__(
        self,
        settings: BatchSettings,
        ledger: LedgerService | None = None,
        engine: Engine | None = None,
        *,
        python: str,
    ) -> None:
        super().__init__(settings, ledger, engine)
        foreign = dataclasses.replace(settings.engine, name="parler", python=(python,))
        self.parler = BatchEngine(dataclasses.replace(settings, engine=foreign), ledger)
        environment = Roots.from_environment()
        folders = {name: Path(folder) for name, folder in settings.folders.items()}
        self._store = ModelStore(dataclasses.replace(environment, **folders))

    async def stop(self) -> None:
        await asyncio.gather(super().stop(), self.parler.stop())

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
        """As `BatchEngine.run`."""
        told: dict[str, Any] = {"on_progress": on_progress, "on_piece": on_piece, "timeout": timeout}
        if await self._is_parler(pipeline, model):
            await self.parler.start()
            return await self.parler.run(pipeline, model, inputs, blobs, **told)
        return await super().run(pipeline, model, inputs, blobs, **told)

    async def warm(
        self, pipeline: str, model: str, *, on_progress: OnProgress | None = None, timeout: float = 1800.0
    ) -> None:
        """As `BatchEngine.warm`."""
        if await self._is_parler(pipeline, model):
            await self.parler.start()
            await self.parler.warm(pipeline, model, on_progress=on_progress, timeout=timeout)
        else:
            await super().warm(pipeline, model, on_progress=on_progress, timeout=timeout)

    async def unload(self, model: str) -> int:
        """As `BatchEngine.unload`."""
        if self.parler.ready:
            try:
                return await self.parler.unload(model)
            except NotFound:
                pass  # it is in the other one, or in none
        return await super().unload(model)

    async def models(self) -> list[dict[str, Any]]:
        """As `BatchEngine.models`."""
        found = await super().models()
        return found + await self.parler.models() if self.parler.ready else found

    async def _is_parler(self, pipeline: str, model: str) -> bool:
        return pipeline == _PIPELINE and await asyncio.to_thread(is_parler, self._store, model)


def is_parler(store: ModelStore, model: str) -> bool:
    """Whether a model that is here is one of Parler-TTS; what is not here is for the engine to refuse."""
    try:
        found = store.find(model)
        if found.kind != "transformers" or not found.built:
            return False
        names = json.loads((found.path / "config.json").read_text()).get("architectures")
    except (HeadraceError, OSError, ValueError, AttributeError):
        return False
    return isinstance(names, list) and bool(names) and str(names[0]).startswith("Parler")

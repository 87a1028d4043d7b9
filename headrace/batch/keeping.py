"""Loading and unloading on request: what the routes of models need of the batch engine."""

from __future__ import annotations

from typing import Protocol


class Engine(Protocol):
    """What is needed of `headrace.batch.client.BatchEngine`."""

    async def warm(self, pipeline: str, model: str) -> None: ...
    async def unload(self, model: str) -> int: ...


class Service(Protocol):
    """What is needed of `headrace.batch.service.BatchService`."""

    async def ready(self) -> None: ...


class BatchKeeper:
    """A `headrace.models.routes.Keeper` over the batch engine, which the first wish starts."""

    def __init__(self, service: Service, engine: Engine) -> None:
        self._service = service
        self._engine = engine

    async def warm(self, pipeline: str, model: str) -> None:
        await self._service.ready()
        await self._engine.warm(pipeline, model)

    async def unload(self, model: str) -> int:
        return await self._engine.unload(model)

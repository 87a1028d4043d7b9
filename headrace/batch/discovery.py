"""What a router needs to choose a worker: per pipeline its models, warm or cold, and how busy it is."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from headrace.batch.answers import answering
from headrace.batch.choice import Choice, purposes_of
from headrace.batch.defaults import LEAST_MEMORY, PIPELINES
from headrace.batch.service import TOGETHER, BatchService, lane_of

KEPT = 5.0
"""Seconds for which a look at the disks is good."""


@dataclass(frozen=True, slots=True)
class _OnDisk:
    name: str
    pipelines: tuple[str, ...]
    size: int
    weights: str


class Catalogue:
    """The models of this machine by endpoint."""

    def __init__(self, service: BatchService) -> None:
        self._service = service
        self._looked = -KEPT
        self._found: list[_OnDisk] = []
        self._looking = asyncio.Lock()

    async def names(self) -> list[str]:
        """Models that a request may name: those on disk, and what can stand in."""
        names = {model.name: None for model in await self._on_disk()}
        for pipeline in PIPELINES:
            name = self._service.chooser.substitute(pipeline)
            if name is not None and (name in names or await self._service.chooser.there(name)):
                names[name] = None
        return list(names)

    async def describe(self) -> dict[str, Any]:
        """Everything that `/capabilities` tells."""
        loaded = {entry["key"]["ref"]: entry for entry in await self._service.models()}
        on_disk = await self._on_disk()
        queue = self._service.queue
        return {
            "pipelines": {name: await self._pipeline(name, loaded, on_disk) for name in PIPELINES},
            "queue": {
                "waiting": queue.waiting,
                "limit": queue.limit,
                "running": queue.running,
                "places": queue.places,
                "expected_wait": round(queue.expected(time.monotonic()), 3),
            },
        }

    async def _pipeline(
        self, pipeline: str, loaded: dict[str, dict[str, Any]], on_disk: list[_OnDisk]
    ) -> dict[str, Any]:
        chooser, queue = self._service.chooser, self._service.queue
        names = [model.name for model in on_disk if pipeline in model.pipelines]
        names += [name for name in chooser.known(pipeline) if name in loaded]
        default, substitute = chooser.default(pipeline), chooser.substitute(pipeline)
        names += [name for name in (default, substitute) if name and await chooser.there(name)]
        sizes = {model.name: model.size for model in on_disk}
        models = [_model(pipeline, name, loaded, sizes, self._service) for name in dict.fromkeys(names)]
        capacity = queue.places * (queue.together if pipeline in TOGETHER else 1)
        return {
            "default_model": default,
            "default_available": default in names,
            "substitute": substitute if substitute in names else None,
            "available": bool(models),
            "capacity": capacity if models else 0,
            "in_use": sum(model["in_use"] for model in models),
            "min_memory": LEAST_MEMORY[pipeline],
            "models": models,
        }

    async def _on_disk(self) -> list[_OnDisk]:
        """What lies on the disks; looked up in a thread, at most every `KEPT` seconds."""
        async with self._looking:
            if time.monotonic() - self._looked >= KEPT:
                self._found = await asyncio.to_thread(self._look)
                self._looked = time.monotonic()
        return self._found

    def _look(self) -> list[_OnDisk]:
        chooser = self._service.chooser
        return [
            _OnDisk(str(model.ref), purposes_of(model), model.bytes, model.weights)
            for model in chooser.store.list()
            if chooser.demo_weights or model.source != "demo"
        ]


def _model(
    pipeline: str, name: str, loaded: dict[str, dict[str, Any]], sizes: dict[str, int], service: BatchService
) -> dict[str, Any]:
    """One model of a pipeline: ``state`` is ``warm``, ``loading`` (with ``progress``, 0 to 1) or ``cold``."""
    entry = loaded.get(name)
    state = "cold" if entry is None else {"loaded": "warm", "loading": "loading"}.get(entry["state"], "cold")
    lane, durations = lane_of(pipeline, name), service.queue.durations
    told: dict[str, Any] = {
        "id": name,
        "state": state,
        "weights": Choice(name).weights,
        "bytes": sizes.get(name, 0) if entry is None else entry["bytes"],
        "in_use": service.queue.in_use(lane),
        "waiting": service.queue.waiting_in(lane),
        "seconds": round(durations.of(lane), 3) if durations.known(lane) else None,
    }
    if entry is not None and state == "loading":
        told["progress"] = entry["progress"]
    if entry is not None:
        told["pinned"] = entry["pinned"]
    return told


class DiscoveryRoutes:
    """``GET /capabilities``."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def register(self, app: web.Application) -> None:
        for slash in ("", "/"):
            app.router.add_get(f"/capabilities{slash}", answering(self.capabilities))

    async def capabilities(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(await self._catalogue.describe())

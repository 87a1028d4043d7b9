"""The models of a worker over HTTP: what is loaded, making warm, unloading."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import web

from headrace.models.holder_service import HolderService
from headrace.models.ledger_service import LedgerService
from headrace.models.purpose import pipeline_of
from headrace.models.store import Located, ModelStore
from stream.answers import answering
from stream.errors import AtCapacity, HeadraceError, InvalidInput, NotFound

log = logging.getLogger(__name__)

MAX_BODY = 64 * 1024
MAX_WARMING = 8
"""Models that are being made warm at once."""


class Keeper(Protocol):
    """Who loads models into the batch engine and lets them go."""

    async def warm(self, pipeline: str, model: str) -> None:
        """Return when the model is loaded and pinned."""
        ...

    async def unload(self, model: str) -> int:
        """Unload it, pinned or not; the bytes that this freed. Raises `NotFound` or `Conflict`."""
        ...


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The body of a request: a model, its endpoint where it is named, and whether to wait."""

    model: str
    pipeline: str | None
    wait: bool


class ModelRoutes:
    """Handlers over a store, a ledger and a keeper; `register` adds them to an application.

    ``holders``: the processes that hold weights, for telling of them.
    """

    def __init__(
        self, store: ModelStore, ledger: LedgerService, keeper: Keeper, holders: HolderService | None = None
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._keeper = keeper
        self._holders = holders
        self._warming: dict[str, asyncio.Task[None]] = {}

    def register(self, app: web.Application) -> None:
        for slash in ("", "/"):
            app.router.add_get(f"/models{slash}", answering(self.list))
            app.router.add_post(f"/models/warm{slash}", answering(self.warm))
            app.router.add_post(f"/models/unload{slash}", answering(self.unload))

    async def close(self) -> None:
        """Nothing is made warm any more; the ledger ends."""
        tasks = list(self._warming.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._ledger.close()

    # -- handlers --------------------------------------------------------------------------------------

    async def list(self, request: web.Request) -> web.Response:
        """What is in memory or on its way there; with ``?disk=1`` also what is on this machine's disks."""
        body = self._ledger.report()
        body["holders"] = {} if self._holders is None else self._holders.report()
        body["warming"] = sorted(self._warming)
        body["failures"] = [
            {"model": model, **error.as_dict()} for model, error in self._ledger.failures.items()
        ]
        if request.query.get("disk") in ("1", "true"):
            found = await asyncio.to_thread(self._store.list)
            body["disk"] = [described(one) for one in found]
        return web.json_response(body)

    async def warm(self, request: web.Request) -> web.Response:
        """Load a model and keep it. Answers 202 at once (``GET /models`` tells how far it is), or with
        ``"wait": true`` when it is there."""
        wanted = await _read(request)
        found = await asyncio.to_thread(self._store.find, wanted.model)
        pipeline = wanted.pipeline
        if pipeline is None:
            pipeline = await asyncio.to_thread(pipeline_of, found)
        body = {"model": wanted.model, "pipeline": pipeline, "weights": found.weights}
        task = self._warming.get(wanted.model)
        if task is None:
            if len(self._warming) >= MAX_WARMING:
                raise AtCapacity(f"{MAX_WARMING} models are being made warm already")
            self._ledger.failures.pop(wanted.model, None)
            task = asyncio.create_task(self._warm(pipeline, wanted.model), name=f"warm {wanted.model}")
            self._warming[wanted.model] = task
        if not wanted.wait:
            return web.json_response({"status": "loading", **body}, status=202)
        # The load goes on when this client leaves.
        await asyncio.wait({task})
        if (error := self._ledger.failures.get(wanted.model)) is not None:
            raise error
        return web.json_response({"status": "warm", **body})

    async def unload(self, request: web.Request) -> web.Response:
        """Unload a model, pinned or not. 404 when it is not loaded, 409 while it is in use."""
        wanted = await _read(request)
        if all(entry["model"] != wanted.model for entry in self._ledger.report()["models"]):
            raise NotFound(f"model {wanted.model} is not loaded", field="model_id")
        try:
            freed = await self._keeper.unload(wanted.model)
        except NotFound:
            freed = await self._ledger.unload(wanted.model)  # an engine of streams has it
        return web.json_response({"status": "unloaded", "model": wanted.model, "freed": freed})

    # -- inside ----------------------------------------------------------------------------------------

    async def _warm(self, pipeline: str, model: str) -> None:
        try:
            await self._keeper.warm(pipeline, model)
        except HeadraceError as error:
            log.warning("model %s cannot be made warm: %s", model, error.message)
            self._ledger.failed(model, error)
        finally:
            self._warming.pop(model, None)


def described(found: Located) -> dict[str, Any]:
    """A model on disk as JSON data."""
    try:
        pipeline = pipeline_of(found)
    except InvalidInput:
        pipeline = None
    return {
        "model": str(found.ref),
        "kind": found.kind,
        "revision": found.revision,
        "bytes": found.bytes,
        "source": found.source,
        "weights": found.weights,
        "pipeline": pipeline,
    }


async def _read(request: web.Request) -> _Wanted:
    """Raises `InvalidInput`, which names the field."""
    data = await request.content.read(MAX_BODY + 1)
    while len(data) <= MAX_BODY and not request.content.at_eof():
        data += await request.content.read(MAX_BODY + 1 - len(data))
    if len(data) > MAX_BODY:
        raise InvalidInput(f"the body has more than {MAX_BODY} bytes")
    try:
        body = json.loads(data)
    except ValueError:
        raise InvalidInput("the body is not JSON") from None
    if not isinstance(body, dict):
        raise InvalidInput(f"the body is a {type(body).__name__}, not an object")
    model = body.get("model_id") or body.get("model")
    checks: tuple[tuple[str, Any, Callable[[Any], bool], str], ...] = (
        ("model_id", model, lambda value: isinstance(value, str), "the name of a model"),
        ("pipeline", body.get("pipeline"), lambda value: value is None or isinstance(value, str), "a name"),
        ("wait", body.get("wait"), lambda value: value is None or isinstance(value, bool), "true or false"),
    )
    for name, value, sound, what in checks:
        if not sound(value):
            raise InvalidInput(f"{name} is {value!r:.40}; it must be {what}", field=name)
    return _Wanted(str(model), body.get("pipeline") or None, bool(body.get("wait")))

"""The worker's ledgers of models: one `DeviceBook` for each device, fed by the engines that share it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol

from headrace.engine.link import Message
from headrace.models.admission import Action, Deny, DeviceBook, Grant, Release
from headrace.models.refs import ModelKey
from headrace.models.reports import EntryReport
from stream.errors import Conflict, EngineError, HeadraceError, NotFound

log = logging.getLogger(__name__)

SESSION = "models"
"""The name under which engines say what concerns the ledger."""
PATIENCE = 60.0
"""Seconds that a load waits for memory which is in use."""
_TICK = 1.0
_FAILURES = 32


class Ask(Protocol):
    """Sends a question to an engine and gives its answer; raises `EngineError` when there is no engine."""

    async def __call__(self, body: Mapping[str, Any]) -> dict[str, Any]: ...


class LedgerService:
    """Belongs to the loop. Engines are attached by their names; `received` takes what they say."""

    def __init__(self, budget: int | None = None) -> None:
        self._budget = budget
        self._books: dict[str, DeviceBook] = {}
        self._engines: dict[str, Ask] = {}
        self._device: dict[str, str] = {}
        self._sharing: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticking: asyncio.Task[None] | None = None
        self.failures: OrderedDict[str, HeadraceError] = OrderedDict()
        """Why models that were to be made warm are not, by their references; the last few."""

    # -- engines ---------------------------------------------------------------------------------------

    def attach(self, engine: str, ask: Ask) -> None:
        """From now on ``engine`` may say something; ``ask`` reaches it."""
        self._engines[engine] = ask

    def received(self, engine: str, message: Message) -> None:
        """What ``engine`` says under `SESSION`. What makes no sense is logged and left out."""
        body = message.body
        try:
            if body.get("kind") == "report":
                self._report(engine, body)
            elif body.get("kind") == "admit":
                self._admit(engine, body)
            else:
                log.warning("engine %s says %r of its models", engine, body.get("kind"))
        except (KeyError, TypeError, ValueError) as error:
            log.warning("engine %s says of its models what makes no sense: %r", engine, error)

    def lost(self, engine: str) -> None:
        """``engine`` has ended, or is about to: its memory is free."""
        self._sharing.pop(engine, None)
        book = self._books.get(self._device.get(engine, ""))
        if book is not None:
            self._act(book, book.lost(engine, time.monotonic()))

    def hold(self, device: str, name: str, size: int) -> None:
        """``name`` (a live engine, another program) has ``size`` bytes of ``device`` for itself."""
        book = self._book(device)
        self._act(book, book.hold(name, size, time.monotonic()))

    async def unload(self, model: str) -> int:
        """Have every engine let ``model`` go; the bytes that this freed.

        Raises `NotFound` when none has it, `Conflict` while one uses or loads it.
        """
        found = [
            (book, engine, told)
            for book in self._books.values()
            for engine, told in book.entries()
            if told.key.ref == model
        ]
        if not found:
            raise NotFound(f"model {model} is not loaded", field="model_id")
        for _, engine, told in found:
            if told.leases or told.state != "loaded":
                raise Conflict(f"model {model} is in use in engine {engine}", field="model_id")
        before = sum(book.used for book in self._books.values())
        for book, engine, told in found:
            if not await self._release(book, Release(engine, (told.key,))):
                raise Conflict(f"model {model} is in use in engine {engine}", field="model_id")
        return max(0, before - sum(book.used for book in self._books.values()))

    async def close(self) -> None:
        """End what is under way; engines that wait for a word are not answered."""
        tasks = [*self._tasks, *([] if self._ticking is None else [self._ticking])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- what is known ---------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """Devices with their figures and entries with their engines, as ``GET /models`` tells them.

        ``sharing``: of engines that get weights from a holder, ``shared``, or why they loaded their own.
        """
        devices = {
            device: {
                "budget": book.budget,
                "used": book.used,
                "reclaimable": book.reclaimable,
                "held": dict(book.held),
                "waiting": book.waiting,
            }
            for device, book in sorted(self._books.items())
        }
        return {
            "devices": devices,
            "sharing": dict(self._sharing),
            "models": [one for book in self._books.values() for one in _entries(book)],
        }

    def failed(self, model: str, error: HeadraceError) -> None:
        """Remember why ``model`` could not be loaded."""
        self.failures.pop(model, None)
        self.failures[model] = error
        if len(self.failures) > _FAILURES:
            self.failures.popitem(last=False)

    # -- inside ----------------------------------------------------------------------------------------

    def _report(self, engine: str, body: Mapping[str, Any]) -> None:
        entries = [EntryReport.from_dict(entry) for entry in body["entries"]]
        self._device[engine] = device = str(body["device"])
        if sharing := str(body.get("sharing") or ""):
            self._sharing[engine] = sharing
        book = self._book(device)
        taken = body.get("taken")
        self._act(
            book,
            book.report(
                engine,
                entries,
                int(body["total"]),
                time.monotonic(),
                live=body.get("live") is True,
                taken=None if taken is None else int(taken),
            ),
        )

    def _admit(self, engine: str, body: Mapping[str, Any]) -> None:
        key = ModelKey.from_dict(body["key"])
        self._device[engine] = device = str(body["device"])
        book = self._book(device)
        request, size = int(body["request"]), int(body["size"])
        live = body.get("live") is True
        patience = min(PATIENCE, float(body.get("patience", PATIENCE)))
        self._act(book, book.request(engine, request, key, size, time.monotonic(), patience, live=live))
        if book.waiting and (self._ticking is None or self._ticking.done()):
            self._ticking = asyncio.create_task(self._tick(), name="models ledger")

    def _book(self, device: str) -> DeviceBook:
        return self._books.setdefault(device, DeviceBook(self._budget))

    def _act(self, book: DeviceBook, actions: list[Action]) -> None:
        for action in actions:
            task = asyncio.create_task(self._carry_out(book, action), name="models ledger")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, book: DeviceBook, action: Action) -> None:
        try:
            if isinstance(action, Release):
                await self._release(book, action)
            else:
                await self._answer(action)
        except EngineError as error:
            # Its guardian says so too, and `lost` follows.
            log.debug("engine %s was not reached: %s", action.engine, error.message)
        except HeadraceError as error:
            log.warning("engine %s: %s", action.engine, error.message)

    async def _release(self, book: DeviceBook, action: Release) -> list[ModelKey]:
        """What has gone."""
        gone: list[ModelKey] = []
        try:
            keys = [key.as_dict() for key in action.keys]
            answer = await self._engines[action.engine]({"what": "release", "keys": keys})
            gone = [ModelKey.from_dict(key) for key in answer.get("released", [])]
            return gone
        finally:
            self._act(book, book.released(action.engine, action.keys, gone, time.monotonic()))

    async def _answer(self, action: Grant | Deny) -> None:
        body: dict[str, Any] = {"what": "admitted", "request": action.request}
        if isinstance(action, Deny):
            body["error"] = action.error.as_dict()
        await self._engines[action.engine](body)

    async def _tick(self) -> None:
        """Let time pass for those who wait; ends when nobody does."""
        while any(book.waiting for book in self._books.values()):
            await asyncio.sleep(_TICK)
            for book in self._books.values():
                self._act(book, book.tick(time.monotonic()))


def _entries(book: DeviceBook) -> list[dict[str, Any]]:
    found = []
    for engine, entry in book.entries():
        data = entry.as_dict()
        key = data.pop("key")
        found.append({"model": key.pop("ref"), **key, "engine": engine, **data, "warm": data["pinned"]})
    return sorted(found, key=lambda entry: (entry["model"], entry["kind"]))

"""A ComfyUI engine's memory in the worker's ledger: its models are let go by its own functions when asked."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from headrace.engine.guardian import Engine
from headrace.engine.host_home import OP
from headrace.engine.link import Message
from headrace.models.ledger_service import LedgerService
from headrace.models.refs import ModelKey
from headrace.models.reports import EntryReport
from stream.errors import EngineError

log = logging.getLogger(__name__)

RESERVE = 1 << 30
"""Bytes that must stay free beside a second engine."""
SLACK = 1.25
"""A second engine may take so many times what the first one has."""
USED, IDLE = "in use", "idle"


def room_for_another(held: int, free: int) -> bool:
    """Whether a device with ``free`` bytes has room for a second engine beside one that holds ``held``."""
    return free >= held * SLACK + RESERVE


class ComfyMemory:
    """What one engine holds of its device, in bytes, as it was told last.

    In the ledger its models are two entries: those that its streams use, and those that it has loaded and
    nobody uses at the moment (``idle``), which go when somebody else needs the room.
    """

    def __init__(self, engine: Engine, ledger: LedgerService | None) -> None:
        self.held = self.free = self.reclaimable = self.idle = 0
        self._busy = False
        self._engine = engine
        self._ledger = ledger
        self._device: str | None = None
        if ledger is not None:
            ledger.attach(engine.settings.name, self._ask)
        engine.subscribe(self._changed)

    def as_dict(self) -> dict[str, int]:
        return {"held": self.held, "reclaimable": self.reclaimable, "idle": self.idle, "free": self.free}

    def told(self, body: Mapping[str, Any]) -> None:
        """Take what the engine says; what makes no sense is logged and left out."""
        sizes = [body.get(name) for name in ("held", "reclaimable", "idle", "free", "total")]
        if any(type(size) is not int or size < 0 for size in sizes):
            log.warning("ComfyUI says of its memory what makes no sense: %r", body)
            return
        self.held, self.reclaimable, self.idle, self.free, total = (int(str(size)) for size in sizes)
        self._busy = body.get("busy") == 1
        self._device = self._engine.facts.device if self._engine.facts is not None else None
        if self._ledger is not None and self._device is not None:
            self._enter(self._ledger, self._device, total)

    def asked(self, body: Mapping[str, Any]) -> None:
        """Its engine is about to load: the ledger makes room, and says so by `_ask`."""
        request, size = body.get("request"), body.get("size")
        if type(request) is not int or type(size) is not int or size < 0:
            log.warning("ComfyUI asks for memory what makes no sense: %r", body)
            return
        if self._ledger is None or self._device is None:
            self._admitted({"request": request})
            return
        name = self._engine.settings.name
        key = ModelKey(f"{name}: {body.get('name')}", str(request), "", self._device, "comfyui")
        told = {"request": request, "size": size, "device": self._device, "patience": body.get("patience")}
        said = {"kind": "admit", "key": key.as_dict(), "live": True, **told}
        self._ledger.received(name, Message(said))

    def _admitted(self, body: Mapping[str, Any]) -> None:
        word = {name: body.get(name) for name in ("request", "error")}
        try:
            self._engine.request({"op": OP, "do": "admitted", **word}, _not_asked)
        except EngineError as error:  # gone; nobody waits
            log.debug("%s is not told of its memory: %s", self._engine.settings.name, error.message)

    def _enter(self, ledger: LedgerService, device: str, total: int) -> None:
        """The models as entries that can be released while nobody uses them, the rest as what is held."""
        name = self._engine.settings.name
        ledger.hold(device, name, self.held)
        sizes = ((self._key(USED, device), self.reclaimable - self.idle, self._busy),
                 (self._key(IDLE, device), self.idle, False))  # fmt: skip
        entries = [_entry(key, size, busy).as_dict() for key, size, busy in sizes if size > 0]
        ledger.received(
            name,
            Message({"kind": "report", "device": device, "total": total, "entries": entries}),
        )

    def _key(self, which: str, device: str) -> ModelKey:
        return ModelKey(self._engine.settings.name, which, "", device, "comfyui")

    async def _ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What the ledger asks of an engine, or tells it."""
        if body.get("what") == "admitted":
            self._admitted(body)
            return {}
        if body.get("what") != "release":
            return {}
        answer = await self._engine.call({"op": OP, "do": "release"})
        # What is in use by now has stayed.
        left = answer.get("left")
        gone = [key for key in body.get("keys", []) if left == 0 or key.get("revision") == IDLE]
        return {"released": gone}

    def _changed(self, engine: Engine) -> None:
        if engine.state == "ready":
            return
        self.held = self.reclaimable = self.idle = 0
        self._busy = False
        if self._ledger is not None and self._device is not None:
            self._ledger.hold(self._device, engine.settings.name, 0)
            self._ledger.lost(engine.settings.name)


def _entry(key: ModelKey, size: int, busy: bool) -> EntryReport:
    return EntryReport(
        key=key,
        state="loaded",
        progress=1.0,
        what="",
        parts={f"models {key.revision}": size},
        leases=int(busy),
        pinned=False,
        last_used=time.time(),
        weights="real",
        load_seconds=0.0,
    )


def _not_asked(answer: object) -> None:
    """It has nothing to say to that."""

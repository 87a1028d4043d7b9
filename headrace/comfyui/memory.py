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

log = logging.getLogger(__name__)

RESERVE = 1 << 30
"""Bytes that must stay free beside a second engine."""
SLACK = 1.25
"""A second engine may take so many times what the first one has."""


def room_for_another(held: int, free: int) -> bool:
    """Whether a device with ``free`` bytes has room for a second engine beside one that holds ``held``."""
    return free >= held * SLACK + RESERVE


class ComfyMemory:
    """What one engine holds of its device, in bytes, as it was told last."""

    def __init__(self, engine: Engine, ledger: LedgerService | None) -> None:
        self.held = self.free = self.reclaimable = 0
        self._busy = False
        self._engine = engine
        self._ledger = ledger
        self._device: str | None = None
        if ledger is not None:
            ledger.attach(engine.settings.name, self._ask)
        engine.subscribe(self._changed)

    def as_dict(self) -> dict[str, int]:
        return {"held": self.held, "reclaimable": self.reclaimable, "free": self.free}

    def told(self, body: Mapping[str, Any]) -> None:
        """Take what the engine says; what makes no sense is logged and left out."""
        sizes = [body.get(name) for name in ("held", "reclaimable", "free", "total")]
        if any(type(size) is not int or size < 0 for size in sizes):
            log.warning("ComfyUI says of its memory what makes no sense: %r", body)
            return
        self.held, self.reclaimable, self.free, total = (int(str(size)) for size in sizes)
        self._busy = body.get("busy") == 1
        self._device = self._engine.facts.device if self._engine.facts is not None else None
        if self._ledger is not None and self._device is not None:
            self._enter(self._ledger, self._device, total)

    def _enter(self, ledger: LedgerService, device: str, total: int) -> None:
        """The models as an entry that can be released while nobody uses it, the rest as what is held."""
        name = self._engine.settings.name
        ledger.hold(device, name, self.held)
        entries = [self._entry(device).as_dict()] if self.reclaimable else []
        ledger.received(
            name,
            Message({"kind": "report", "device": device, "total": total, "entries": entries}),
        )

    def _entry(self, device: str) -> EntryReport:
        return EntryReport(
            key=ModelKey(self._engine.settings.name, "", "", device, "comfyui"),
            state="loaded",
            progress=1.0,
            what="",
            parts={f"models of {self._engine.settings.name}": self.reclaimable},
            leases=int(self._busy),
            pinned=False,
            last_used=time.time(),
            weights="real",
            load_seconds=0.0,
        )

    async def _ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What the ledger asks of an engine: to release its entry, which here is all that it has."""
        if body.get("what") != "release":
            return {}
        answer = await self._engine.call({"op": OP, "do": "release"})
        freed = answer.get("released")
        return {"released": body.get("keys", []) if isinstance(freed, int) and freed > 0 else []}

    def _changed(self, engine: Engine) -> None:
        if engine.state == "ready":
            return
        self.held = self.reclaimable = 0
        self._busy = False
        if self._ledger is not None and self._device is not None:
            self._ledger.hold(self._device, engine.settings.name, 0)
            self._ledger.lost(engine.settings.name)

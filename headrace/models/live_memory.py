"""The live engine's memory in the worker's ledger, so that batch loads count it."""

from __future__ import annotations

import logging

from headrace.engine.guardian import Engine
from headrace.engine.host_memory import SESSION
from headrace.engine.link import Message
from headrace.models.ledger_service import LedgerService

log = logging.getLogger(__name__)


def watch_memory(engine: Engine, ledger: LedgerService) -> None:
    """Tell ``ledger`` what the sessions of ``engine`` have taken of its device, until the engine ends."""
    name = engine.settings.name
    devices: set[str] = set()

    def told(message: Message) -> None:
        device, size = message.body.get("device"), message.body.get("bytes")
        if not isinstance(device, str) or type(size) is not int or size < 0:
            log.warning("engine %s says of its memory what makes no sense: %r", name, message.body)
            return
        devices.add(device)
        ledger.hold(device, name, size)

    def changed(engine: Engine) -> None:
        if engine.state != "ready":
            for device in devices:
                ledger.hold(device, name, 0)
            devices.clear()

    engine.route(SESSION, told)
    engine.subscribe(changed)

"""The models that an engine holds for its streams, in the worker's ledger."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from headrace.engine.calls import OnAnswer
from headrace.engine.guardian import Engine
from headrace.engine.host_models import OP, SESSION
from headrace.engine.link import Message
from headrace.models.ledger_service import LedgerService
from stream.errors import EngineError, HeadraceError

log = logging.getLogger(__name__)


def watch_models(
    engine: Engine, ledger: LedgerService, *, live: bool = True, name: str | None = None
) -> None:
    """Have ``engine`` tell ``ledger`` what it loads for its streams, and ask before it does.

    ``live``: they are live streams, before which batch work stands back. ``name``: under which the ledger
    knows it, the engine's own if None; another one where it is in the ledger for batch requests too.
    """
    known_as = name or engine.settings.name

    async def ask(body: Mapping[str, Any]) -> dict[str, Any]:
        answer = await engine.call({"op": OP, **body})
        found = answer.get("body")
        return found if isinstance(found, dict) else {}

    def changed(engine: Engine) -> None:
        if engine.state == "ready":
            begin(engine, live)
        else:
            ledger.lost(known_as)

    def told(message: Message) -> None:
        if name is not None:
            message.body.pop("taken", None)  # most of it is the batch requests'
        ledger.received(known_as, message)

    ledger.attach(known_as, ask)
    engine.route(SESSION, told)
    engine.subscribe(changed)


def begin(engine: Engine, live: bool) -> None:
    """Tell an engine that is ready of the ledger; what it loads before it knows is told afterwards."""

    def answered(answer: object) -> None:
        if isinstance(answer, HeadraceError):
            log.debug("engine %s was not told of the ledger: %s", engine.settings.name, answer.message)

    on_answer: OnAnswer = answered
    try:
        engine.request({"op": OP, "what": "begin", "live": live}, on_answer)
    except EngineError as error:  # gone again
        log.debug("engine %s was not told of the ledger: %s", engine.settings.name, error.message)

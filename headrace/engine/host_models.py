"""The models of an engine's streams and the worker's ledger: one asks, the other answers.

The worker sends ``models`` with ``what``: ``begin`` (there is a ledger; ``live``: what is loaded here is for
live streams), or one of `headrace.models.engine_side.QUESTIONS`. What the engine says goes back as ``words``
under `SESSION`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

from headrace.engine.host_errors import describe
from headrace.engine.host_threads import on_loop
from headrace.engine.host_words import ModelWords
from headrace.engine.link import Link, LinkError, Message
from headrace.models import engine_side
from stream.errors import InvalidInput

OP = "models"
SESSION = "*models*"
"""No stream has a name like it."""


class ModelsHost:
    """Belongs to the loop. ``taken``: bytes that this process has of its device for itself.

    From the first on there is a side for whatever loads (`engine_side.of_streams`); it asks nobody before the
    worker has said that there is a ledger.
    """

    def __init__(self, link: Link, taken: Callable[[], int]) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()
        words = ModelWords(link, SESSION)
        self._side = engine_side.EngineSide(words.say, words.later, taken=taken)
        self._side.listened_to = False
        self._side.loop_thread = threading.get_ident()
        engine_side.use(self._side)

    def streams(self, count: int) -> None:
        """So many streams are open."""
        self._side.streams = count
        self._side.changed()

    def deliver(self, message: Message) -> None:
        """Take a message of `OP`. Raises `InvalidInput`."""
        body = message.body
        call, what = body.get("call"), body.get("what")
        if type(call) is not int:
            raise InvalidInput(f"message {OP!r} has no call number", field="call")
        if what == "begin":
            self._side.live, self._side.listened_to = body.get("live") is True, True
            self._side.changed()
            self._answer(call, {})
        elif what == "admitted":
            self._answer(call, {"body": self._side.ask(body)})
        else:
            # To unload takes long, and no frame is to wait for it.
            self._link.send({"op": "deferred", "call": call})
            threading.Thread(target=self._ask, args=(call, body), name="models ask", daemon=True).start()

    def _ask(self, call: int, body: dict[str, Any]) -> None:
        try:
            said: dict[str, Any] = {"body": self._side.ask(body)}
        except Exception as error:  # noqa: BLE001 (the edge of a thread: everything is answered)
            said = {"error": describe(error)}
        on_loop(self._loop, self._answer, call, said)

    def _answer(self, call: int, said: dict[str, Any]) -> None:
        with contextlib.suppress(LinkError):  # a broken link ends the engine
            self._link.send({"op": "answer", "call": call, **said})

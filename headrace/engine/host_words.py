"""What an engine's models say to the worker's ledger: from any thread, in order, none of it lost."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from headrace.engine.host_threads import on_loop
from headrace.engine.link import Link, LinkError, LinkOverflow

log = logging.getLogger(__name__)

_HELD_BACK = 0.02


class ModelWords:
    """Made on the loop. ``session``: the name under which the worker gets them."""

    def __init__(self, link: Link, session: str) -> None:
        self._link = link
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._unsaid: deque[dict[str, Any]] = deque()
        """What the worker has not taken yet."""

    def say(self, body: dict[str, Any]) -> None:
        """From any thread; a report takes the place of those before it that have not been taken."""
        on_loop(self._loop, self._tell, body)

    def later(self, delay: float, work: Callable[[], None]) -> None:
        """Have ``work`` done on the loop after ``delay`` seconds; from any thread."""
        on_loop(self._loop, self._loop.call_later, delay, work)

    def _tell(self, body: dict[str, Any]) -> None:
        waiting = bool(self._unsaid)
        if body.get("kind") == "report":
            self._unsaid = deque(words for words in self._unsaid if words.get("kind") != "report")
        self._unsaid.append(body)
        if not waiting:
            self._tell_all()

    def _tell_all(self) -> None:
        """Send in order, later where the worker does not read at the moment."""
        while self._unsaid:
            try:
                self._link.send({"op": "words", "session": self._session, **self._unsaid[0]})
            except LinkOverflow:
                self._loop.call_later(_HELD_BACK, self._tell_all)
                return
            except LinkError as error:
                log.warning("words of the model cache cannot be sent: %s", error.message)
            self._unsaid.popleft()

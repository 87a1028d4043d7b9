"""A data channel without a connection: what the server sends is kept, and what the test says arrives."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any


class TestChannel:
    """The server's end of a channel, with the members of aiortc's that are used."""

    __test__ = False

    def __init__(self, label: str) -> None:
        self.label = label
        self.readyState = "open"
        self.bufferedAmount = 0
        self.sent: list[dict[str, Any]] = []
        self._handlers: dict[str, list[Callable[..., None]]] = {}
        self._arrived = asyncio.Event()

    def on(self, event: str, f: Callable[..., None]) -> None:
        self._handlers.setdefault(event, []).append(f)

    def send(self, data: str) -> None:
        self.sent.append(json.loads(data))
        self._arrived.set()

    def says(self, message: Any) -> None:
        """The client sends ``message``, as JSON unless it is text or bytes."""
        data = message if isinstance(message, str | bytes) else json.dumps(message)
        for handler in self._handlers.get("message", []):
            handler(data)

    def close(self) -> None:
        """The server closes it."""
        self.closes()

    def closes(self) -> None:
        self.readyState = "closed"
        for handler in self._handlers.get("close", []):
            handler()

    async def until(self, so: Callable[[dict[str, Any]], bool], timeout: float = 20.0) -> dict[str, Any]:
        """The first message that is ``so``, and forget it with those before it."""
        async with asyncio.timeout(timeout):
            while True:
                for index, message in enumerate(self.sent):
                    if so(message):
                        del self.sent[: index + 1]
                        return message
                self._arrived.clear()
                await self._arrived.wait()

    async def ask(self, message: dict[str, Any], timeout: float = 20.0) -> dict[str, Any]:
        """Send a request and wait for what is answered next."""
        self.sent.clear()
        self.says(message)
        return await self.until(lambda _: True, timeout)

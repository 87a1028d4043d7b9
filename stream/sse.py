"""Server-sent events (WHATWG HTML, 9.2)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

KEEPALIVE = 15.0
"""Seconds without an event after which a comment is sent, so that no proxy closes the connection."""
STALL = 30.0
"""Seconds in which a client must take what was written; it may hold its place no longer."""


class EventStream:
    """One answer of events. Methods raise `ConnectionError` when the client has left."""

    def __init__(self, headers: dict[str, str] | None = None) -> None:
        self._request: web.Request | None = None
        self._response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
                **(headers or {}),
            }
        )

    @property
    def begun(self) -> bool:
        return self._response.prepared

    async def begin(self, request: web.Request) -> None:
        self._request = request
        await self._response.prepare(request)

    async def data(self, value: Any, event: str | None = None) -> None:
        """One event; text as it is, everything else as JSON."""
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        head = "" if event is None else f"event: {event}\n"
        await self._write(f"{head}data: {text}\n\n".encode())

    async def keepalive(self) -> None:
        await self._write(b": still here\n\n")

    async def _write(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(STALL):
                await self._response.write(data)
        except TimeoutError:
            if self._request is not None and self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionError(f"the client takes nothing for {STALL:g} s") from None

    async def end(self) -> web.StreamResponse:
        await self._response.write_eof()
        return self._response

"""A session's news over HTTP as server-sent events (WHATWG HTML, 9.2), and the schema of its parameters."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from stream.answers import answering
from stream.errors import AtCapacity
from stream.logs import about_session
from stream.session import Session
from stream.session_feed import Feeds, Follower, News
from stream.table import SessionTable

log = logging.getLogger(__name__)

HEARTBEAT = 15.0
"""Seconds after which a comment shows a quiet connection to be alive."""
STALL = 30.0
"""Seconds in which a reader must take what it was sent."""
MAX_READERS = 64

_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    # nginx holds answers back otherwise.
    "X-Accel-Buffering": "no",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}

SchemaOf = Callable[[Session], Awaitable[dict[str, Any]]]


async def schema_of(session: Session) -> dict[str, Any]:
    """What the processor says of its parameters; nothing until it is loaded."""
    return session.processor.info().schema


class EventRoutes:
    """``GET /stream/events`` and ``GET /stream/schema`` over a session table. The stream is named by
    ``stream_id`` or ``X-Stream-Id``, or by nothing where only one runs."""

    def __init__(self, table: SessionTable, feeds: Feeds, schema: SchemaOf = schema_of) -> None:
        self._table = table
        self._feeds = feeds
        self._schema = schema
        self._readers = 0

    def register(self, app: web.Application) -> None:
        for prefix in ("", "/api"):
            app.router.add_get(f"{prefix}/stream/events", answering(self.events), allow_head=False)
            app.router.add_get(f"{prefix}/stream/schema", answering(self.schema))

    async def schema(self, request: web.Request) -> web.Response:
        """JSON Schema of the live parameters, with their present values as defaults."""
        session = self._table.find(named_session(request))
        return web.json_response(await self._schema(session), headers={"Cache-Control": "no-store"})

    async def events(self, request: web.Request) -> web.StreamResponse:
        """The session's news from its present state on, until it ends or the reader goes."""
        session = self._table.find(named_session(request))
        if self._readers >= MAX_READERS:
            raise AtCapacity(f"{self._readers} readers follow events; no more are taken")
        self._readers += 1
        response = web.StreamResponse(headers=_HEADERS)
        try:
            with about_session(session.id):
                await self._serve(request, response, session)
        finally:
            self._readers -= 1
        return response

    async def _serve(self, request: web.Request, response: web.StreamResponse, session: Session) -> None:
        follower = Follower(self._feeds.of(session))
        try:
            await response.prepare(request)
            # A page that comes back at once after the end finds no session, and stops asking.
            await self._write(response, b"retry: 1000\n\n")
            while True:
                news = await follower.next(HEARTBEAT)
                await self._write(response, b": alive\n\n" if news is None else as_event(news))
                if news is not None and news.kind == "ended":
                    await response.write_eof()
                    return
        except TimeoutError:
            log.info("a reader of events took nothing for %.0f s and was dropped", STALL)
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            log.debug("a reader of events has gone")
        finally:
            follower.close()

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        async with asyncio.timeout(STALL):
            await response.write(data)


def as_event(news: News) -> bytes:
    """One event; JSON has no line breaks, so its data is one line."""
    return f"event: {news.kind}\ndata: {json.dumps(news.body, default=str)}\n\n".encode()


def named_session(request: web.Request) -> str | None:
    """The session that a request names, by header or query."""
    return request.headers.get("X-Stream-Id") or request.query.get("stream_id") or None

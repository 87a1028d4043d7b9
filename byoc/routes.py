"""The stream routes with PyTrickle's exact words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import web

from stream.errors import AtCapacity, InvalidInput
from stream.routes import StreamRoutes, read_json

if TYPE_CHECKING:
    from byoc.server import StreamServer

IN_USE = "Pipeline is still in use"
CLOSING = 5.0
"""Seconds for which a start waits for a stream that is ending."""


class ProcessorRoutes(StreamRoutes):
    """As `StreamRoutes`, also below a prefix; a start waits for the model."""

    def __init__(self, server: StreamServer, prefix: str) -> None:
        super().__init__(server)
        self._server = server
        self._prefix = prefix.strip("/")

    def register(self, app: web.Application) -> None:
        super().register(app)
        if self._prefix in ("", "api"):
            return
        for name, handler in (("start", self.start), ("stop", self.stop), ("params", self.params)):
            app.router.add_post(f"/{self._prefix}/stream/{name}", self.answering(handler))
        app.router.add_get(f"/{self._prefix}/stream/status", self.answering(self.status))

    async def start(self, request: web.Request) -> web.Response:
        try:
            await self._check(request)
            await self._server.pool.wait_free()
            return await super().start(request)
        except AtCapacity:
            raise AtCapacity(IN_USE) from None
        except InvalidInput as error:
            raise _reworded(error, "Error starting stream: ") from None

    async def _check(self, request: web.Request) -> None:
        """A wrong body is refused before anything is waited for, and so is a stream too many."""
        body: Any = await read_json(request)
        named = isinstance(body, dict) and any(
            body.get(key) for key in ("gateway_request_id", "stream_id", "manifest_id")
        )
        if not named and not request.headers.get("X-Stream-Id"):
            raise InvalidInput("gateway_request_id: Field required", field="gateway_request_id")
        table = self._server.table
        for session in table:
            if len(table) >= table.capacity and session.ending is not None:
                await table.wait_ended(session.id, CLOSING)
        if len(table) >= table.capacity:
            raise AtCapacity(IN_USE)

    async def params(self, request: web.Request) -> web.Response:
        try:
            return await super().params(request)
        except InvalidInput as error:
            if error.message == "No active stream to update":
                raise
            raise _reworded(error, "Parameter update failed: ") from None


def _reworded(error: InvalidInput, before: str) -> InvalidInput:
    kind = type(error)
    return kind(before + error.message, field=error.field, details=error.details)

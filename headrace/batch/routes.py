"""The nine endpoints over HTTP, each with and without a slash at its end."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from headrace.batch.answers import Handler, answering
from headrace.batch.endpoints import ENDPOINTS, Endpoint
from headrace.batch.front import Front
from headrace.batch.llm_routes import LlmAnswers

METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")


class BatchRoutes:
    """Handlers over a `Front`; `register` adds them to an application."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._llm = LlmAnswers(front)

    def register(self, app: web.Application) -> None:
        for endpoint in ENDPOINTS.values():
            add(app, "POST", [endpoint.path, f"{endpoint.path}/"], self._handler(endpoint))
        app.router.add_get("/media/{file}", answering(self._front.media.answer))

    def _handler(self, endpoint: Endpoint) -> Handler:
        if endpoint.pipeline == "llm":
            return self._llm.native

        async def handle(request: web.Request) -> web.StreamResponse:
            return await self._front.answer(request, endpoint)

        return handle


def add(app: web.Application, method: str, paths: Iterable[str], handler: Handler) -> None:
    """Add a route under several paths, and an answer in JSON for the other methods."""

    async def refuse(request: web.Request) -> web.StreamResponse:
        body = {
            "detail": "Method Not Allowed",
            "error": {
                "message": f"{request.path} takes {method}, not {request.method}",
                "type": "invalid_request_error",
                "code": "method_not_allowed",
            },
        }
        return web.json_response(body, status=405, headers={"Allow": method})

    for path in paths:
        app.router.add_route(method, path, answering(handler))
        for other in METHODS:
            if other != method:
                app.router.add_route(other, path, refuse)

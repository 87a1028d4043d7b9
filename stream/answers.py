"""How errors are answered over HTTP where no peer's own form is called for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from stream.errors import HeadraceError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def error_response(error: HeadraceError) -> web.Response:
    """The error as JSON, with the message where PyTrickle's and ai-runner's clients look for it too."""
    body = {"status": "error", "detail": {"msg": error.message}, **error.as_dict()}
    return web.json_response(body, status=error.status)


def answering(handler: Handler) -> Handler:
    """``handler`` with our errors answered instead of raised."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except HeadraceError as error:
            return error_response(error)

    return answer

"""How errors are answered over HTTP where no peer's own form is called for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from stream.errors import HeadraceError, MethodNotAllowed, NotFound

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
"""OpenAI's types of errors by status; for others `openai_error` says whose fault it is."""


def error_response(error: HeadraceError) -> web.Response:
    """The error as JSON, with the message where PyTrickle's, ai-runner's and OpenAI's clients look for it."""
    told = {"detail": {"msg": error.message}, "error": openai_error(error)}
    return web.json_response({"status": "error", **told, **error.as_dict()}, status=error.status)


def openai_error(error: HeadraceError) -> dict[str, Any]:
    """The error as OpenAI's clients know it."""
    kind = TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    told: dict[str, Any] = {"message": error.message, "type": kind, "code": error.code}
    if error.field is not None:
        told["param"] = error.field
    return told


@web.middleware
async def unrouted(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Tell of a path or a method that nothing answers as of any other error."""
    try:
        return await handler(request)
    except web.HTTPMethodNotAllowed as refused:
        methods = ", ".join(sorted(refused.allowed_methods))
        answer = error_response(MethodNotAllowed(f"{request.path} takes {methods}, not {refused.method}"))
        answer.headers["Allow"] = refused.headers["Allow"]
        return answer
    except web.HTTPNotFound:
        return error_response(NotFound(f"there is no {request.path}"))


def answering(handler: Handler) -> Handler:
    """``handler`` with our errors answered instead of raised."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except HeadraceError as error:
            return error_response(error)

    return answer

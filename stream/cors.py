"""Pages of other sites that may use the worker: the CORS protocol of the Fetch standard, by a setting."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from stream.errors import InvalidInput

METHODS = "GET, POST, PATCH, DELETE, OPTIONS"
ALLOWED = "Authorization, Content-Type, If-Match, X-Headrace-Params, X-Stream-Id"
EXPOSED = "Location, ETag, Link, Accept-Patch, Accept-Post, Retry-After, WWW-Authenticate"
MAX_AGE = "600"
"""Seconds for which a browser need not ask again."""


class Origins:
    """``listed``: origins as ``https://example.org``, or ``*`` for any. Raises `InvalidInput` for others."""

    def __init__(self, listed: Iterable[str] = ()) -> None:
        self._listed = frozenset(entry.strip().rstrip("/").lower() for entry in listed)
        for entry in self._listed:
            scheme, separator, host = entry.partition("://")
            if entry != "*" and (scheme not in ("http", "https") or not separator or not host or "/" in host):
                raise InvalidInput(
                    f"{entry!r} is no origin: write https://example.org, or * for any",
                    field="allowed_origins",
                )

    @property
    def any(self) -> bool:
        """Whether every page of the web may ask."""
        return "*" in self._listed

    def allows(self, origin: str | None) -> bool:
        """Whether pages of ``origin`` (the header's value) may ask."""
        if origin is None or origin == "null":
            return False
        return self.any or origin.lower() in self._listed


def preflights(origins: Origins) -> Middleware:
    """Answer the preflights of allowed origins; they carry no token."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        asks = request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        if not asks or not origins.allows(request.headers.get(hdrs.ORIGIN)):
            return await handler(request)
        headers = {
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: METHODS,
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: ALLOWED,
            hdrs.ACCESS_CONTROL_MAX_AGE: MAX_AGE,
        }
        return web.Response(status=204, headers=headers)

    return middleware


def mark_answers(app: web.Application, origins: Origins) -> None:
    """Let pages of allowed origins read every answer of ``app``, streams and errors too."""

    async def mark(request: web.Request, answer: web.StreamResponse) -> None:
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and origins.allows(origin):
            answer.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            answer.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED
            answer.headers.add(hdrs.VARY, hdrs.ORIGIN)

    app.on_response_prepare.append(mark)

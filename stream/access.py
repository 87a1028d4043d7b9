"""Who may ask: bearer token, same origin, and a host name that is this machine's."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from stream.answers import error_response
from stream.cors import Origins
from stream.errors import Forbidden, HeadraceError, InvalidInput, Unauthorized

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN_ROUTES = frozenset({"/health", "/version", "/app-version", "/hardware/info", "/hardware/stats"})
"""What orchestrators read without a token, as ai-runner lets them. None of it acts or names a session."""
UNGUESSABLE = frozenset({"/media/{file}"}) | frozenset(
    f"{key}/{way}/{{session}}/{{peer}}" for key in ("", "/key/{key}") for way in ("whip", "whep")
)
"""Resources whose path holds 128 random bits that only its owner was told: whoever knows it may act on it.
Clients that send their token in the URL of a POST do not send it to the ``Location`` that they get."""

_READ, _ASK = frozenset({"GET", "HEAD", "OPTIONS"}), frozenset({"GET", "HEAD", "OPTIONS", "POST"})
VIEWS = {
    **dict.fromkeys((f"{key}/whep{name}" for key in ("", "/key/{key}") for name in ("", "/{session}")), _ASK),
    **dict.fromkeys(("/offer", "/live/offer"), frozenset({"POST"})),
    **dict.fromkeys(("/stream/events", "/api/stream/events", "/api/page", "/ice"), _READ),
    **dict.fromkeys(("/workflows", "/workflows/{id}", "/workflows/{id}/schema"), _READ),
}
"""What a token that only lets watch is good for: routes and their methods."""
# aiohttp before 3.14 knows texts only.
VIEW_ONLY: Any = web.RequestKey("view_only", bool) if hasattr(web, "RequestKey") else "view_only"
"""Key of a request that came with such a token; of an offer, only its body tells whether it only receives."""


def guard(
    token: str | None,
    open_routes: Collection[str] = OPEN_ROUTES,
    origins: Origins | None = None,
    view_token: str | None = None,
) -> Middleware:
    """Refuse, before the body is read: what comes from a page of another site that is not among ``origins``;
    what lacks the bearer token (RFC 6750), but for ``open_routes``, or with ``view_token`` asks for more than
    `VIEWS`; and where there is no token, what asks under a foreign host name."""
    secret = None if token is None else token.encode()
    view_secret = None if view_token is None else view_token.encode()
    allowed = origins or Origins()

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            check_origin(request, allowed)
            if secret is None:
                check_host(request)
            elif (request.path.rstrip("/") or "/") not in open_routes and not _is_unguessable(request):
                check_token(request, secret, view_secret)
        except HeadraceError as error:
            answer = error_response(error)
            if isinstance(error, Unauthorized):
                answer.headers["WWW-Authenticate"] = "Bearer"
            return answer
        return await handler(request)

    return middleware


def check_token(request: web.Request, secret: bytes, view_secret: bytes | None = None) -> None:
    """Raise `Unauthorized` unless the request carries a token; compared in constant time. `Forbidden` where
    it is the one for viewers and more is asked for.

    It comes in the ``Authorization`` header, or for clients that have no place for it, in the URL: as
    ``?token=`` (``?access_token=`` in RFC 6750, 2.3) or as the path's first part, ``/key/TOKEN/whip/...``.
    """
    # Bytes that are not UTF-8 come as surrogates.
    given = _given_token(request).encode(errors="surrogateescape")
    views = view_secret is not None and hmac.compare_digest(given, view_secret)
    if hmac.compare_digest(given, secret):
        return
    if not views:
        raise Unauthorized(
            "this worker asks for a bearer token in the Authorization header, or as ?token= in the URL"
        )
    resource = request.match_info.route.resource
    if resource is None or request.method not in VIEWS.get(resource.canonical, ()):
        raise Forbidden("this token is good for watching only", field="token")
    request[VIEW_ONLY] = True


def _given_token(request: web.Request) -> str:
    header = request.headers.get("Authorization")
    if header is not None:
        scheme, _, given = header.partition(" ")
        return given.strip() if scheme.lower() == "bearer" else ""
    query = request.query
    return query.get("token") or query.get("access_token") or request.match_info.get("key") or ""


def _is_unguessable(request: web.Request) -> bool:
    resource = request.match_info.route.resource
    return resource is not None and resource.canonical in UNGUESSABLE


def check_origin(request: web.Request, allowed: Origins) -> None:
    """Raise `Forbidden` for a browser's request that would change something and comes from another site that
    is not ``allowed``.

    Browsers name the origin of such requests (RFC 6454); other programs have none.
    """
    if request.method in SAFE_METHODS:
        return
    origin, host = request.headers.get("Origin"), request.headers.get("Host", "").lower()
    if allowed.allows(origin):
        return
    if origin is not None and (origin == "null" or _netloc(origin) != host):
        raise Forbidden(f"requests from pages of {origin[:200]!r} are not taken", field="Origin")
    if request.headers.get("Sec-Fetch-Site") == "cross-site":
        raise Forbidden("requests from pages of other sites are not taken", field="Sec-Fetch-Site")


def check_host(request: web.Request) -> None:
    """Raise `Forbidden` for a request under a name that is not a loopback one.

    A page on the internet can point a name of its own at 127.0.0.1 and would then be of the same origin.
    """
    name = _hostname(request.headers.get("Host", ""))
    if name is None or not (is_loopback(name) or name.endswith(".localhost")):
        text = f"without a token this worker answers to localhost only, not to {name!r}: set a token"
        raise Forbidden(text, field="Host")


def is_loopback(host: str) -> bool:
    """Whether a name or address is of this machine by definition."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, token: str | None) -> None:
    """Raise `InvalidInput` when ``host`` is reachable from other machines and there is no token."""
    if token is None and not is_loopback(host):
        raise InvalidInput(
            f"host {host!r} is reachable from other machines: set a token (HEADRACE_TOKEN), "
            "or listen on 127.0.0.1",
            field="host",
        )


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None

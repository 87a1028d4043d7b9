"""What WHIP (RFC 9725) and WHEP (draft-ietf-wish-whep) have in common over HTTP: bodies, answers, and the
resource of a peer with its PATCH and DELETE."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web

from stream.answers import error_response
from stream.errors import AtCapacity, HeadraceError, InvalidInput, TooLarge
from stream.logs import about_session
from stream.webrtc.errors import (
    NotAcceptable,
    PreconditionFailed,
    PreconditionRequired,
    Unprocessable,
    UnsupportedType,
)
from stream.webrtc.peers import Entry, PeerTable, new_tag
from stream.webrtc.sdp import MAX_FRAGMENT, MAX_SDP, Fragment, format_fragment, parse_fragment

SDP = "application/sdp"
SDPFRAG = "application/trickle-ice-sdpfrag"
BODY_TIMEOUT = 10.0
RETRY_AFTER = "2"
"""Seconds after which asking again may help."""
KEY_PREFIX = "/key/{key}"
"""Before a path, for clients that have no place for a token but the URL."""

_NAME = re.compile(r"[A-Za-z0-9._~:@+-]{1,128}")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def endpoints(path: str) -> tuple[str, ...]:
    """Where offers go: without a session's name and with one, and each as those who add a slash write it."""
    return tuple(f"{path}{rest}" for rest in ("", "/", "/{session}", "/{session}/"))


def session_name(request: web.Request) -> str | None:
    """The session that the path names; raises `InvalidInput` for a name that could not be in a URL."""
    name = request.match_info.get("session")
    if name is not None and not _NAME.fullmatch(name):
        raise InvalidInput(
            f"a session's name has up to 128 letters, digits and . _ ~ : @ + -, not {name[:80]!r}",
            field="session",
        )
    return name


async def read_sdp(request: web.Request) -> str:
    """The offer in the body. Raises `NotAcceptable`, `UnsupportedType`, `TooLarge` or `InvalidInput`."""
    check_accept(request.headers.getall(hdrs.ACCEPT, []))
    return await read_text(request, SDP, MAX_SDP)


async def read_text(request: web.Request, content_type: str, limit: int) -> str:
    """A body of that type and of at most ``limit`` bytes."""
    if request.content_type != content_type:
        raise UnsupportedType(
            f"expected a body of type {content_type}, got {request.content_type[:80]!r}", field="Content-Type"
        )
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise UnsupportedType("bodies are taken as they are, in no encoding", field="Content-Encoding")
    if request.content_length is not None and request.content_length > limit:
        raise TooLarge(
            f"the body has {request.content_length} bytes; at most {limit} are taken", field="body"
        )
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for piece in request.content.iter_any():
                body += piece
                if len(body) > limit:
                    raise TooLarge(f"the body has over {limit} bytes", field="body")
        return body.decode()
    except TimeoutError:
        raise InvalidInput(f"the body did not come within {BODY_TIMEOUT:g} s", field="body") from None
    except web.RequestPayloadError as error:
        raise InvalidInput(f"the body cannot be read: {error}", field="body") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the body is not text: {error}", field="body") from None


def check_accept(headers: list[str]) -> None:
    """Raise `NotAcceptable` when ``Accept`` leaves no way to answer with SDP (RFC 9110, 12.5.1)."""
    ranges = [part.strip() for header in headers for part in header.split(",") if part.strip()]
    quality: dict[str, bool] = {}
    for text in ranges:
        media, *parameters = (piece.strip().lower() for piece in text.split(";"))
        refused = any(re.fullmatch(r"q=0(\.0{0,3})?", parameter) for parameter in parameters)
        quality[media] = not refused
    for media in (SDP, "application/*", "*/*"):
        if media in quality:
            if quality[media]:
                return
            break
    else:
        if not quality:
            return
    raise NotAcceptable(f"the answer is of type {SDP}, which Accept leaves out", field="Accept")


def created(entry: Entry, answer: str, location: str, peers: PeerTable) -> web.Response:
    """201 with the SDP answer, and what RFC 9725 wants beside it."""
    response = web.Response(status=201, text=answer, content_type=SDP)
    response.headers[hdrs.LOCATION] = f"{location}/{entry.peer.id}"
    response.headers[hdrs.ETAG] = entry.tag
    response.headers["Accept-Patch"] = SDPFRAG
    for link in peers.ice.link_headers():
        response.headers.add(hdrs.LINK, link)
    return response


def answering(handler: Handler) -> Handler:
    """``handler`` with errors as JSON; those that time may heal say when to try again."""

    async def answer(request: web.Request) -> web.StreamResponse:
        with about_session(request.match_info.get("session")):
            try:
                return await handler(request)
            except HeadraceError as error:
                response = error_response(error)
                if isinstance(error, AtCapacity) or error.status == 503:
                    response.headers[hdrs.RETRY_AFTER] = RETRY_AFTER
                return response

    return answer


class Resources:
    """PATCH and DELETE of the resource that a POST has made, and OPTIONS of the endpoints."""

    def __init__(self, peers: PeerTable) -> None:
        self._peers = peers

    def register(self, app: web.Application, path: str) -> None:
        """``path`` ends before ``/{session}/{peer}``."""
        resource = f"{path}/{{session}}/{{peer}}"
        app.router.add_patch(resource, answering(self.patch))
        app.router.add_delete(resource, answering(self.delete))
        app.router.add_options(resource, answering(self.options_of_resource))
        for endpoint in endpoints(path):
            app.router.add_options(endpoint, answering(self.options))

    async def patch(self, request: web.Request) -> web.Response:
        """Candidates (204), or an ICE restart (200 with our credentials and candidates and a new tag)."""
        entry = self._entry(request)
        fragment = parse_fragment(await read_text(request, SDPFRAG, MAX_FRAGMENT))
        condition = request.headers.get(hdrs.IF_MATCH)
        if condition is None:
            raise PreconditionRequired("a PATCH names the ICE session by If-Match", field="If-Match")
        restarts = fragment.ufrag is not None and fragment.ufrag != entry.peer.remote_ufrag
        if condition.strip() != "*":
            tags = [tag.strip() for tag in condition.split(",")]
            if entry.tag not in tags:
                raise PreconditionFailed("the ICE session has been restarted since", field="If-Match")
            if restarts:
                raise Unprocessable("an ICE restart is asked for with If-Match: *", field="If-Match")
        if restarts:
            return await self._restart(entry, fragment)
        for line in fragment.candidates:
            entry.peer.add_candidate(line, None)
        if fragment.ended:
            entry.peer.end_of_candidates()
        return web.Response(status=204)

    async def _restart(self, entry: Entry, fragment: Fragment) -> web.Response:
        assert fragment.ufrag is not None
        assert fragment.password is not None
        username, password, candidates = await entry.peer.restart_ice(
            fragment.ufrag, fragment.password, fragment.candidates
        )
        entry.tag = new_tag()
        body = format_fragment(username, password, candidates)
        response = web.Response(status=200, text=body, content_type=SDPFRAG)
        response.headers[hdrs.ETAG] = entry.tag
        return response

    async def delete(self, request: web.Request) -> web.Response:
        """The client is done."""
        await self._peers.drop(self._entry(request), "bye")
        return web.Response(status=200)

    async def options(self, request: web.Request) -> web.Response:
        headers = {"Accept-Post": SDP, hdrs.ALLOW: "POST, OPTIONS"}
        return web.Response(status=204, headers=headers)

    async def options_of_resource(self, request: web.Request) -> web.Response:
        headers = {"Accept-Patch": SDPFRAG, hdrs.ALLOW: "PATCH, DELETE, OPTIONS"}
        return web.Response(status=204, headers=headers)

    def _entry(self, request: web.Request) -> Entry:
        name = session_name(request)
        assert name is not None
        return self._peers.find(request.match_info["peer"], name)

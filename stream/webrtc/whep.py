"""WHEP, the way out (draft-ietf-wish-whep): any number of viewers of a session, however it is fed."""

from __future__ import annotations

import asyncio
import logging
import math
from urllib.parse import quote

from aiohttp import hdrs, web

from stream.answers import error_response
from stream.errors import Conflict, InvalidInput, NotFound
from stream.routes import Host
from stream.session import Session
from stream.webrtc.peers import PeerTable
from stream.webrtc.sdp import check_offer
from stream.webrtc.signalling import (
    KEY_PREFIX,
    RETRY_AFTER,
    Resources,
    answering,
    created,
    endpoints,
    read_sdp,
    session_name,
)

log = logging.getLogger(__name__)

MAX_WAIT = 30.0
POLL = 0.1


class WhepRoutes:
    """``/whep/{session}``, and ``/whep`` for the only session; `register` adds them to an application."""

    def __init__(self, host: Host, peers: PeerTable) -> None:
        self._host = host
        self._peers = peers
        self._resources = Resources(peers)

    def register(self, app: web.Application) -> None:
        for prefix in ("", KEY_PREFIX):
            for path in endpoints("/whep"):
                app.router.add_post(prefix + path, answering(self.view))
            self._resources.register(app, f"{prefix}/whep")

    async def view(self, request: web.Request) -> web.Response:
        """Send the session's picture and sound. ``?wait=S``: wait up to S seconds for it to begin."""
        name, wait = session_name(request), _wait(request.query.get("wait"))
        offer = await read_sdp(request)
        check_offer(offer, "view")
        self._peers.check_room("viewer")
        try:
            session = await self._find(name, wait)
        except NotFound as error:
            answer = error_response(error)
            answer.headers[hdrs.RETRY_AFTER] = RETRY_AFTER
            return answer
        entry = await self._peers.open(session.id, "viewer")
        try:
            sdp = await entry.peer.answer(offer, send=session)
            if session.ending is not None:
                raise Conflict(f"session {session.id!r} ended meanwhile: {session.ending.reason}")
            self._peers.check_open(entry)
        except BaseException:
            await self._peers.drop(entry, "its offer could not be answered")
            raise
        log.info("viewer %s of session %s", entry.peer.id[:8], session.id)
        return created(entry, sdp, f"/whep/{quote(session.id)}", self._peers)

    async def _find(self, name: str | None, wait: float) -> Session:
        end = asyncio.get_running_loop().time() + wait
        while True:
            try:
                session = self._host.table.find(name)
                if session.ending is not None:
                    raise NotFound(f"the session {session.id!r} is ending", field="session")
                return session
            except NotFound:
                if asyncio.get_running_loop().time() >= end or self._peers.closed:
                    raise
            await asyncio.sleep(POLL)


def _wait(text: str | None) -> float:
    if text is None:
        return 0.0
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= MAX_WAIT:
        raise InvalidInput(f"wait is from 0 to {MAX_WAIT:g} s, not {text[:40]!r}", field="wait")
    return seconds

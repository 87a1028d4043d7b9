"""WHIP, the way in (RFC 9725): OBS, FFmpeg, GStreamer and browsers publish to a session by one POST."""

from __future__ import annotations

import logging
from urllib.parse import quote

from aiohttp import web

from stream.routes import Host
from stream.table import new_session_id
from stream.webrtc.peers import PeerTable
from stream.webrtc.publications import Publications
from stream.webrtc.sdp import check_offer
from stream.webrtc.selection import HEADER, TAKEOVER, parse_selection, parse_takeover
from stream.webrtc.signalling import (
    KEY_PREFIX,
    Resources,
    answering,
    created,
    endpoints,
    read_sdp,
    session_name,
)

log = logging.getLogger(__name__)


class WhipRoutes:
    """``/whip`` and ``/whip/{session}``; `register` adds them to an application."""

    def __init__(self, host: Host, peers: PeerTable, publications: Publications) -> None:
        self._host = host
        self._peers = peers
        self._publications = publications
        self._resources = Resources(peers)

    def register(self, app: web.Application) -> None:
        for prefix in ("", KEY_PREFIX):
            for path in endpoints("/whip"):
                app.router.add_post(prefix + path, answering(self.publish))
            self._resources.register(app, f"{prefix}/whip")

    async def publish(self, request: web.Request) -> web.Response:
        """Take an offer's media into the session of that name, which is made when there is none.

        Another publisher of a name takes over from one that is gone or stalled, with the viewers that there
        are; from one whose media arrives with ``?takeover=1`` alone. What it asks for differently is changed
        when nothing else can fail any more.
        """
        given = session_name(request)
        name = given or new_session_id()
        wanted = parse_selection(request.query.items(), request.headers.get(HEADER))
        takeover = parse_takeover(request.query.get(TAKEOVER))
        offer = await read_sdp(request)
        check_offer(offer, "publish")
        self._peers.check_room("publisher")
        # Nobody comes back to a name that was made up: its session ends with its publisher's DELETE.
        async with self._publications.join(name, wanted, takeover=takeover, once=given is None) as joining:
            entry = await self._peers.open(name, "publisher")
            try:
                answer = await entry.peer.answer(offer, receive=joining.ingest)
                await joining.apply(entry)
                self._peers.check_open(entry)
            except BaseException:
                await self._peers.drop(entry, "its offer could not be answered")
                raise
        log.info("publisher %s of session %s", entry.peer.id[:8], name)
        return created(entry, answer, f"/whip/{quote(name)}", self._peers)

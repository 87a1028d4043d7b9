"""WHIP, the way in (RFC 9725): OBS, FFmpeg, GStreamer and browsers publish to a session by one POST."""

from __future__ import annotations

import logging
from urllib.parse import quote

from aiohttp import web

from stream.errors import AtCapacity, Conflict
from stream.routes import Host
from stream.table import new_session_id
from stream.webrtc.peers import PeerTable
from stream.webrtc.publications import Publications
from stream.webrtc.sdp import check_offer
from stream.webrtc.selection import HEADER, parse_selection
from stream.webrtc.signalling import KEY_PREFIX, Resources, answering, created, read_sdp, session_name

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
            for path in ("/whip", "/whip/{session}"):
                app.router.add_post(prefix + path, answering(self.publish))
            self._resources.register(app, f"{prefix}/whip")

    async def publish(self, request: web.Request) -> web.Response:
        """Take an offer's media into the session of that name, which is made when there is none.

        A second publisher of a name takes over from the first, with the viewers that there are.
        """
        name = session_name(request) or new_session_id()
        wanted = parse_selection(request.query.items(), request.headers.get(HEADER))
        offer = await read_sdp(request)
        check_offer(offer, "publish")
        self._peers.check_room("publisher")
        publication, made = await self._publications.join(name, wanted)
        try:
            entry = await self._peers.open(name, "publisher")
            try:
                answer = await entry.peer.answer(offer, receive=publication.ingest)
            except BaseException:
                await self._peers.drop(entry, "its offer could not be answered")
                raise
        except BaseException:
            if made:
                self._publications.abandon(publication, "its first publisher could not be taken")
            raise
        if publication.session.ending is not None:
            await self._peers.drop(entry, "the session has ended")
            raise Conflict(f"session {name!r} ended meanwhile: {publication.session.ending.reason}")
        if self._peers.closed:
            await self._peers.drop(entry, "the worker is shutting down")
            raise AtCapacity("the worker is shutting down")
        log.info("publisher %s of session %s", entry.peer.id[:8], name)
        return created(entry, answer, f"/whip/{quote(name)}", self._peers)

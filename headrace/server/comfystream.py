"""ComfyStream's HTTP interface: a browser's offer in, an answer out, and the routes around it."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from aiohttp import web

from headrace.server.control_channel import Channels
from headrace.server.specs import Specs
from headrace.server.switching import switch
from stream.access import VIEW_ONLY
from stream.errors import Conflict, Forbidden, InvalidInput, NotFound
from stream.ingest import Ingest
from stream.logs import about_session
from stream.requests import StreamStart, parse_start
from stream.routes import read_json
from stream.server_events import named_session
from stream.session import Session, SideChannels
from stream.session_feed import Feeds
from stream.states import Health
from stream.table import SessionTable, new_session_id
from stream.webrtc.peers import Entry, PeerTable, Role
from stream.webrtc.publications import CHANNELS, Joining, Publications
from stream.webrtc.sdp import check_offer, parse_offer
from stream.webrtc.signalling import answering
from workflows.processor import WORKFLOW_KEYS

log = logging.getLogger(__name__)

PASSTHROUGH = "passthrough"
"""What an offer without a workflow gets; ComfyStream calls it noop."""
OWN_GRACE = 10.0
"""Seconds in which the browser's first packets must come where the session is its own."""
HISTORY = 60
"""Rates that are kept of a session, one a second."""

_NAME = re.compile(r"[A-Za-z0-9._~:@+-]{1,128}")


class Host(Protocol):
    """What the routes need of the worker."""

    table: SessionTable

    async def prepare(self, request: StreamStart) -> Any: ...
    def make_session(
        self,
        session_id: str,
        request: StreamStart,
        *,
        ingest: Ingest | None = None,
        side: SideChannels | None = None,
        prepared: Any = None,
    ) -> Session: ...
    def health(self) -> Health: ...
    def ready(self) -> bool: ...
    def problem(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """A checked body of ``POST /offer``. ``name`` is None where the session is the connection's own.
    ``takeover``: it takes the place of a publisher whose media arrives."""

    sdp: str
    start: StreamStart
    name: str | None
    send: bool
    receive: bool
    takeover: bool

    @property
    def role(self) -> Role:
        if self.send:
            return "both" if self.receive else "publisher"
        return "viewer"


def parse_wanted(body: Any) -> Wanted:
    """Read ComfyStream's body and what we add to it. Raises `InvalidInput` that names the field."""
    if not isinstance(body, dict):
        raise InvalidInput(f"expected a JSON object, got {type(body).__name__}", field="body")
    offer = body.get("offer")
    if not isinstance(offer, dict) or not isinstance(offer.get("sdp"), str):
        raise InvalidInput('offer is an object {"sdp": "...", "type": "offer"}', field="offer")
    if offer.get("type", "offer") != "offer":
        raise InvalidInput(f"offer.type is 'offer', not {repr(offer['type'])[:40]}", field="offer.type")
    media = [each for each in parse_offer(offer["sdp"]).media if each.kind in ("audio", "video")]
    name = body.get("session")
    if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise InvalidInput(
            f"a session's name has up to 128 letters, digits and . _ ~ : @ + -, not {repr(name)[:80]}",
            field="session",
        )
    send = _flag(body, "send", any(each.sends for each in media))
    receive = _flag(body, "receive", any(each.receives for each in media))
    if not send and not receive:
        raise InvalidInput("the offer neither sends nor receives audio or video", field="offer.sdp")
    takeover = body.get("takeover") is not None and _flag(body, "takeover", True)
    check_offer(offer["sdp"], "publish" if send else "view")
    urls = {f"{channel}_url": body.get(f"{channel}_url") for channel in CHANNELS}
    start = parse_start({**urls, "params": _params(body)})
    return Wanted(offer["sdp"], start, name, send, receive, takeover)


def _flag(body: dict[str, Any], name: str, default: bool) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidInput(f"{name} is true or false, not {repr(value)[:40]}", field=name)
    return default if value is None else value and default


def _params(body: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a session's start: what it runs, its size, and those of the workflow."""
    params = body.get("params")
    if params is not None and not isinstance(params, dict):
        raise InvalidInput(f"params is a JSON object, not {repr(params)[:60]}", field="params")
    found = dict(params or {})
    chosen = {key: body[key] for key in ("prompts", "workflow") if body.get(key) not in (None, [], {}, "")}
    if len(chosen) > 1:
        raise InvalidInput("give prompts or workflow, not both", field="workflow")
    found.update(chosen)
    resolution = body.get("resolution")
    if resolution is not None:
        if not isinstance(resolution, dict) or not resolution.keys() >= {"width", "height"}:
            raise InvalidInput('resolution is an object {"width": ..., "height": ...}', field="resolution")
        found |= {"width": resolution["width"], "height": resolution["height"]}
    return found


def _with_workflow(start: StreamStart) -> StreamStart:
    """A start that names no workflow gets `PASSTHROUGH`."""
    params = start.params or {}
    if any(params.get(key) for key in (*WORKFLOW_KEYS, "processor")):
        return start
    return start.model_copy(update={"params": {**params, "workflow": PASSTHROUGH}})


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an offer belongs; ``own``: its session ends with its connection."""

    session: Session
    ingest: Ingest | None = None
    joining: Joining | None = None
    own: bool = False


@dataclass(slots=True, eq=False)
class _Link:
    """What belongs to one connection and ends with it."""

    channels: Channels
    own: Session | None


class ComfyStreamRoutes:
    """``/offer``, ``/prompt`` and the statistics, bare and under ``/live``."""

    def __init__(
        self, host: Host, peers: PeerTable, publications: Publications, feeds: Feeds, specs: Specs
    ) -> None:
        self._host = host
        self._peers = peers
        self._publications = publications
        self._feeds = feeds
        self._specs = specs
        self._links: dict[str, _Link] = {}
        self._rates = Rates(host.table)
        peers.on_left.append(self._left)

    def register(self, app: web.Application) -> None:
        app.cleanup_ctx.append(self._rates.run)
        for prefix in ("", "/live"):
            app.router.add_post(f"{prefix}/offer", answering(self.offer))
            app.router.add_post(f"{prefix}/prompt", answering(self.prompt))
            app.router.add_get(f"{prefix}/streams/stats", answering(self.all_stats))
            app.router.add_get(f"{prefix}/stream/{{id}}/stats", answering(self.stats))
        app.router.add_get("/live/health", self.health)

    async def offer(self, request: web.Request) -> web.Response:
        """Answer a browser's offer; the session loads its model meanwhile."""
        wanted = parse_wanted(await read_json(request))
        if wanted.send and VIEW_ONLY in request:
            raise Forbidden("this token is good for offers that only receive", field="offer")
        self._peers.check_room(wanted.role)
        async with self._place(wanted) as place:
            answer = await self._connect(wanted, place)
        return web.json_response({"sdp": answer, "type": "answer", "session": place.session.id})

    async def prompt(self, request: web.Request) -> web.Response:
        """Have the named session, or the only one, run other workflows; the answer waits for them."""
        session = self._host.table.find(named_session(request))
        body = await read_json(request)
        if isinstance(body, dict) and isinstance(body.get("prompts"), list):
            body = body["prompts"]
        if not isinstance(body, dict | list) or not body:
            raise InvalidInput("the body is a workflow in API format, or a list of them", field="body")
        with about_session(session.id):
            await switch(session, body, self._specs)
        return web.Response(text="OK", content_type="application/json")

    async def all_stats(self, request: web.Request) -> web.Response:
        return web.json_response({session.id: self._rates.of(session) for session in self._host.table})

    async def stats(self, request: web.Request) -> web.Response:
        """The rates of one session; 404 where ComfyStream answers 200 with an error."""
        name = request.match_info["id"]
        try:
            session = self._host.table.find(name)
        except NotFound:
            return web.json_response({"error": "Stream not found", "code": "not_found"}, status=404)
        return web.json_response(self._rates.of(session))

    async def health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": str(self._host.health())})

    # -- sessions and peers ------------------------------------------------------------------------------

    @asynccontextmanager
    async def _place(self, wanted: Wanted) -> AsyncIterator[_Place]:
        """The session of an offer. One that was made for it ends when the body fails."""
        if not wanted.send:
            if wanted.name is None:
                raise InvalidInput("an offer that only receives names a session", field="session")
            yield _Place(self._host.table.find(wanted.name))
        elif wanted.name is not None:
            # Who takes a session over without a word about workflows leaves it as it is.
            known = self._publications.find(wanted.name) is not None
            start = wanted.start if known else _with_workflow(wanted.start)
            async with self._publications.join(wanted.name, start, takeover=wanted.takeover) as joining:
                yield _Place(joining.session, joining.ingest, joining)
        else:
            place = await self._own_place(wanted)
            try:
                yield place
            except BaseException:
                place.session.stop("its connection could not be made")
                raise

    async def _own_place(self, wanted: Wanted) -> _Place:
        start = _with_workflow(wanted.start)
        prepared = await self._host.prepare(start)
        await self._publications.make_room()
        name = new_session_id()
        self._host.table.check_room(name)
        with about_session(name):
            ingest = Ingest(grace=OWN_GRACE)
            session = self._host.make_session(name, start, ingest=ingest, prepared=prepared)
            self._host.table.add(session)
        return _Place(session, ingest, own=True)

    async def _connect(self, wanted: Wanted, place: _Place) -> str:
        """A peer for the session; returns its answer."""
        session = place.session
        entry = await self._peers.open(session.id, wanted.role)
        peer = entry.peer
        timings = peer.timings if wanted.receive else None
        channels = Channels(session, self._specs, self._feeds, timings)
        self._links[peer.id] = _Link(channels, session if place.own else None)
        try:
            with about_session(session.id):
                answer = await peer.answer(
                    wanted.sdp,
                    receive=place.ingest if wanted.send else None,
                    send=session if wanted.receive else None,
                    channels=channels.opened,
                )
                if place.joining is not None:
                    await place.joining.apply(entry)
            if session.ending is not None:
                raise Conflict(f"the session ended meanwhile: {session.ending.reason}")
            self._peers.check_open(entry)
        except BaseException:
            await self._peers.drop(entry, "its offer could not be answered")
            raise
        log.info("%s %s of session %s", wanted.role, peer.id[:8], session.id)
        return answer

    def _left(self, entry: Entry) -> None:
        link = self._links.pop(entry.peer.id, None)
        if link is None:
            return
        link.channels.close()
        if link.own is not None:
            link.own.stop("the connection was closed")


class Rates:
    """Pictures put out each second, for a minute, of every session of a table."""

    def __init__(self, table: SessionTable) -> None:
        self._table = table
        self._history: WeakKeyDictionary[Session, deque[tuple[float, float]]] = WeakKeyDictionary()
        self._counts: WeakKeyDictionary[Session, int] = WeakKeyDictionary()

    async def run(self, app: web.Application) -> AsyncIterator[None]:
        """Sample while the application runs."""
        task = asyncio.create_task(self._sample(), name="rates")
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def of(self, session: Session) -> dict[str, Any]:
        """In ComfyStream's form: epoch seconds and frames per second."""
        history = list(self._history.get(session, ()))
        rates = [fps for _, fps in history]
        return {
            "timestamp": time.time(),
            "fps": rates[-1] if rates else 0.0,
            "minute_avg_fps": round(sum(rates) / len(rates), 2) if rates else 0.0,
            "minute_fps_array": [{"timestamp": moment, "fps": fps} for moment, fps in history],
        }

    async def _sample(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            for session in self._table:
                count = session.pipeline.figures.counts.frames_out
                before = self._counts.get(session)
                self._counts[session] = count
                if before is not None:
                    history = self._history.setdefault(session, deque(maxlen=HISTORY))
                    history.append((time.time(), round((count - before) / (now - last), 2)))
            last = now

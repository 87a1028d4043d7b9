"""WHIP and WHEP over a real HTTP server, with real sessions that pass pictures through."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from stream.access import OPEN_ROUTES, guard
from stream.codecs.video_encoder import VideoEncoderSettings
from stream.cors import Origins, mark_answers, preflights
from stream.encoding_parts import EncodingSettings
from stream.errors import InvalidInput
from stream.ingest import Ingest
from stream.pipeline import PipelineSettings
from stream.processor import FrameProcessor
from stream.requests import StreamStart, take_media_params
from stream.routes import StreamRoutes
from stream.session import Session, SessionSettings, SideChannels
from stream.states import Health
from stream.status import session_report
from stream.table import SessionTable
from stream.trickle.live import trickle_session
from stream.webrtc.ice import IceSettings
from stream.webrtc.peers import PeerTable
from stream.webrtc.publications import Publications
from stream.webrtc.whep import WhepRoutes
from stream.webrtc.whip import WhipRoutes

SDP = {"Content-Type": "application/sdp"}
FRAGMENT = {"Content-Type": "application/trickle-ice-sdpfrag"}


class Steerable(FrameProcessor):
    """Passes frames through and takes every parameter but ``stubborn``, ``slow`` after so many seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[dict[str, Any]] = []

    async def update_params(self, params: dict[str, Any]) -> None:
        self.asked.append(params)
        if "slow" in params:
            await asyncio.sleep(params["slow"])
        if "stubborn" in params:
            raise InvalidInput("stubborn stays as it is", field="stubborn")


class Host:
    """What the routes need: sessions with a `Steerable` each."""

    def __init__(self, capacity: int = 8) -> None:
        self.table = SessionTable(capacity, session_report)

    async def prepare(self, request: StreamStart) -> None:
        return None

    def make_session(
        self,
        session_id: str,
        request: StreamStart,
        *,
        ingest: Ingest | None = None,
        side: SideChannels | None = None,
        prepared: None = None,
    ) -> Session:
        media, rest = take_media_params(request.params or {})
        if rest.get("workflow") == "unknown":
            raise InvalidInput("there is no workflow 'unknown'", field="workflow")
        video = VideoEncoderSettings(hardware="off", preset="ultrafast")
        pipeline = PipelineSettings(
            width=media.width, height=media.height, encoding=EncodingSettings(video=video)
        )
        settings = SessionSettings(pipeline=pipeline)
        return trickle_session(
            session_id,
            request,
            Steerable(),
            settings,
            start_params=rest,
            verify_tls=False,
            ingest=ingest,
            side=side,
        )

    def health(self) -> Health:
        return Health.OK

    def ready(self) -> bool:
        return True

    def problem(self) -> str | None:
        return None


@dataclass
class StandIn:
    """A peer that answers with a line of text, for tests of signalling alone."""

    on_closed: Any
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    state: str = "new"
    failure: str | None = None
    remote_ufrag: str = "abcd"
    candidates: list[str] = field(default_factory=list)
    ended: bool = False
    closed: str | None = None
    receive: Any = None
    feed: Any = None
    fails: Exception | None = None
    hangs: bool = False

    async def answer(self, offer: str, *, receive: Any = None, send: Any = None) -> str:
        await asyncio.sleep(0)
        if self.fails is not None:
            raise self.fails
        self.receive = receive
        return "v=0\r\n"

    def connect(self) -> None:
        """What happens when the client has the answer."""
        if self.receive is not None and self.closed is None:
            self.feed = self.receive.publish(self.id, on_replaced=lambda: setattr(self, "state", "replaced"))
            self.receive = None

    def add_candidate(self, line: str, mid: str | None) -> None:
        self.candidates.append(line)

    def end_of_candidates(self) -> None:
        self.ended = True

    async def restart_ice(self, username: str, password: str, lines: Any) -> tuple[str, str, list[str]]:
        self.remote_ufrag = username
        return "ours", "o" * 22, ["candidate:1 1 udp 1 192.0.2.1 5000 typ host"]

    async def close(self, reason: str) -> None:
        if self.hangs:
            await asyncio.sleep(60)
        if self.closed is None:
            self.closed = reason
            self.state = "closed"
            if self.feed is not None:
                self.feed.close(reason)
            self.on_closed(self)

    def describe_paths(self) -> str | None:
        return None

    def report(self) -> dict[str, Any]:
        return {}


@dataclass
class Program:
    client: TestClient[web.Request, web.Application]
    host: Host
    peers: PeerTable
    publications: Publications
    made: list[StandIn]

    async def post(self, path: str, body: str | bytes, **headers: str) -> Any:
        """An answer whose body was read."""
        answer = await self.client.post(path, data=body, headers={**SDP, **_named(headers)})
        await answer.read()
        if answer.status == 201:
            for peer in self.made:
                peer.connect()
        return answer

    async def patch(self, path: str, body: str, **headers: str) -> Any:
        answer = await self.client.patch(path, data=body, headers={**FRAGMENT, **_named(headers)})
        await answer.read()
        return answer


def _named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


@asynccontextmanager
async def whip_program(
    *,
    token: str | None = None,
    origins: tuple[str, ...] = (),
    grace: float = 30.0,
    capacity: int = 8,
    ice: IceSettings | None = None,
    real: bool = False,
    **limits: Any,
) -> AsyncIterator[Program]:
    """A running program; with ``real`` its peers are real ones, otherwise `StandIn`s."""
    host, allowed, made = Host(capacity), Origins(origins), list[StandIn]()

    def stand_in(settings: IceSettings, on_closed: Any) -> Any:
        made.append(StandIn(on_closed))
        return made[-1]

    peers = PeerTable(ice or IceSettings(), factory=None if real else stand_in, **limits)
    publications = Publications(host, peers, grace=grace)
    host.table.on_ended.append(peers.session_ended)
    app = web.Application(middlewares=[preflights(allowed), guard(token, OPEN_ROUTES, allowed)])
    mark_answers(app, allowed)
    StreamRoutes(host).register(app)
    WhipRoutes(host, peers, publications).register(app)
    WhepRoutes(host, peers).register(app)
    async with TestClient(TestServer(app)) as client:
        try:
            yield Program(client, host, peers, publications, made)
        finally:
            await peers.close("the test is over")
            await host.table.close("the test is over")

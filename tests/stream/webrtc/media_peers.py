"""A session with WebRTC on both sides, and stock aiortc peers that publish to it and watch it."""

from __future__ import annotations

import asyncio
import contextlib
import fractions
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import av
import pytest
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
)

from stream.ingest import Ingest
from stream.processor import FrameProcessor
from stream.session import Session, SessionSettings
from stream.webrtc.ice import IceSettings
from stream.webrtc.peer import Peer
from tests.stream.codec_media import Coded
from tests.stream.quiet_session import Quiet

ICE = IceSettings(gather_timeout=0.5)
GUARD = 20.0
"""Seconds after which a wait in a test is over."""


class CodedTrack(MediaStreamTrack):
    """Sends packets that were encoded beforehand, in real time, round and round. A key picture request
    begins again at the first one."""

    def __init__(self, kind: str, packets: Sequence[Coded], step: int) -> None:
        super().__init__()
        self.kind = kind
        self._packets = packets
        self._step = step
        self._count = 0
        self._began: float | None = None
        self.position = 0
        self.sent: list[int] = []

    async def recv(self) -> Any:
        if self._began is None:
            self._began = time.monotonic()
        pts = self._count * self._step
        await asyncio.sleep(max(0.0, self._began + pts / 90_000 - time.monotonic()))
        coded = self._packets[self.position % len(self._packets)]
        self.position += 1
        self._count += 1
        packet = av.Packet(coded.data)
        packet.pts, packet.time_base = pts, fractions.Fraction(1, 90_000)
        self.sent.append(pts)
        return packet


@dataclass
class Stage:
    """A session without a model, open on both sides."""

    ingest: Ingest
    session: Session
    peers: list[Peer] = field(default_factory=list)
    closed: list[Peer] = field(default_factory=list)
    stock: list[RTCPeerConnection] = field(default_factory=list)

    def peer(self) -> Peer:
        peer = Peer(ICE, on_closed=self.closed.append)
        self.peers.append(peer)
        return peer

    def stock_peer(self) -> RTCPeerConnection:
        connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.stock.append(connection)
        return connection

    async def publish(
        self, *tracks: MediaStreamTrack, edit: Callable[[str], str] = lambda sdp: sdp
    ) -> tuple[RTCPeerConnection, Peer]:
        """A stock peer that publishes to the session."""
        connection = self.stock_peer()
        for track in tracks:
            connection.addTransceiver(track, direction="sendonly")
        await connection.setLocalDescription(await connection.createOffer())
        peer = self.peer()
        answer = await peer.answer(edit(connection.localDescription.sdp), receive=self.ingest)
        await connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        return connection, peer

    async def watch(
        self,
        *kinds: str,
        codec: str | None = None,
        edit: Callable[[str], str] = lambda sdp: sdp,
    ) -> tuple[RTCPeerConnection, Peer, dict[str, MediaStreamTrack]]:
        """A stock peer that watches the session."""
        connection = self.stock_peer()
        for kind in kinds:
            transceiver = connection.addTransceiver(kind, direction="recvonly")
            if kind == "video" and codec is not None:
                capabilities = RTCRtpSender.getCapabilities("video").codecs
                transceiver.setCodecPreferences([c for c in capabilities if c.mimeType == codec])
        await connection.setLocalDescription(await connection.createOffer())
        peer = self.peer()
        answer = await peer.answer(edit(connection.localDescription.sdp), send=self.session)
        tracks: dict[str, MediaStreamTrack] = {}

        @connection.on("track")
        def on_track(track: MediaStreamTrack) -> None:
            tracks[track.kind] = track

        await connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        return connection, peer, tracks

    async def close(self) -> None:
        for peer in self.peers:
            await peer.close("the test is over")
        for connection in self.stock:
            await close_stock(connection)


async def close_stock(connection: RTCPeerConnection) -> None:
    """Closed a moment after it was connected, stock aioice begins to ask for consent, for ever."""
    await connection.close()
    await asyncio.sleep(0.05)
    for transceiver in connection.getTransceivers():
        asking = transceiver.receiver.transport.transport._connection._query_consent_task
        if asking is not None:
            asking.cancel()


@contextlib.asynccontextmanager
async def stage(
    processor: FrameProcessor | None = None, settings: SessionSettings | None = None, *, grace: float = 30.0
) -> AsyncIterator[Stage]:
    """A running session between an `Ingest` and its sinks."""
    ingest = Ingest(grace=grace)
    session = Session("media", ingest, processor or FrameProcessor(), Quiet(), settings or SessionSettings())
    running = asyncio.create_task(session.run())
    built = Stage(ingest, session)
    try:
        yield built
    finally:
        await built.close()
        session.stop("the test is over")
        await running


async def until(condition: Callable[[], object], what: str, limit: float = GUARD) -> None:
    """Wait for ``condition``."""
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not happen within {limit:.0f} s")
        await asyncio.sleep(0.01)


async def within(work: Awaitable[Any], limit: float = GUARD) -> Any:
    return await asyncio.wait_for(work, limit)


def sections(sdp: str) -> Iterator[str]:
    """The media sections of a description."""
    _, *texts = sdp.split("\r\nm=")
    for text in texts:
        yield f"m={text}"

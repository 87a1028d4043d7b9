"""aiortc's peer connection with senders and receivers of encoded media in place of its own.

What aiortc 1.16 does otherwise, and is changed here, for our connections alone (nothing is patched globally;
tests/stream/webrtc/test_media_adapter.py shows each beside the stock behaviour):

- it decodes what comes in, in a thread for each track, and queues frames without a bound: `PacketReceiver`
- a frame is complete when the next one begins, sound four packets later: `PacketReceiver`
- it tells a track of encoded packets neither of key picture requests nor of the bitrate: `PacketSender`
- a sender keeps 128 packets for retransmission, fewer than one key picture may have: `PacketSender`
- FIR (RFC 5104, 4.3.1) names its target in its body, where the router does not look: `FeedbackRouter`
- a malformed extension, report or empty datagram raises in the task that reads the connection, which then
  closes: `MediaDtlsTransport`
- SCTP holds whatever a client sends, within no window: `BoundedSctp`
- `close` may wait for ever for a peer that is gone: `MediaConnection.close`
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import Callable
from typing import Any

from aiortc import RTCRtpTransceiver, RTCSessionDescription
from aiortc.mediastreams import MediaStreamTrack
from aiortc.rtcdtlstransport import RTCDtlsTransport, RtpReceiver, RtpRouter, RtpSender
from aiortc.rtcpeerconnection import RTCPeerConnection
from aiortc.rtcsctptransport import RTCSctpTransport
from aiortc.rtp import RTCP_PSFB_FIR, AnyRtcpPacket, RtcpPacket, RtcpPsfbPacket, RtpPacket

from stream.errors import NotInstalled
from stream.webrtc.adapter.connection import IceConnection
from stream.webrtc.adapter.data import BoundedSctp
from stream.webrtc.adapter.ice import PeerConnection
from stream.webrtc.adapter.receiver import PacketReceiver
from stream.webrtc.adapter.sender import PacketSender
from stream.webrtc.ice import IceSettings
from stream.webrtc.negotiation import Negotiated

log = logging.getLogger(__name__)

CLOSE = 0.8
"""Seconds in which aiortc must have closed a connection."""
CLOSE_ICE = 0.5
"""Seconds more for its sockets, which take those of `generation.GOODBYE` at most."""
_EXPECTED: tuple[tuple[type, tuple[str, ...]], ...] = (
    (
        RTCPeerConnection,
        (
            "_RTCPeerConnection__createTransceiver",
            "_RTCPeerConnection__createDtlsTransport",
            "_RTCPeerConnection__createSctpTransport",
        ),
    ),
    (
        RTCDtlsTransport,
        (
            "_handle_rtp_data",
            "_handle_rtcp_data",
            "_send_rtp",
            "_register_rtp_sender",
            "_register_rtp_receiver",
        ),
    ),
    (
        RTCSctpTransport,
        ("getCapabilities", "_receive_data_chunk", "_receive_forward_tsn_chunk", "_data_channel_receive"),
    ),
    (RtpRouter, ("route_rtp", "route_rtcp", "register_sender", "unregister_sender")),
)


def check_shape(expected: tuple[tuple[type, tuple[str, ...]], ...] = _EXPECTED) -> None:
    """Raise `NotInstalled` where aiortc lacks what is changed here: a change that does not take is worse."""
    for owner, names in expected:
        for name in names:
            if not callable(getattr(owner, name, None)):
                raise NotInstalled(
                    f"aiortc's {owner.__name__} has no {name}: this version is not one that is known (1.16)"
                )


class FeedbackRouter(RtpRouter):
    """Routes FIR by the sources that its entries name."""

    def route_rtcp(self, packet: AnyRtcpPacket) -> set[RtpReceiver | RtpSender]:
        recipients = super().route_rtcp(packet)
        if isinstance(packet, RtcpPsfbPacket) and packet.fmt == RTCP_PSFB_FIR:
            for position in range(0, len(packet.fci) - 7, 8):
                sender = self.senders.get(int.from_bytes(packet.fci[position : position + 4], "big"))
                if sender is not None:
                    recipients.add(sender)
        return recipients


class MediaDtlsTransport(RTCDtlsTransport):
    """Counts what cannot be read (``malformed``) instead of ending the connection over it."""

    malformed: int
    heard_at: float
    """When RTP or RTCP last came (monotonic, s)."""

    @classmethod
    def adopt(cls, transport: RTCDtlsTransport) -> MediaDtlsTransport:
        """Make aiortc's own object one of this class: it is created where no class can be named."""
        assert type(transport) is RTCDtlsTransport
        transport.__class__ = cls
        assert isinstance(transport, cls)
        transport.malformed, transport.heard_at = 0, time.monotonic()
        transport._rtp_router = FeedbackRouter()
        receive = transport.transport._recv

        async def receive_something() -> bytes:
            # Anybody can send an empty datagram to the port, and aiortc looks at its first byte.
            while not (data := await receive()):
                transport.malformed += 1
            return data

        transport.transport._recv = receive_something
        return transport

    def _heard(self) -> None:
        """What comes here has passed SRTP."""
        self.heard_at = time.monotonic()
        connection: object = self.transport._connection
        if isinstance(connection, IceConnection):
            connection.authenticated += 1

    async def _handle_rtp_data(self, data: bytes, arrival_time_ms: int) -> None:
        self._heard()
        try:
            packet = RtpPacket.parse(data, self._rtp_header_extensions_map)
        except (ValueError, struct.error, IndexError):
            self.malformed += 1
            return
        receiver = self._rtp_router.route_rtp(packet)
        if isinstance(receiver, PacketReceiver):
            receiver.take(packet, arrival_time_ms)

    async def _handle_rtcp_data(self, data: bytes) -> None:
        self._heard()
        try:
            packets = RtcpPacket.parse(data)
            routed = [(packet, self._rtp_router.route_rtcp(packet)) for packet in packets]
        except (ValueError, struct.error, IndexError):
            self.malformed += 1
            return
        for packet, recipients in routed:
            for recipient in recipients:
                try:
                    await recipient._handle_rtcp_packet(packet)
                except (ValueError, struct.error, IndexError):
                    self.malformed += 1


class MediaConnection(PeerConnection):
    """A connection that answers one offer. Raises `NotInstalled` at an aiortc that is not known."""

    def __init__(self, settings: IceSettings) -> None:
        check_shape()
        super().__init__(settings)
        self._close_task: asyncio.Task[None] | None = None

    async def apply(self, negotiated: Negotiated, start_bitrate: int, ready: Callable[[], None]) -> str:
        """Take the reduced offer, gather, and return aiortc's answer to it with the formats that were chosen.

        ``start_bitrate``: with which a browser may begin, in bits a second. ``ready`` is called when the
        senders and receivers are there, before anything connects in the background.
        """
        await self.setRemoteDescription(RTCSessionDescription(negotiated.offer, "offer"))
        by_mid = {section.mid: section for section in negotiated.sections}
        for transceiver in self.getTransceivers():
            section = by_mid[str(transceiver.mid)]
            assert section.direction is not None
            transceiver.direction = section.direction
            transceiver._codecs = section.codecs(start_bitrate)
            transceiver._headerExtensions = section.extensions
        ready()
        await self.setLocalDescription(await self.createAnswer())
        return self.localDescription.sdp

    def transceiver(self, mid: str) -> RTCRtpTransceiver:
        return next(t for t in self.getTransceivers() if t.mid == mid)

    def sender(self, mid: str) -> PacketSender:
        sender: Any = self.transceiver(mid).sender
        assert isinstance(sender, PacketSender)
        return sender

    def receiver(self, mid: str) -> PacketReceiver:
        receiver: Any = self.transceiver(mid).receiver
        assert isinstance(receiver, PacketReceiver)
        return receiver

    @property
    def dtls(self) -> MediaDtlsTransport:
        """The transport that carries everything of a bundle."""
        transceivers = self.getTransceivers()
        carrier = transceivers[0].receiver if transceivers else self.sctp
        assert carrier is not None
        assert isinstance(carrier.transport, MediaDtlsTransport)
        return carrier.transport

    async def close(self) -> None:
        """Close, in `CLOSE` and `CLOSE_ICE` seconds, whatever becomes of the caller; safe to call twice.

        aiortc calls it too, when the other side has closed.
        """
        if self._close_task is None:
            self._close_task = asyncio.create_task(self._close_all())
        await asyncio.shield(self._close_task)

    async def _close_all(self) -> None:
        try:
            async with asyncio.timeout(CLOSE):
                await super().close()
        except TimeoutError:
            log.warning("a peer connection did not close within %g s and was given up", CLOSE)
        finally:
            await self._close_ice()

    async def _close_ice(self) -> None:
        """What must not stay open, even when closing failed: the sockets."""
        carriers = [transceiver.receiver for transceiver in self.getTransceivers()]
        transports = {c.transport.transport for c in (*carriers, self.sctp) if c is not None}
        try:
            async with asyncio.timeout(CLOSE_ICE):
                await asyncio.gather(*(transport._connection.close() for transport in transports))
        except TimeoutError:
            log.error("the sockets of a peer connection are not closed yet")

    # -- in place of aiortc's own ----------------------------------------------------------------------

    def _RTCPeerConnection__createDtlsTransport(self) -> RTCDtlsTransport:  # noqa: N802  aiortc's name
        return MediaDtlsTransport.adopt(super()._RTCPeerConnection__createDtlsTransport())

    def _RTCPeerConnection__createSctpTransport(self) -> None:  # noqa: N802  aiortc's name
        super()._RTCPeerConnection__createSctpTransport()  # type: ignore[misc]
        assert self.sctp is not None
        BoundedSctp.adopt(self.sctp)

    def _RTCPeerConnection__createTransceiver(  # noqa: N802  aiortc's name
        self, direction: str, kind: str, sender_track: MediaStreamTrack | None = None
    ) -> RTCRtpTransceiver:
        create = super()._RTCPeerConnection__createTransceiver  # type: ignore[misc]
        transceiver: Any = create(direction, kind, sender_track)
        sender = PacketSender(kind, transceiver.sender.transport)
        sender._stream_id = transceiver.sender._stream_id
        receiver = PacketReceiver(kind, transceiver.receiver.transport)
        receiver._set_rtcp_ssrc(sender._ssrc)
        receiver.name = self._RTCPeerConnection__cname  # type: ignore[attr-defined]
        transceiver._RTCRtpTransceiver__sender = sender
        transceiver._RTCRtpTransceiver__receiver = receiver
        found: RTCRtpTransceiver = transceiver
        return found

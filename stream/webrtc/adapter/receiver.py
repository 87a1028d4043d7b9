"""One incoming RTP stream, put together to access units, in place of aiortc's `RTCRtpReceiver`."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from aiortc import clock
from aiortc.codecs import is_rtx
from aiortc.rate import BandwidthUsage, RemoteBitrateEstimator
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcrtpparameters import RTCRtpCodecParameters, RTCRtpReceiveParameters
from aiortc.rtcrtpreceiver import StreamStatistics
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_PLI,
    RTCP_RTPFB_NACK,
    AnyRtcpPacket,
    RtcpByePacket,
    RtcpPsfbPacket,
    RtcpReceiverInfo,
    RtcpRrPacket,
    RtcpRtpfbPacket,
    RtcpSrPacket,
    RtpPacket,
    pack_remb_fci,
)
from aiortc.stats import RTCStatsReport

from stream.webrtc.adapter.sender import description
from stream.webrtc.assembly import Assembler, Counts, Packet, Unit
from stream.webrtc.bitrate import ReceiveLimit

log = logging.getLogger(__name__)

PATIENCE = 200_000_000
"""ns for which a missing packet of a picture is waited for when it can be sent again."""
REORDER = 40_000_000
"""ns for which one is waited for that cannot: it may only come late."""
KEY_INTERVAL = 0.3
"""Seconds between two requests for a key picture."""
REPORT = 1.0
SILENT = 1.0
"""Seconds without a packet after which another source may take a stream's place."""


@dataclass(slots=True)
class Feedback:
    """What was sent back."""

    plis: int = 0
    nacks: int = 0
    foreign: int = 0
    """Packets of sources or formats that were not agreed on."""
    estimate: int = 0


class PacketReceiver:
    """Packets in, `Unit`s out. Belongs to the loop.

    ``on_unit`` gets units, ``on_report`` a sender report's NTP time (64 bits) and RTP timestamp,
    ``on_source`` is called when another source takes the stream's place.
    """

    def __init__(self, kind: str, transport: RTCDtlsTransport) -> None:
        self.kind = kind
        self.transport = transport
        self.feedback = Feedback()
        self.codec: Literal["h264", "vp8", "opus"] | None = None
        self.on_unit: Callable[[Unit], None] | None = None
        self.on_report: Callable[[int, int], None] | None = None
        self.on_source: Callable[[], None] | None = None
        self.on_started: Callable[[], None] | None = None
        self.limit: ReceiveLimit | None = None
        self.name = ""
        """The CNAME in our reports: the one that the connection's own sources have."""
        # aiortc puts a track here, which nobody reads and nothing is put into.
        self._track: Any = None
        self._enabled = True
        self._rtcp_ssrc: int | None = None
        self._codecs: dict[int, RTCRtpCodecParameters] = {}
        self._assembler: Assembler | None = None
        self._source: int | None = None
        self._heard_at = 0.0
        self._statistics: StreamStatistics | None = None
        self._estimator = RemoteBitrateEstimator()
        self._sources: list[int] = []
        self._sender_report: tuple[int, float] | None = None
        self._key_at = float("-inf")
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self._sends: set[asyncio.Task[None]] = set()
        self._round_trip: int | None = None
        self._nack = self._pli = self._remb = False
        self._before = Counts()

    @property
    def track(self) -> Any:
        return self._track

    @property
    def counts(self) -> Counts:
        return self._assembler.counts if self._assembler is not None else self._before

    @property
    def arriving(self) -> int:
        """Bits a second that arrive, by the last second."""
        return self._estimator.incoming_bitrate.rate(_milliseconds()) or 0

    def request_key(self) -> None:
        """Ask for a key picture (PLI), at most once in `KEY_INTERVAL`."""
        now = time.monotonic()
        if not self._pli or self._source is None or now - self._key_at < KEY_INTERVAL:
            return
        self._key_at = now
        self.feedback.plis += 1
        self._send(RtcpPsfbPacket(fmt=RTCP_PSFB_PLI, ssrc=self._rtcp_ssrc or 0, media_ssrc=self._source))

    # -- for aiortc, with its names --------------------------------------------------------------------

    def setTransport(self, transport: RTCDtlsTransport) -> None:  # noqa: N802
        self.transport = transport

    def _set_rtcp_ssrc(self, ssrc: int) -> None:
        self._rtcp_ssrc = ssrc

    async def getStats(self) -> RTCStatsReport:  # noqa: N802
        return RTCStatsReport()

    async def receive(self, parameters: RTCRtpReceiveParameters) -> None:
        """The connection stands. Only the format that was agreed on is taken."""
        # aiortc begins even when it was closed while its DTLS handshake ended.
        if self._task is not None or self._stopped:
            return
        self._codecs = {
            codec.payloadType: codec for codec in parameters.codecs if codec.payloadType is not None
        }
        media = parameters.codecs[0]
        name = media.name.lower()
        assert name in ("h264", "vp8", "opus"), name
        self.codec = name  # type: ignore[assignment]
        feedback = {(f.type, f.parameter) for f in media.rtcpFeedback}
        self._nack, self._pli = ("nack", None) in feedback, ("nack", "pli") in feedback
        self._remb = ("goog-remb", None) in feedback
        self._begin()
        self.transport._register_rtp_receiver(self, parameters)
        self._task = asyncio.create_task(self._run_reports(), name=f"rtcp of {self.kind} in")
        if self.on_started is not None:
            self.on_started()

    async def stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            self.transport._unregister_rtp_receiver(self)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._sends:
            await asyncio.gather(*self._sends, return_exceptions=True)
        if self._assembler is not None:
            self._before, self._assembler = self._assembler.counts, None
        self.on_unit = self.on_report = self.on_source = self.on_started = None

    def _handle_disconnect(self) -> None:
        """The connection has ended; whoever owns it is told by its state."""

    async def _handle_rtcp_packet(self, packet: AnyRtcpPacket) -> None:
        if isinstance(packet, RtcpSrPacket) and packet.ssrc == self._source:
            info = packet.sender_info
            self._sender_report = (info.ntp_timestamp >> 16 & 0xFFFF_FFFF, time.monotonic())
            if self.on_report is not None:
                self.on_report(info.ntp_timestamp, info.rtp_timestamp)
        elif isinstance(packet, RtcpByePacket):
            log.debug("the %s source said good-bye", self.kind)

    async def _handle_rtp_packet(self, packet: RtpPacket, arrival_time_ms: int) -> None:
        self.take(packet, arrival_time_ms)

    # -- packets ---------------------------------------------------------------------------------------

    def take(self, packet: RtpPacket, arrived: int) -> None:
        """A packet that came at ``arrived`` (ms of aiortc's clock)."""
        codec = self._codecs.get(packet.payload_type)
        assembler = self._assembler
        if not self._enabled or codec is None or assembler is None:
            self.feedback.foreign += 1
            return
        if self.kind == "video":
            self._estimate(packet, arrived)
        now = time.monotonic_ns()
        if is_rtx(codec):
            self._take_again(packet, assembler, now)
            return
        if packet.ssrc != self._source and not self._adopt(packet.ssrc, now):
            self.feedback.foreign += 1
            return
        assembler = self._assembler
        assert assembler is not None
        assert self._statistics is not None
        self._heard_at = now / 1e9
        self._statistics.add(packet)
        self._assemble(
            assembler,
            Packet(packet.sequence_number, packet.timestamp, bool(packet.marker), packet.payload, now),
        )

    def _take_again(self, packet: RtpPacket, assembler: Assembler, now: int) -> None:
        """A retransmission (RFC 4588): the original's number stands before its payload."""
        if len(packet.payload) <= 2 or self._source is None:
            # Padding by which a sender probes for bandwidth.
            return
        sequence = int.from_bytes(packet.payload[:2], "big")
        self._assemble(
            assembler, Packet(sequence, packet.timestamp, bool(packet.marker), packet.payload[2:], now)
        )

    def _assemble(self, assembler: Assembler, packet: Packet) -> None:
        asked = assembler.asked_at(packet.sequence)
        if asked is not None:
            trip = packet.received - asked
            self._round_trip = trip if self._round_trip is None else (7 * self._round_trip + trip) // 8
        units = assembler.add(packet)
        if assembler.waiting_since is not None:
            units += self._attend(assembler, packet.received)
        self._give(units)

    def _attend(self, assembler: Assembler, now: int) -> list[Unit]:
        """Ask for what is missing, give up what has been for too long, and come back in time."""
        if self._nack and (wanted := assembler.wanted(now, self._round_trip)):
            self.feedback.nacks += 1
            assert self._source is not None
            self._send(
                RtcpRtpfbPacket(
                    fmt=RTCP_RTPFB_NACK,
                    ssrc=self._rtcp_ssrc or 0,
                    media_ssrc=self._source,
                    lost=wanted,
                )
            )
        lost = assembler.counts.lost
        units = assembler.expire(now)
        if assembler.counts.lost != lost and self.kind == "video":
            self.request_key()
        if assembler.waiting_since is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(0.015, self._tick)
        return units

    def _tick(self) -> None:
        self._timer = None
        if self._assembler is not None:
            self._give(self._attend(self._assembler, time.monotonic_ns()))

    def _give(self, units: list[Unit]) -> None:
        for unit in units:
            if unit.lost and not unit.key and self.kind == "video":
                self.request_key()
            if self.on_unit is not None:
                self.on_unit(unit)

    def _adopt(self, source: int, now: int) -> bool:
        """Whether packets of a source that was not heard before are this stream's."""
        if self._source is not None and now / 1e9 - self._heard_at < SILENT:
            return False
        replaces, self._source = self._source is not None, source
        self._begin()
        if replaces and self.on_source is not None:
            self.on_source()
        return True

    def _begin(self) -> None:
        assert self.codec is not None
        before = self.counts
        patience = PATIENCE if self._nack else REORDER
        self._assembler = Assembler(self.codec, patience=patience)
        self._assembler.counts = before
        self._statistics = StreamStatistics(48_000 if self.codec == "opus" else 90_000)

    # -- the way back ----------------------------------------------------------------------------------

    def _estimate(self, packet: RtpPacket, arrived: int) -> None:
        """Feed the estimator, and tell the sender how much it may send (REMB)."""
        limit, sent_at = self.limit, packet.extensions.abs_send_time
        if limit is None or not self._remb or sent_at is None or self._rtcp_ssrc is None:
            return
        size = len(packet.payload) + packet.padding_size
        # Only its detector is of use: its rate follows what arrives, and so never leaves a sender's start.
        estimator = self._estimator
        if packet.ssrc not in self._sources:
            self._sources = [*self._sources[-3:], packet.ssrc]
        estimator.last_update_ms = arrived
        estimator.add(
            arrival_time_ms=arrived, abs_send_time=sent_at, payload_size=size, ssrc=self._sources[0]
        )
        now = arrived / 1000
        if estimator.detector.state() == BandwidthUsage.OVERUSING:
            limit.delay(True, estimator.incoming_bitrate.rate(arrived) or 0, now)
        bits = limit.due(now)
        if bits is not None:
            self.feedback.estimate = bits
            fci = pack_remb_fci(bits, self._sources)
            self._send(RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=self._rtcp_ssrc, media_ssrc=0, fci=fci))

    async def _run_reports(self) -> None:
        while True:
            await asyncio.sleep(REPORT * (0.5 + random.random()))
            statistics, source = self._statistics, self._source
            if statistics is None or source is None or statistics.max_seq is None:
                continue
            fraction = statistics.fraction_lost
            if self.limit is not None:
                self.limit.loss(fraction / 256, self.arriving, _milliseconds() / 1000)
            mark, delay = 0, 0
            if self._sender_report is not None:
                mark, came = self._sender_report
                delay = min(int((time.monotonic() - came) * 65536), 0xFFFF_FFFF)
            report = RtcpReceiverInfo(
                ssrc=source,
                fraction_lost=fraction,
                packets_lost=statistics.packets_lost,
                highest_sequence=(statistics.cycles + statistics.max_seq) & 0xFFFF_FFFF,
                jitter=statistics.jitter & 0xFFFF_FFFF,
                lsr=mark,
                dlsr=delay,
            )
            own = self._rtcp_ssrc or 0
            await self._send_now(RtcpRrPacket(ssrc=own, reports=[report]), description(own, self.name))

    def _send(self, packet: AnyRtcpPacket) -> None:
        """From where nothing can be awaited. At most one such task lives, because nothing in it waits."""
        task = asyncio.ensure_future(self._send_now(packet))
        self._sends.add(task)
        task.add_done_callback(self._sends.discard)

    async def _send_now(self, *packets: AnyRtcpPacket) -> None:
        try:
            await self.transport._send_rtp(b"".join(map(bytes, packets)))
        except ConnectionError:
            log.debug("feedback found no connection")


def _milliseconds() -> int:
    """As aiortc's clock counts."""
    return clock.current_ms()

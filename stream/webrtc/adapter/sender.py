"""One outgoing RTP stream (RFC 3550) of payloads that are ready, in place of aiortc's `RTCRtpSender`."""

from __future__ import annotations

import asyncio
import logging
import random
import struct
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aiortc.codecs import is_rtx
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcrtpparameters import RTCRtpSendParameters
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_FIR,
    RTCP_PSFB_PLI,
    RTCP_RTPFB_NACK,
    AnyRtcpPacket,
    RtcpByePacket,
    RtcpPsfbPacket,
    RtcpRrPacket,
    RtcpRtpfbPacket,
    RtcpSdesPacket,
    RtcpSenderInfo,
    RtcpSourceInfo,
    RtcpSrPacket,
    unpack_remb_fci,
)
from aiortc.stats import RTCStatsReport

from stream.clock import TICKS

log = logging.getLogger(__name__)

HISTORY = 1024
"""Packets that are kept for retransmission; a power of two."""
AGAIN = 0.01
"""Seconds within which one packet is not sent again, however often it is asked for."""
REPORT = 1.0
LARGE = 30
"""Packets of a picture that may leave at once; many more are a burst that small buffers on the way drop."""
SPREAD, GROUPS = 0.008, 8
"""Seconds, fewer than a frame lasts, over which a larger picture is spread, and in how many groups."""
_WALL = time.time() - time.monotonic()
"""Unix time of the monotonic clock's nought, as it was once: a clock that is set moves no packet."""
NTP_EPOCH = 2_208_988_800
"""Seconds from 1900 to 1970."""
_MID = "urn:ietf:params:rtp-hdrext:sdes:mid"
_SEND_TIME = "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"
_HEADER = struct.Struct("!BBHLL")


def now_unix() -> float:
    """Unix time in seconds that only runs forward."""
    return time.monotonic() + _WALL


class SendClock:
    """The wall clock of the sender reports of one peer: both its tracks are told by the same one.

    It runs with the timestamps of what is sent and not with the moments of sending, so a browser lays
    sound and picture together by their own times.
    """

    def __init__(self) -> None:
        self._base: float | None = None

    def at(self, pts: float) -> float:
        """Unix time that stands for ``pts`` (1/90000 s); the first one asked for stands for now."""
        if self._base is None:
            self._base = now_unix() - pts / TICKS
        return self._base + pts / TICKS


@dataclass(slots=True)
class SendCounts:
    """What was sent, and what the other side said."""

    packets: int = 0
    bytes: int = 0
    units: int = 0
    retransmitted: int = 0
    not_kept: int = 0
    nacks: int = 0
    plis: int = 0
    firs: int = 0
    lost: int = 0
    fraction_lost: float = 0.0
    round_trip: float | None = None
    jitter: float = 0.0


@dataclass(slots=True)
class _Kept:
    sequence: int
    marker: int
    timestamp: int
    payload: bytes
    sent_again: float = 0.0


class PacketSender:
    """Packets out, feedback in. Belongs to the loop.

    ``on_key_wanted`` is called for PLI and FIR, ``on_estimate`` with REMB's bits a second, ``on_loss`` with
    the share of packets lost by each receiver report.
    """

    def __init__(self, kind: str, transport: RTCDtlsTransport) -> None:
        self.kind = kind
        self.transport = transport
        self.clock = SendClock()
        self.counts = SendCounts()
        self.on_key_wanted: Callable[[], None] | None = None
        self.on_estimate: Callable[[int], None] | None = None
        self.on_loss: Callable[[float], None] | None = None
        self.on_started: Callable[[], None] | None = None
        self.track = None
        self._ssrc = random.getrandbits(32)
        self._rtx_ssrc = random.getrandbits(32)
        self._stream_id = self._track_id = str(uuid.uuid4())
        self._enabled = True
        self._rate = TICKS if kind == "video" else 48_000
        # libsrtp tolerates no wrap among the first packets.
        self._sequence = random.getrandbits(15)
        self._rtx_sequence = random.getrandbits(15)
        self._offset = random.getrandbits(32)
        self._kept: list[_Kept | None] = [None] * HISTORY
        self._payload_type = 0
        self._rtx_type: int | None = None
        self._mid = b""
        self._send_time_id = 0
        self._cname = ""
        # One access unit at a time: packets of two would be none to a receiver.
        self._sending = asyncio.Lock()
        self._last_pts: int | None = None
        self._last_sent = 0.0
        self._reports: deque[tuple[int, float]] = deque(maxlen=8)
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self._fir_numbers: dict[int, int] = {}

    @property
    def started(self) -> bool:
        """Whether the connection stands and packets go out."""
        return self._task is not None and not self._task.done()

    def timestamp(self, pts: int) -> int:
        """The RTP timestamp of what is shown or heard at ``pts`` (1/90000 s)."""
        return (pts * self._rate // TICKS + self._offset) & 0xFFFF_FFFF

    async def transmit(
        self, payloads: Sequence[bytes], pts: int, hurry: Callable[[], bool] = lambda: False
    ) -> None:
        """Send the payloads of one access unit, the last with the marker bit; more than `LARGE` are spread
        over `SPREAD` seconds, until ``hurry`` says that the next picture is there. Does nothing before the
        connection stands; raises `ConnectionError` when it no longer does."""
        async with self._sending:
            if not self.started or not payloads:
                return
            began = now_unix()
            timestamp = self.timestamp(pts)
            size = len(payloads) if len(payloads) <= LARGE else -(-len(payloads) // GROUPS)
            for first in range(0, len(payloads), size):
                if first and not hurry():
                    await self._pause(began + first / len(payloads) * SPREAD)
                ends = first + size >= len(payloads)
                await self._send_group(payloads[first : first + size], timestamp, ends)
            self.counts.units += 1
            is_first = self._last_pts is None
            self._last_pts, self._last_sent = pts, began
        if is_first:
            await self._report()

    async def _pause(self, until: float) -> None:
        if (left := until - now_unix()) > 0:
            await asyncio.sleep(left)
        if not self.started:
            raise ConnectionError("the sender was stopped")

    async def _send_group(self, payloads: Sequence[bytes], timestamp: int, ends: bool) -> None:
        """Send packets that leave together; ``ends``: the last of them is the last of its access unit."""
        extension = self._extension(now_unix())
        last = len(payloads) - 1 if ends else -1
        counts = self.counts
        for index, payload in enumerate(payloads):
            sequence = self._sequence
            self._sequence = (sequence + 1) & 0xFFFF
            # Sound marks the beginning of talk (RFC 3551, 4.1), which Opus without gaps never has.
            marker = 0x80 if index == last and self.kind == "video" else 0
            self._kept[sequence % HISTORY] = _Kept(sequence, marker, timestamp, payload)
            packet = self._packet(self._payload_type, marker, sequence, timestamp, self._ssrc, extension)
            await self.transport._send_rtp(packet + payload)
            counts.packets += 1
            counts.bytes += len(payload)

    def _packet(
        self, payload_type: int, marker: int, sequence: int, timestamp: int, ssrc: int, extension: bytes
    ) -> bytes:
        flags = 0x90 if extension else 0x80
        return _HEADER.pack(flags, marker | payload_type, sequence, timestamp, ssrc) + extension

    def _extension(self, now: float) -> bytes:
        """The header extensions (RFC 8285, one-byte form): mid, and the time of sending in 1/2^18 s."""
        elements = self._mid
        if self._send_time_id:
            moment = int((now + NTP_EPOCH) * (1 << 18)) & 0xFF_FFFF
            elements += bytes((self._send_time_id << 4 | 2,)) + moment.to_bytes(3, "big")
        if not elements:
            return b""
        words = -(-len(elements) // 4)
        return b"\xbe\xde" + words.to_bytes(2, "big") + elements.ljust(words * 4, b"\0")

    # -- for aiortc, with its names --------------------------------------------------------------------

    def setTransport(self, transport: RTCDtlsTransport) -> None:  # noqa: N802
        self.transport = transport

    def replaceTrack(self, track: object) -> None:  # noqa: N802
        """Units come by `transmit`; there is no track."""

    async def getStats(self) -> RTCStatsReport:  # noqa: N802
        return RTCStatsReport()

    async def send(self, parameters: RTCRtpSendParameters) -> None:
        """The connection stands. The first of ``parameters.codecs`` is what was agreed on."""
        # aiortc begins even when it was closed while its DTLS handshake ended.
        if self._task is not None or self._stopped:
            return
        codec = parameters.codecs[0]
        assert codec.payloadType is not None
        self._payload_type = codec.payloadType
        for other in parameters.codecs:
            if is_rtx(other) and other.parameters.get("apt") == codec.payloadType:
                self._rtx_type = other.payloadType
        for extension in parameters.headerExtensions:
            if extension.uri == _MID and 0 < extension.id < 15 and 0 < len(parameters.muxId) <= 16:
                mid = parameters.muxId.encode()
                self._mid = bytes((extension.id << 4 | len(mid) - 1,)) + mid
            elif extension.uri == _SEND_TIME and 0 < extension.id < 15:
                self._send_time_id = extension.id
        self._cname = parameters.rtcp.cname or ""
        self.transport._register_rtp_sender(self, parameters)
        self._task = asyncio.create_task(self._run_reports(), name=f"rtcp of {self.kind} out")
        if self.on_started is not None:
            self.on_started()

    async def stop(self) -> None:
        self._stopped = True
        task = self._task
        if task is None:
            return
        self.transport._unregister_rtp_sender(self)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self._send_rtcp([RtcpByePacket(sources=[self._ssrc])])
        self.on_key_wanted = self.on_estimate = self.on_loss = self.on_started = None
        self._kept = [None] * HISTORY

    async def _handle_rtcp_packet(self, packet: AnyRtcpPacket) -> None:
        if isinstance(packet, (RtcpRrPacket, RtcpSrPacket)):
            self._take_reports(packet)
        elif isinstance(packet, RtcpRtpfbPacket) and packet.fmt == RTCP_RTPFB_NACK:
            self.counts.nacks += 1
            for sequence in packet.lost[:HISTORY]:
                await self._send_again(sequence & 0xFFFF)
        elif isinstance(packet, RtcpPsfbPacket):
            self._take_feedback(packet)

    # -- feedback --------------------------------------------------------------------------------------

    def _take_reports(self, packet: RtcpRrPacket | RtcpSrPacket) -> None:
        for report in packet.reports:
            if report.ssrc != self._ssrc:
                continue
            counts = self.counts
            counts.lost, counts.fraction_lost = report.packets_lost, report.fraction_lost / 256
            counts.jitter = report.jitter / self._rate
            sent = next((at for mark, at in self._reports if mark == report.lsr), None)
            if sent is not None and report.dlsr:
                trip = max(0.0, time.monotonic() - sent - report.dlsr / 65536)
                before = counts.round_trip
                counts.round_trip = trip if before is None else 0.85 * before + 0.15 * trip
            if self.on_loss is not None:
                self.on_loss(counts.fraction_lost)

    def _take_feedback(self, packet: RtcpPsfbPacket) -> None:
        if packet.fmt == RTCP_PSFB_PLI:
            self.counts.plis += 1
            self._want_key()
        elif packet.fmt == RTCP_PSFB_FIR and self._is_new_fir(packet):
            self.counts.firs += 1
            self._want_key()
        elif packet.fmt == RTCP_PSFB_APP and packet.fci[:4] == b"REMB":
            bits, sources = unpack_remb_fci(packet.fci)
            if self._ssrc in sources and self.on_estimate is not None:
                self.on_estimate(bits)

    def _want_key(self) -> None:
        if self.on_key_wanted is not None:
            self.on_key_wanted()

    def _is_new_fir(self, packet: RtcpPsfbPacket) -> bool:
        """A FIR is repeated until the picture comes; its number tells repetitions (RFC 5104, 4.3.1.2)."""
        for position in range(0, len(packet.fci) - 7, 8):
            if int.from_bytes(packet.fci[position : position + 4], "big") != self._ssrc:
                continue
            number = packet.fci[position + 4]
            if self._fir_numbers.get(packet.ssrc) != number:
                self._fir_numbers = {packet.ssrc: number}
                return True
        return False

    async def _send_again(self, sequence: int) -> None:
        kept = self._kept[sequence % HISTORY]
        now = time.monotonic()
        if kept is None or kept.sequence != sequence:
            self.counts.not_kept += 1
            return
        if now - kept.sent_again < AGAIN or not self.started:
            return
        kept.sent_again = now
        extension = self._extension(now_unix())
        if self._rtx_type is None:
            header = self._packet(
                self._payload_type, kept.marker, sequence, kept.timestamp, self._ssrc, extension
            )
            data = header + kept.payload
        else:
            header = self._packet(
                self._rtx_type, kept.marker, self._rtx_sequence, kept.timestamp, self._rtx_ssrc, extension
            )
            self._rtx_sequence = (self._rtx_sequence + 1) & 0xFFFF
            data = header + sequence.to_bytes(2, "big") + kept.payload
        self.counts.retransmitted += 1
        try:
            await self.transport._send_rtp(data)
        except ConnectionError:
            log.debug("a retransmission found no connection")

    # -- reports ---------------------------------------------------------------------------------------

    async def _run_reports(self) -> None:
        while True:
            # Varied, so that the reports of many do not come together (RFC 3550, 6.2).
            await asyncio.sleep(REPORT * (0.5 + random.random()))
            await self._report()

    async def _report(self) -> None:
        if self._last_pts is None:
            return
        now = now_unix()
        pts = self._last_pts + max(0.0, now - self._last_sent) * TICKS
        wall = self.clock.at(pts) + NTP_EPOCH
        seconds = int(wall)
        ntp = seconds << 32 | int((wall - seconds) * (1 << 32))
        self._reports.append((ntp >> 16 & 0xFFFF_FFFF, time.monotonic()))
        counts = self.counts
        packets: list[AnyRtcpPacket] = [
            RtcpSrPacket(
                ssrc=self._ssrc,
                sender_info=RtcpSenderInfo(
                    ntp_timestamp=ntp,
                    rtp_timestamp=self.timestamp(int(pts)),
                    packet_count=counts.packets & 0xFFFF_FFFF,
                    octet_count=counts.bytes & 0xFFFF_FFFF,
                ),
            ),
            description(self._ssrc, self._cname),
        ]
        await self._send_rtcp(packets)

    async def _send_rtcp(self, packets: Sequence[AnyRtcpPacket]) -> None:
        try:
            await self.transport._send_rtp(b"".join(bytes(packet) for packet in packets))
        except ConnectionError:
            log.debug("a report found no connection")


def description(source: int, name: str) -> RtcpSdesPacket:
    """The CNAME of a source, which each compound RTCP packet has (RFC 3550, 6.1)."""
    return RtcpSdesPacket(chunks=[RtcpSourceInfo(ssrc=source, items=[(1, name.encode()[:255])])])

"""What is changed of aiortc, each beside what it does by itself. Where a stock behaviour is no longer found,
a new aiortc may not need the change."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from typing import Any

import pytest
from aiortc import RTCPeerConnection, RTCRtpReceiver, RTCRtpSender
from aiortc.jitterbuffer import JitterBuffer
from aiortc.rate import RemoteBitrateEstimator
from aiortc.rtcdtlstransport import RTCDtlsTransport, RtpRouter
from aiortc.rtcrtpparameters import (
    RTCRtcpFeedback,
    RTCRtpCodecParameters,
    RTCRtpHeaderExtensionParameters,
    RTCRtpReceiveParameters,
    RTCRtpSendParameters,
)
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_FIR,
    RTCP_PSFB_PLI,
    RTCP_RTPFB_NACK,
    RtcpPacket,
    RtcpPsfbPacket,
    RtcpRtpfbPacket,
    RtcpSrPacket,
    RtpPacket,
    is_rtcp,
    pack_remb_fci,
    unpack_remb_fci,
)

from stream.errors import NotInstalled
from stream.webrtc.adapter import media
from stream.webrtc.adapter.media import FeedbackRouter, MediaConnection, check_shape
from stream.webrtc.adapter.receiver import PacketReceiver
from stream.webrtc.adapter.sender import HISTORY, PacketSender
from stream.webrtc.assembly import Unit
from stream.webrtc.bitrate import ReceiveLimit, ReceiveSettings
from stream.webrtc.payload import depacketise_h264, packetise_h264
from tests.stream.webrtc.media_peers import CodedTrack, stage, until
from tests.stream.webrtc.test_media_end_to_end import picture_track, sound_track

SEND_TIME = "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"
MID = "urn:ietf:params:rtp-hdrext:sdes:mid"
PICTURE = b"\0\0\0\1\x65" + bytes(range(1, 200)) * 20


class Wire:
    """In place of a DTLS transport: what is sent, in the clear."""

    state = "connected"

    def __init__(self) -> None:
        self.rtp: list[RtpPacket] = []
        self.rtcp: list[Any] = []

    def _register_rtp_sender(self, sender: object, parameters: object) -> None: ...
    def _unregister_rtp_sender(self, sender: object) -> None: ...
    def _register_rtp_receiver(self, receiver: object, parameters: object) -> None: ...
    def _unregister_rtp_receiver(self, receiver: object) -> None: ...

    async def _send_rtp(self, data: bytes) -> None:
        if is_rtcp(data):
            self.rtcp += RtcpPacket.parse(data)
        else:
            self.rtp.append(RtpPacket.parse(data))


def codec(name: str = "H264", payload_type: int = 100, **parameters: Any) -> RTCRtpCodecParameters:
    feedback = [RTCRtcpFeedback("nack"), RTCRtcpFeedback("nack", "pli"), RTCRtcpFeedback("goog-remb")]
    return RTCRtpCodecParameters(
        mimeType=f"video/{name}",
        clockRate=90_000,
        payloadType=payload_type,
        rtcpFeedback=feedback,
        parameters=parameters,
    )


RTX = codec("rtx", 101, apt=100)
EXTENSIONS = [RTCRtpHeaderExtensionParameters(id=3, uri=SEND_TIME), RTCRtpHeaderExtensionParameters(1, MID)]


async def started_sender(*codecs: RTCRtpCodecParameters) -> tuple[PacketSender, Wire]:
    wire: Any = Wire()
    sender = PacketSender("video", wire)
    await sender.send(
        RTCRtpSendParameters(codecs=list(codecs or (codec(),)), headerExtensions=EXTENSIONS, muxId="0")
    )
    return sender, wire


async def started_receiver(*codecs: RTCRtpCodecParameters) -> tuple[PacketReceiver, Wire, list[Unit]]:
    wire: Any = Wire()
    receiver = PacketReceiver("video", wire)
    receiver._set_rtcp_ssrc(1)
    units: list[Unit] = []
    receiver.on_unit = units.append
    await receiver.receive(RTCRtpReceiveParameters(codecs=list(codecs or (codec(),)), muxId="0"))
    return receiver, wire, units


def packets_of(data: bytes, first: int, timestamp: int, source: int = 7) -> list[RtpPacket]:
    payloads = packetise_h264(data)
    return [
        RtpPacket(100, int(index == len(payloads) - 1), (first + index) & 0xFFFF, timestamp, source, payload)
        for index, payload in enumerate(payloads)
    ]


# -- receiving -----------------------------------------------------------------------------------------


async def test_no_decoder_thread_is_started_for_what_comes_in() -> None:
    def decoders() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.endswith("-decoder")]

    wire: Any = Wire()
    stock = RTCRtpReceiver("video", wire)
    stock._track = type("Track", (), {"_queue": asyncio.Queue()})()  # type: ignore[assignment]
    await stock.receive(RTCRtpReceiveParameters(codecs=[codec()], muxId="0"))
    assert decoders() == ["video-decoder"]
    await stock.stop()
    async with stage() as built:
        _, peer = await built.publish(picture_track(), sound_track())
        await until(lambda: peer.report()["in"]["video"]["units"] > 3, "pictures")
        assert decoders() == []


async def test_a_picture_is_whole_with_its_marker_and_not_with_the_next_one() -> None:
    stock = JitterBuffer(capacity=512, is_video=True)
    packets = packets_of(PICTURE, 10, 3000)
    for packet in packets:
        packet._data = packet.payload  # type: ignore[attr-defined]
    assert [frame for packet in packets if (frame := stock.add(packet)[1])] == []

    receiver, _, units = await started_receiver()
    for packet in packets_of(PICTURE, 10, 3000):
        receiver.take(packet, 0)
    assert [unit.data for unit in units] == [PICTURE]
    await receiver.stop()


async def test_sound_does_not_wait_for_four_more_packets() -> None:
    stock = JitterBuffer(capacity=16, prefetch=4)
    packets = [RtpPacket(111, 0, index, index * 960, 9, bytes((252, index))) for index in range(5)]
    for packet in packets:
        packet._data = packet.payload  # type: ignore[attr-defined]
    assert [stock.add(packet)[1] is not None for packet in packets] == [False] * 4 + [True]

    wire: Any = Wire()
    receiver = PacketReceiver("audio", wire)
    units: list[Unit] = []
    receiver.on_unit = units.append
    opus = RTCRtpCodecParameters("audio/opus", 48_000, 2, 111)
    await receiver.receive(RTCRtpReceiveParameters(codecs=[opus], muxId="1"))
    for packet in packets:
        receiver.take(packet, 0)
    assert len(units) == 5
    await receiver.stop()


async def test_what_is_missing_is_asked_for_until_it_comes() -> None:
    receiver, wire, units = await started_receiver(codec(), RTX)
    packets = packets_of(PICTURE, 65534, 3000)
    for index, packet in enumerate(packets):
        if index != 2:
            receiver.take(packet, 0)
    await until(lambda: len(wire.rtcp) >= 2, "two requests")
    assert all(p.fmt == RTCP_RTPFB_NACK and p.lost == [packets[2].sequence_number] for p in wire.rtcp)
    again = RtpPacket(
        101, 0, 4000, 3000, 8, packets[2].sequence_number.to_bytes(2, "big") + packets[2].payload
    )
    receiver.take(again, 0)
    assert [unit.data for unit in units] == [PICTURE]
    assert not units[0].lost
    await receiver.stop()


async def test_what_never_comes_is_followed_by_one_request_for_a_key_picture() -> None:
    receiver, wire, units = await started_receiver()
    receiver.take(packets_of(PICTURE, 0, 0)[0], 0)
    later = packets_of(b"\0\0\0\1\x41later", 50, 3000) + packets_of(b"\0\0\0\1\x41last", 51, 6000)
    for packet in later:
        receiver.take(packet, 0)
    await until(lambda: len(units) == 2, "what comes after the loss")
    assert [unit.lost for unit in units] == [True, False]
    plis = [p for p in wire.rtcp if isinstance(p, RtcpPsfbPacket)]
    assert [(p.fmt, p.media_ssrc) for p in plis] == [(RTCP_PSFB_PLI, 7)]
    await receiver.stop()


async def test_packets_of_other_formats_and_sources_are_counted_and_left_out() -> None:
    receiver, _, units = await started_receiver()
    for packet in packets_of(PICTURE, 0, 0):
        receiver.take(packet, 0)
    stranger = packets_of(PICTURE, 900, 3000, source=99)
    for packet in stranger:
        receiver.take(packet, 0)
    receiver.take(RtpPacket(55, 1, 5, 6000, 7, b"\x65x"), 0)
    assert len(units) == 1
    assert receiver.feedback.foreign == len(stranger) + 1
    await receiver.stop()


async def test_the_estimate_begins_where_it_is_set_and_at_once() -> None:
    def arrivals(count: int) -> list[tuple[int, int]]:
        """A sender of 300 kbit/s: one packet of 1200 bytes every 32 ms; moment (ms), abs-send-time."""
        return [(index * 32, int(index * 0.032 * (1 << 18)) & 0xFF_FFFF) for index in range(count)]

    stock = RemoteBitrateEstimator()
    told = [stock.add(ms, sent, 1200, 7) for ms, sent in arrivals(160)]
    first = next(index for index, answer in enumerate(told) if answer is not None)
    assert first * 32 >= 3000
    assert max(answer[0] for answer in told if answer is not None) < 600_000

    receiver, wire, _ = await started_receiver()
    receiver.limit = ReceiveLimit(ReceiveSettings(start=2_500_000, lowest=300_000, highest=8_000_000))
    for index, (ms, sent) in enumerate(arrivals(160)):
        packet = RtpPacket(100, 1, index, index * 3000, 7, b"\x41" * 1200)
        packet.extensions.abs_send_time = sent
        receiver.take(packet, ms)
    await asyncio.sleep(0)
    estimates = [unpack_remb_fci(p.fci)[0] for p in wire.rtcp if getattr(p, "fmt", 0) == RTCP_PSFB_APP]
    assert estimates[0] == pytest.approx(2_500_000, rel=0.01)
    assert estimates[-1] > 3_500_000
    await receiver.stop()


# -- sending -------------------------------------------------------------------------------------------


async def test_key_picture_requests_reach_who_encodes() -> None:
    wire: Any = Wire()
    stock = RTCRtpSender("video", wire)
    pli = RtcpPsfbPacket(fmt=RTCP_PSFB_PLI, ssrc=5, media_ssrc=stock._ssrc)
    await stock._handle_rtcp_packet(pli)
    assert stock._RTCRtpSender__force_keyframe  # type: ignore[attr-defined]
    packed, _ = await stock_packed(stock)
    assert packed, "stock aiortc packs a packet as it is, whatever was asked for"

    sender, _ = await started_sender()
    asked: list[bool] = []
    sender.on_key_wanted = lambda: asked.append(True)
    await sender._handle_rtcp_packet(RtcpPsfbPacket(fmt=RTCP_PSFB_PLI, ssrc=5, media_ssrc=sender._ssrc))
    assert asked == [True]
    await sender.stop()


async def stock_packed(stock: RTCRtpSender) -> tuple[list[bytes], int]:
    track = CodedTrack("video", picture_track(count=2)._packets[1:], 3000)
    stock.replaceTrack(track)
    frame = await stock._next_encoded_frame(codec())
    assert frame is not None
    return frame.payloads, frame.timestamp


def fir(number: int, target: int) -> RtcpPsfbPacket:
    fci = target.to_bytes(4, "big") + bytes((number, 0, 0, 0))
    return RtcpPsfbPacket(fmt=RTCP_PSFB_FIR, ssrc=5, media_ssrc=0, fci=fci)


async def test_fir_is_routed_by_its_entries_and_counted_once_a_number() -> None:
    sender, _ = await started_sender()
    stock, ours = RtpRouter(), FeedbackRouter()
    for router in (stock, ours):
        router.register_sender(sender, sender._ssrc)
    assert stock.route_rtcp(fir(1, sender._ssrc)) == set()
    assert ours.route_rtcp(fir(1, sender._ssrc)) == {sender}
    assert ours.route_rtcp(fir(1, 12345)) == set()
    asked: list[bool] = []
    sender.on_key_wanted = lambda: asked.append(True)
    for number in (1, 1, 1, 2):
        await sender._handle_rtcp_packet(fir(number, sender._ssrc))
    assert len(asked) == 2
    await sender.stop()


async def test_the_estimate_of_a_viewer_is_handed_on() -> None:
    sender, _ = await started_sender()
    told: list[int] = []
    sender.on_estimate = told.append
    for target in (sender._ssrc, 12345):
        fci = pack_remb_fci(1_234_944, [target])
        await sender._handle_rtcp_packet(RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=5, media_ssrc=0, fci=fci))
    assert told == [1_234_944]
    await sender.stop()


@pytest.mark.parametrize("with_rtx", [False, True])
async def test_a_whole_key_picture_can_be_sent_again(with_rtx: bool) -> None:
    sender, wire = await started_sender(*((codec(), RTX) if with_rtx else (codec(),)))
    large = b"\0\0\0\1\x65" + os.urandom(400_000).replace(b"\0", b"\1")
    await sender.transmit(packetise_h264(large), 0)
    sent = wire.rtp[:]
    assert len(sent) > 128, "more than stock aiortc keeps"
    lost = [packet.sequence_number for packet in sent[:200:7]]
    nack = RtcpRtpfbPacket(fmt=RTCP_RTPFB_NACK, ssrc=5, media_ssrc=sender._ssrc, lost=lost)
    await sender._handle_rtcp_packet(nack)
    await sender._handle_rtcp_packet(nack)
    again = wire.rtp[len(sent) :]
    assert len(again) == len(lost), "and once, however often it is asked for in a moment"
    for packet, number in zip(again, lost, strict=True):
        original = next(p for p in sent if p.sequence_number == number)
        if with_rtx:
            assert packet.payload_type == 101
            assert packet.ssrc != original.ssrc
            assert packet.payload == number.to_bytes(2, "big") + original.payload
        else:
            assert (packet.sequence_number, packet.payload) == (number, original.payload)
    await sender.stop()


async def test_what_is_no_longer_kept_is_counted() -> None:
    sender, _ = await started_sender()
    nack = RtcpRtpfbPacket(fmt=RTCP_RTPFB_NACK, ssrc=5, media_ssrc=sender._ssrc, lost=[1, 2, 3])
    await sender._handle_rtcp_packet(nack)
    assert sender.counts.not_kept == 3
    assert HISTORY & (HISTORY - 1) == 0
    await sender.stop()


async def test_packets_carry_marker_timestamp_and_extensions() -> None:
    sender, wire = await started_sender()
    await sender.transmit(packetise_h264(PICTURE), 90_000)
    await sender.transmit(packetise_h264(PICTURE), 93_000)
    first = [p for p in wire.rtp if p.timestamp == sender.timestamp(90_000)]
    assert [p.marker for p in first] == [0] * (len(first) - 1) + [1]
    assert depacketise_h264([p.payload for p in first]) == PICTURE
    assert (wire.rtp[-1].timestamp - wire.rtp[0].timestamp) & 0xFFFF_FFFF == 3000
    numbers = [p.sequence_number for p in wire.rtp]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    await sender.stop()


async def test_reports_of_both_tracks_lay_them_on_one_clock() -> None:
    wire: Any = Wire()
    video, audio = PacketSender("video", wire), PacketSender("audio", wire)
    audio.clock = video.clock
    opus = RTCRtpCodecParameters("audio/opus", 48_000, 2, 111)
    await video.send(RTCRtpSendParameters(codecs=[codec()], muxId="0"))
    await audio.send(RTCRtpSendParameters(codecs=[opus], muxId="1"))
    # The picture of a moment leaves 150 ms after its sound.
    await audio.transmit([b"\xfcsound"], 900_000)
    await asyncio.sleep(0.15)
    await video.transmit(packetise_h264(PICTURE), 900_000)
    reports = {p.ssrc: p.sender_info for p in wire.rtcp if isinstance(p, RtcpSrPacket)}

    def moment(sender: PacketSender, rate: int) -> float:
        """When the sound or picture of 10 s was, by the report."""
        info = reports[sender._ssrc]
        ahead = (sender.timestamp(900_000) - info.rtp_timestamp + (1 << 31)) & 0xFFFF_FFFF
        return info.ntp_timestamp / (1 << 32) + (ahead - (1 << 31)) / rate

    assert moment(video, 90_000) == pytest.approx(moment(audio, 48_000), abs=0.001)
    await video.stop()
    await audio.stop()


# -- the connection ------------------------------------------------------------------------------------


async def damaged(connection: RTCPeerConnection) -> None:
    """Send a packet whose extension is shorter than its format says, and reports that break off."""
    sender = next(s for s in connection.getSenders() if s.kind == "video")
    extension = next(e.id for e in connection.getTransceivers()[0]._headerExtensions if e.uri == SEND_TIME)
    payload_type = connection.getTransceivers()[0]._codecs[0].payloadType
    body = bytes((extension << 4, 1, 0, 0))
    header = bytes((0x90, payload_type)) + bytes(10) + b"\xbe\xde\x00\x01" + body
    await sender.transport._send_rtp(header + b"\x41payload")
    remb = b"REMB\xff\x00\x00\x10"
    await sender.transport._send_rtp(bytes(RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=1, media_ssrc=0, fci=remb)))


async def test_a_damaged_packet_does_not_end_the_connection() -> None:
    async with stage() as built:
        connection, peer = await built.publish(picture_track())
        await until(lambda: peer.report()["in"]["video"]["units"] > 3, "pictures")
        await damaged(connection)
        await until(lambda: peer.report()["malformed"] == 2, "the damage")
        before = peer.report()["in"]["video"]["units"]
        await until(lambda: peer.report()["in"]["video"]["units"] > before + 5, "more pictures")

        stock_in, stock_out = built.stock_peer(), built.stock_peer()
        stock_out.addTransceiver(picture_track(), direction="sendonly")
        await stock_out.setLocalDescription(await stock_out.createOffer())
        await stock_in.setRemoteDescription(stock_out.localDescription)
        await stock_in.setLocalDescription(await stock_in.createAnswer())
        await stock_out.setRemoteDescription(stock_in.localDescription)
        await until(lambda: stock_in.connectionState == "connected", "a stock connection")
        await damaged(stock_out)
        await until(lambda: stock_in.connectionState == "closed", "the end that stock aiortc comes to")


async def test_an_empty_datagram_does_not_end_the_connection() -> None:
    """Anybody may send one: nothing of the connection must be known for it."""
    async with stage() as built:
        _, peer = await built.publish(picture_track())
        await until(lambda: peer.report()["in"]["video"]["units"] > 3, "pictures")
        assert peer._connection is not None
        candidate = peer._connection.ice.local_candidates[0]
        with socket.socket(
            socket.AF_INET6 if ":" in candidate.host else socket.AF_INET, socket.SOCK_DGRAM
        ) as s:
            for _ in range(3):
                s.sendto(b"", (candidate.host, candidate.port))
        await until(lambda: peer.report()["malformed"] == 3, "the datagrams")
        before = peer.report()["in"]["video"]["units"]
        await until(lambda: peer.report()["in"]["video"]["units"] > before + 10, "more pictures")
        assert peer.state == "connected"


async def test_closing_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(self: object) -> None:
        await asyncio.Event().wait()

    async with stage() as built:
        _, peer = await built.publish(picture_track())
        await until(lambda: peer.state == "connected", "the connection")
        with monkeypatch.context() as patch:
            patch.setattr(RTCPeerConnection, "close", never)
            patch.setattr(media, "CLOSE", 0.2)
            began = time.monotonic()
            await asyncio.wait_for(peer.close("test"), 5)
            assert time.monotonic() - began < 5
        assert built.closed == [peer]
        connection = peer._connection
        assert connection is not None
        await super(MediaConnection, connection).close()


async def test_closing_says_so_by_dtls() -> None:
    """RFC 5246, 7.2.1: without it the other side only notices that nothing comes any more."""
    async with stage() as built:
        connection, peer, _ = await built.watch("video")
        await until(lambda: peer.state == connection.connectionState == "connected", "the connection")
        transport = connection.getTransceivers()[0].receiver.transport
        await peer.close("test")
        await until(lambda: transport.state == "closed", "the end")


def test_an_aiortc_of_another_shape_is_refused_by_name() -> None:
    check_shape()
    with pytest.raises(NotInstalled, match="RTCDtlsTransport has no _handle_rtp_packets"):
        check_shape(((RTCDtlsTransport, ("_handle_rtp_data", "_handle_rtp_packets")),))

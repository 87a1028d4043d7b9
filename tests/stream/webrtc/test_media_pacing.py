"""When packets leave: large pictures are spread, and no set clock moves what they say of their time."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from typing import Any

import pytest
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtp import HeaderExtensionsMap, RtcpPacket, RtcpRrPacket, RtcpSdesPacket, RtcpSrPacket, RtpPacket
from media_peers import stage, until
from test_media_adapter import EXTENSIONS, PICTURE, codec, packets_of, started_receiver, started_sender
from test_media_end_to_end import picture_track

from stream.webrtc.adapter import sender as senders
from stream.webrtc.payload import packetise_h264

LARGE = packetise_h264(b"\0\0\0\1\x65" + os.urandom(200_000).replace(b"\0", b"\1"))
SMALL = packetise_h264(PICTURE)


async def waits(coroutine: Any) -> int:
    """How often the work gives others a turn before it is done."""
    steps = 0
    iterator = coroutine.__await__()
    while True:
        try:
            found = next(iterator)
        except StopIteration:
            return steps
        steps += 1
        if found is not None:
            # As a task does with a future that it waits for.
            found._asyncio_future_blocking = False
            await asyncio.wait({found})


async def test_a_small_picture_leaves_at_once_and_a_large_one_in_groups() -> None:
    sender, wire = await started_sender()
    await sender.transmit(SMALL, 0)
    assert len(SMALL) <= senders.LARGE < len(LARGE)
    assert await waits(sender.transmit(SMALL, 3000)) == 0
    before = len(wire.rtp)
    assert await waits(sender.transmit(LARGE, 6000)) <= senders.GROUPS
    sent = wire.rtp[before:]
    assert [p.payload for p in sent] == LARGE
    assert [p.marker for p in sent] == [0] * (len(LARGE) - 1) + [1]
    # However large it is, it is never spread over more than its time.
    assert senders.SPREAD < 1 / 60
    await sender.stop()


async def test_nothing_is_spread_while_the_next_picture_waits() -> None:
    sender, wire = await started_sender()
    await sender.transmit(SMALL, 0)
    assert await waits(sender.transmit(LARGE, 3000, lambda: True)) == 0
    waiting: list[bool] = []
    before, seen = len(wire.rtp), []

    def hurry() -> bool:
        seen.append(len(wire.rtp) - before)
        return bool(waiting)

    sending = asyncio.create_task(sender.transmit(LARGE, 6000, hurry))
    await asyncio.sleep(0)
    waiting.append(True)
    await sending
    assert len(wire.rtp) - before == len(LARGE)
    assert len(seen) == senders.GROUPS - 1
    await sender.stop()


async def test_two_pictures_at_once_are_sent_one_after_the_other() -> None:
    sender, wire = await started_sender()
    await asyncio.gather(sender.transmit(LARGE, 0), sender.transmit(LARGE, 3000))
    assert [p.timestamp for p in wire.rtp] == [sender.timestamp(0)] * len(LARGE) + [
        sender.timestamp(3000)
    ] * len(LARGE)
    await sender.stop()


async def test_a_sender_that_is_stopped_in_the_middle_sends_no_more() -> None:
    sender, wire = await started_sender()
    sending = asyncio.create_task(sender.transmit(LARGE, 0))
    await asyncio.sleep(0)
    await sender.stop()
    with pytest.raises(ConnectionError):
        await sending
    assert 0 < len(wire.rtp) < len(LARGE)


async def test_a_stock_receiver_gets_a_large_picture_spread_and_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    came: dict[int, list[tuple[float, int]]] = {}
    take = RTCDtlsTransport._handle_rtp_data

    async def note(self: RTCDtlsTransport, data: bytes, arrival_time_ms: int) -> None:
        packet = RtpPacket.parse(data)
        came.setdefault(packet.timestamp, []).append((time.monotonic(), len(packet.payload)))
        await take(self, data, arrival_time_ms)

    async with stage() as built:
        connection, peer, _ = await built.watch("video")
        await until(lambda: peer.state == "connected", "the connection")
        await until(lambda: peer._viewer is not None and peer._viewer._video.started, "the sender")  # type: ignore[union-attr]
        viewer = peer._viewer
        assert viewer is not None
        assert viewer._video is not None
        monkeypatch.setattr(RTCDtlsTransport, "_handle_rtp_data", note)

        def whole() -> list[list[tuple[float, int]]]:
            return [packets for packets in came.values() if len(packets) == len(LARGE)]

        # A machine that pauses may lose a packet of one, and nobody sends that again here.
        for number in range(50):
            await viewer._video.transmit(LARGE, number * 3000)
            await asyncio.sleep(0.1)
            if len(whole()) >= 5:
                break
        await until(lambda: len(whole()) >= 3, "three whole pictures")
        spans = [packets[-1][0] - packets[0][0] for packets in whole()]
        # A machine that pauses may read two groups at once, but not each time.
        assert max(spans) > senders.SPREAD / 2
        assert [size for _, size in whole()[0]] == [len(payload) for payload in LARGE]
        assert connection.connectionState == "connected"


async def test_a_clock_that_is_set_moves_neither_packets_nor_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    sender, wire = await started_sender()
    extensions = HeaderExtensionsMap()
    extensions.configure(type("Parameters", (), {"headerExtensions": EXTENSIONS}))
    raw: list[bytes] = []
    send = wire._send_rtp

    async def keep(data: bytes) -> None:
        raw.append(data)
        await send(data)

    wire._send_rtp = keep  # type: ignore[method-assign]
    real = time.time
    moments, reports = [], []
    for number, jump in enumerate((0, -3600, 7200, 0)):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        raw.clear()
        await sender.transmit(SMALL, number * 90)
        sent_at = RtpPacket.parse(raw[0], extensions).extensions.abs_send_time
        assert sent_at is not None
        moments.append(sent_at / (1 << 18))
        wire.rtcp.clear()
        await sender._report()
        [report] = [p for p in wire.rtcp if isinstance(p, RtcpSrPacket)]
        reports.append(report.sender_info.ntp_timestamp / (1 << 32))
        await asyncio.sleep(0.01)
    monkeypatch.undo()
    for times in (moments, reports):
        steps = [(later - earlier) % 64 for earlier, later in itertools.pairwise(times)]
        assert all(0 < step < 30 for step in steps), times
    assert reports[-1] - reports[0] < 60
    assert abs(reports[0] - senders.NTP_EPOCH - time.time()) < 60
    await sender.stop()


async def test_receiver_reports_name_their_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.webrtc.adapter.receiver.REPORT", 0.02)
    receiver, wire, _ = await started_receiver(codec())
    receiver.name = "who"
    for packet in packets_of(PICTURE, 5, 90_000):
        receiver.take(packet, 0)
    await until(lambda: len(wire.rtcp) >= 2, "a report")
    report, about = wire.rtcp[:2]
    assert isinstance(report, RtcpRrPacket)
    assert isinstance(about, RtcpSdesPacket)
    assert [(chunk.ssrc, chunk.items) for chunk in about.chunks] == [(report.ssrc, [(1, b"who")])]
    await receiver.stop()


async def test_a_publisher_gets_reports_with_the_name_of_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[bytes] = []
    take = RTCDtlsTransport._handle_rtcp_data

    async def note(self: RTCDtlsTransport, data: bytes) -> None:
        for packet in RtcpPacket.parse(data):
            if isinstance(packet, RtcpSdesPacket):
                names.extend(value for chunk in packet.chunks for _, value in chunk.items)
        await take(self, data)

    monkeypatch.setattr(RTCDtlsTransport, "_handle_rtcp_data", note)
    async with stage() as built:
        _, peer = await built.publish(picture_track())
        await until(lambda: names, "a report")
        assert peer._connection is not None
        assert names[0].decode() == peer._connection._RTCPeerConnection__cname  # type: ignore[attr-defined]
        assert names[0]

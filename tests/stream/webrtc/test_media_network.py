"""What networks do to packets, between real peers: loss, disorder, repetition, and the feedback about it."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiortc import RTCPeerConnection, RTCRtpReceiver
from aiortc.rtp import RTCP_PSFB_APP, RTCP_PSFB_PLI, RtcpPsfbPacket, pack_remb_fci

from stream.ingest import Ingest
from stream.mpegts import AccessUnit
from stream.units import EncodedUnit
from tests.stream.codec_media import encoded_video
from tests.stream.webrtc.media_peers import CodedTrack, Stage, stage, until, within
from tests.stream.webrtc.test_media_end_to_end import FRAME, picture_track, sound_track

Send = Callable[[bytes], Awaitable[None]]


def is_media(data: bytes) -> bool:
    """RTP and not RTCP, STUN or DTLS (RFC 7983, RFC 5761)."""
    return 127 < data[0] < 192 and not 192 <= data[1] <= 208


class Network:
    """Between a transport and its socket: ``drop``, ``repeat`` and ``delay`` are shares of the packets."""

    def __init__(self, transport: Any, seed: int = 7) -> None:
        self.drop = self.repeat = self.delay = 0.0
        self.dropped = 0
        self._rng = random.Random(seed)
        self._inner: Send = transport._send
        self._tasks: set[asyncio.Task[None]] = set()
        transport._send = self.send

    async def send(self, data: bytes) -> None:
        if not is_media(data):
            await self._inner(data)
            return
        chance = self._rng.random
        if chance() < self.drop:
            self.dropped += 1
            return
        for _ in range(2 if chance() < self.repeat else 1):
            if chance() < self.delay:
                task = asyncio.create_task(self._later(data, self._rng.uniform(0.001, 0.02)))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                await self._inner(data)

    async def _later(self, data: bytes, seconds: float) -> None:
        await asyncio.sleep(seconds)
        try:
            await self._inner(data)
        except ConnectionError:
            return

    async def quiet(self) -> None:
        await asyncio.gather(*self._tasks)


def network_of(connection: Any) -> Network:
    return Network(connection.getTransceivers()[0].sender.transport.transport)


def units_of(ingest: Ingest) -> list[AccessUnit]:
    found: list[AccessUnit] = []
    ingest.taps.append(found.append)
    return found


def large_track() -> CodedTrack:
    """Pictures of many packets."""
    options = {"preset": "ultrafast", "tune": "zerolatency", "crf": "14"}
    return CodedTrack("video", encoded_video(30, 640, 384, options=options, gop=30), FRAME)


async def test_lost_packets_are_sent_again_and_pictures_stay_whole() -> None:
    async with stage() as built:
        track = large_track()
        units = units_of(built.ingest)
        connection, peer = await built.publish(track)
        await until(lambda: len(units) > 5, "pictures")
        network = network_of(connection)
        network.drop, network.repeat, network.delay = 0.1, 0.05, 0.05
        await until(lambda: network.dropped > 20, "losses")
        network.drop = 0.0
        count = len(units)
        await until(lambda: len(units) > count + 12, "pictures after them")
        await network.quiet()
        report = peer.report()["in"]["video"]
        assert report["duplicates"] > 0
        # Stock aiortc keeps 128 packets: what is asked for twice may be gone by then.
        assert report["recovered"] >= 15 > 4 * report["lost"]
        video = [unit for unit in units if unit.kind == "video"][1:]
        holes = sum(b.pts - a.pts != FRAME for a, b in itertools.pairwise(video))
        assert holes <= report["lost"]
        assert sum(unit.discontinuity for unit in video) <= report["lost"]
        assert {unit.data for unit in video} <= {_annex_b(coded.data) for coded in track._packets}


def _annex_b(data: bytes) -> bytes:
    from stream.webrtc.payload import depacketise_h264, packetise_h264

    return depacketise_h264(packetise_h264(data))


async def test_what_cannot_be_sent_again_is_told_and_a_key_picture_asked_for() -> None:
    def without_nack(sdp: str) -> str:
        return "".join(line for line in sdp.splitlines(True) if not line.strip().endswith(" nack"))

    async with stage() as built:
        units = units_of(built.ingest)
        track = large_track()
        connection, peer = await built.publish(track, edit=without_nack)
        await until(lambda: len(units) > 5, "pictures")
        network = network_of(connection)
        network.drop = 0.3
        await until(lambda: network.dropped > 10, "losses")
        network.drop = 0.0
        await until(lambda: any(u.discontinuity for u in units[5:]), "a unit that says so")
        await until(lambda: peer.report()["in"]["video"]["plis"] > 0, "a request")
        report = peer.report()["in"]["video"]
        assert report["nacks"] == 0
        assert report["lost"] > 0


async def test_a_viewer_that_loses_packets_gets_them_again() -> None:
    async with stage() as built:
        await built.publish(large_track())
        _, viewer, tracks = await built.watch("video")
        await within(tracks["video"].recv())
        assert viewer._connection is not None
        network = network_of(viewer._connection)
        network.drop = 0.05
        await until(lambda: network.dropped > 10, "losses")
        network.drop = 0.0
        await until(lambda: viewer.report()["out"]["video"]["retransmitted"] > 5, "retransmissions")
        for _ in range(20):
            await within(tracks["video"].recv())


def video_receiver(connection: RTCPeerConnection) -> RTCRtpReceiver:
    return next(t.receiver for t in connection.getTransceivers() if t.kind == "video")


def sent_units(built: Stage) -> list[EncodedUnit]:
    """What the session puts out, seen at its viewers' common entrance."""
    found: list[EncodedUnit] = []
    offer = built.session._audience.offer

    def watch(units: list[EncodedUnit]) -> None:
        found.extend(unit for unit in units if unit.kind == "video")
        offer(units)

    built.session._audience.offer = watch  # type: ignore[method-assign]
    return found


async def test_a_viewers_request_makes_a_key_picture() -> None:
    async with stage() as built:
        units = sent_units(built)
        await built.publish(picture_track())
        connection, viewer, tracks = await built.watch("video")
        await within(tracks["video"].recv())
        # The first one is past, and with it the half second in which there is no other.
        await until(lambda: len(units) > 25, "pictures")
        before = sum(unit.key for unit in units)
        receiver = video_receiver(connection)
        for _ in range(5):
            await receiver._send_rtcp_pli(viewer._connection.sender("0")._ssrc)  # type: ignore[union-attr]
        await until(lambda: sum(unit.key for unit in units) > before, "a key picture")
        at = len(units)
        await until(lambda: len(units) > at + 10, "more pictures")
        assert sum(unit.key for unit in units) == before + 1, "requests are taken together"
        assert viewer.report()["out"]["video"]["plis"] == 5


async def test_a_late_viewer_begins_with_a_key_picture_at_once() -> None:
    async with stage() as built:
        units = sent_units(built)
        await built.publish(picture_track())
        _, first, tracks = await built.watch("video")
        await within(tracks["video"].recv())
        await until(lambda: len(units) > 30, "pictures for the first viewer")
        keys = sum(unit.key for unit in units)
        _, second, late = await built.watch("video")
        await within(late["video"].recv())
        assert sum(unit.key for unit in units) > keys
        assert len({unit.rendition for unit in units}) == 1, "both share one encoding"
        assert second.report()["out"]["video"]["units"] <= first.report()["out"]["video"]["units"]


async def test_an_estimate_below_what_is_sent_lowers_the_bitrate_without_a_new_encoder() -> None:
    async with stage() as built:
        units = sent_units(built)
        await built.publish(large_track())
        connection, viewer, tracks = await built.watch("video")
        await within(tracks["video"].recv())
        await until(lambda: viewer.report()["out"]["video"]["bitrate"] > 900_000, "a full second of pictures")
        sink = built.session.sinks[0]
        handle = sink.handle  # type: ignore[attr-defined]
        encoder = built.session.pipeline.encoding._renditions[handle.rendition].encoder
        ssrc = viewer._connection.sender("0")._ssrc  # type: ignore[union-attr]
        fci = pack_remb_fci(600_000, [ssrc])
        await video_receiver(connection)._send_rtcp(
            RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=1, media_ssrc=0, fci=fci)
        )
        await until(lambda: handle.bitrate <= 600_000, "the lower bitrate")
        count = len(units)
        await until(lambda: len(units) > count + 40, "pictures at it")
        sizes = [len(unit.data) for unit in units[-30:] if not unit.key]
        assert 30 * 8 * sum(sizes) / len(sizes) < 900_000
        assert built.session.pipeline.encoding._renditions[handle.rendition].encoder is encoder


async def test_a_viewer_that_is_too_slow_moves_to_the_lower_rendition_alone() -> None:
    async with stage() as built:
        units = sent_units(built)
        await built.publish(large_track())
        connection, slow, tracks = await built.watch("video")
        _, fast, others = await built.watch("video")
        await within(tracks["video"].recv())
        await within(others["video"].recv())
        ssrc = slow._connection.sender("0")._ssrc  # type: ignore[union-attr]
        fci = pack_remb_fci(100_000, [ssrc])
        packet = RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=1, media_ssrc=0, fci=fci)

        async def complain() -> None:
            while not slow.report()["out"]["video"]["low"]:
                await video_receiver(connection)._send_rtcp(packet)
                await asyncio.sleep(0.2)

        await within(complain())
        await until(
            lambda: {u.rendition.purpose for u in units[-8:] if u.rendition} == {"viewers", "viewers_low"},
            "both renditions",
        )
        for _ in range(10):
            await within(tracks["video"].recv())
        assert not fast.report()["out"]["video"]["low"]
        assert len(built.session.sinks) == 2, "the slow one left its first place"


@pytest.mark.parametrize("fmt", [RTCP_PSFB_PLI])
async def test_the_decoder_asks_the_publisher_for_a_key_picture(fmt: int) -> None:
    """A publisher that begins in the middle of its pictures is asked for a key picture."""
    async with stage() as built:
        coded = encoded_video(60, 320, 192, gop=300)
        track = CodedTrack("video", coded, FRAME)
        track.position = 20
        connection, peer = await built.publish(track, sound_track())
        await until(lambda: peer.report()["in"]["video"]["plis"] > 0, "a request")
        sender: Any = next(s for s in connection.getSenders() if s.kind == "video")
        await until(lambda: sender._RTCRtpSender__force_keyframe, "its arrival")
        track.position = 0
        _, _, tracks = await built.watch("video")
        await within(tracks["video"].recv())

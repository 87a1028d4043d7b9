"""The measuring peer: one browser's worth of WebRTC by stock aiortc, in a process of its own.

    python -m benchmarks.rtc_client send --url URL --clip FILE --seconds S --json FILE
    python -m benchmarks.rtc_client watch --url URL --viewers N --seconds S

It sends packets that were encoded beforehand, stamps the marker packet of each picture when it is handed to
the socket and again when it comes back, and decodes only when all is over: the figure is the server's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import queue
import time
from pathlib import Path
from typing import Any

import aiohttp
from aiortc import RTCPeerConnection, RTCRtpSender, RTCSessionDescription, rtcrtpreceiver
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcrtpreceiver import RTCRtpReceiver
from aiortc.rtp import RtcpSrPacket

from benchmarks.rtc_media import Playlist, Received, access_units, beep_arrivals, beeps, pictures

FPS = 30


class Stamps:
    """What was seen on the wire. Hooks aiortc for the whole process."""

    def __init__(self) -> None:
        self.sent: dict[int, int] = {}
        """Picture number to the moment at which its last packet was handed to the socket."""
        self.video: list[Received] = []
        self.audio: list[Received] = []
        self.reports: list[tuple[str, int, int]] = []
        """Kind, NTP and RTP time of each sender report."""
        self.keep = True
        self.playlist: Playlist | None = None
        self.video_type: int | None = None

    def hook(self) -> None:
        stamps = self
        send_rtp, handle_rtp, handle_rtcp = (
            RTCDtlsTransport._send_rtp,
            RTCRtpReceiver._handle_rtp_packet,
            RTCRtpReceiver._handle_rtcp_packet,
        )

        async def sending(transport: Any, data: bytes) -> None:
            await send_rtp(transport, data)
            if stamps.playlist is not None and data[1] == 0x80 | (stamps.video_type or 0):
                stamps.sent.setdefault(stamps.playlist.number, time.monotonic_ns())

        async def handling(receiver: Any, packet: Any, arrival_time_ms: int) -> None:
            now = time.monotonic_ns()
            if stamps.keep:
                kept = stamps.video if receiver.track.kind == "video" else stamps.audio
                kept.append(
                    Received(
                        now, packet.sequence_number, packet.timestamp, bool(packet.marker), packet.payload
                    )
                )
            await handle_rtp(receiver, packet, arrival_time_ms)

        async def reporting(receiver: Any, packet: Any) -> None:
            if isinstance(packet, RtcpSrPacket):
                info = packet.sender_info
                stamps.reports.append((receiver.track.kind, info.ntp_timestamp, info.rtp_timestamp))
            await handle_rtcp(receiver, packet)

        hooks: list[tuple[Any, str, Any]] = [
            (RTCDtlsTransport, "_send_rtp", sending),
            (RTCRtpReceiver, "_handle_rtp_packet", handling),
            (RTCRtpReceiver, "_handle_rtcp_packet", reporting),
            # Nothing is decoded while the clock runs.
            (rtcrtpreceiver, "decoder_worker", _discard),
        ]
        for owner, name, hook in hooks:
            setattr(owner, name, hook)


def _discard(loop: Any, input_q: queue.Queue[Any], output_q: Any, decode_error: Any) -> None:
    while input_q.get() is not None:
        pass


async def _offer(peer: RTCPeerConnection) -> str:
    await peer.setLocalDescription(await peer.createOffer())
    return str(peer.localDescription.sdp)


async def send(options: argparse.Namespace) -> dict[str, Any]:
    """Send the clip and get it back for so many seconds; what was seen."""
    stamps = Stamps()
    stamps.hook()
    units = access_units(options.clip)[: int(options.seconds * FPS)]
    start: list[float] = []
    video = Playlist("video", units, 1 / FPS, start)
    stamps.playlist = video
    peer = RTCPeerConnection()
    transceiver = peer.addTransceiver(video, direction="sendrecv")
    h264 = [
        codec
        for codec in RTCRtpSender.getCapabilities("video").codecs
        if codec.mimeType.lower() == "video/h264"
    ]
    transceiver.setCodecPreferences(h264)
    if options.sound:
        peer.addTransceiver(Playlist("audio", beeps(options.seconds), 0.02, start), direction="sendrecv")
    if options.dialect == "headrace":
        peer.createDataChannel("control")
    began = time.monotonic_ns()
    sdp = await _offer(peer)
    posted = time.monotonic_ns()
    body: dict[str, Any] = {"sdp": sdp, "type": "offer"}
    if options.dialect == "headrace":
        body = {"offer": body, "session": options.session, **json.loads(options.extra)}
    async with aiohttp.ClientSession() as http, http.post(options.url, json=body) as answer:
        if answer.status != 200:
            raise SystemExit(f"{options.url} answered {answer.status}: {await answer.text()}")
        described = await answer.json()
    answered = time.monotonic_ns()
    stamps.video_type = _video_type(described["sdp"])
    await peer.setRemoteDescription(RTCSessionDescription(described["sdp"], described["type"]))
    async with asyncio.timeout(20):
        await video.begun.wait()
    if options.started:
        options.started.write_text("1")
    await asyncio.sleep(options.seconds)
    stamps.keep = False
    await asyncio.wait_for(peer.close(), 10)
    shown = [
        [picture.number, picture.inverted, picture.at, picture.timestamp, picture.size]
        for picture in pictures(stamps.video)
    ]
    return {
        "began": began,
        "posted": posted,
        "answered": answered,
        "start": int(start[0] * 1e9) if start else None,
        "sent": stamps.sent,
        "pictures": shown,
        "beeps": beep_arrivals(stamps.audio) if options.sound else [],
        "reports": stamps.reports,
    }


def _video_type(sdp: str) -> int:
    """The first payload type of the video section."""
    line = next(line for line in sdp.splitlines() if line.startswith("m=video"))
    return int(line.split()[3])


async def watch(options: argparse.Namespace) -> dict[str, Any]:
    """Several WHEP viewers that count what comes."""
    stamps = Stamps()
    stamps.hook()
    peers = []
    async with aiohttp.ClientSession() as http:
        for _ in range(options.viewers):
            peer = RTCPeerConnection()
            peers.append(peer)
            peer.addTransceiver("video", direction="recvonly")
            peer.addTransceiver("audio", direction="recvonly")
            sdp = await _offer(peer)
            headers = {"Content-Type": "application/sdp"}
            async with http.post(options.url, data=sdp, headers=headers) as answer:
                if answer.status != 201:
                    raise SystemExit(f"{options.url} answered {answer.status}: {await answer.text()}")
                described = await answer.text()
            await peer.setRemoteDescription(RTCSessionDescription(described, "answer"))
    if options.started:
        options.started.write_text("1")
    await asyncio.sleep(options.seconds)
    stamps.keep = False
    for peer in peers:
        await asyncio.wait_for(peer.close(), 10)
    return {"pictures": sum(packet.marker for packet in stamps.video)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["send", "watch"])
    parser.add_argument("--url", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--started", type=Path, help="a file to make when the first packet may leave")
    parser.add_argument("--clip", type=Path)
    parser.add_argument("--dialect", choices=["headrace", "stock"], default="headrace")
    parser.add_argument("--session", default="bench")
    parser.add_argument("--extra", default="{}", help="JSON merged into Headrace's offer")
    parser.add_argument("--sound", action="store_true")
    parser.add_argument("--viewers", type=int, default=1)
    options = parser.parse_args()
    result = asyncio.run({"send": send, "watch": watch}[options.what](options))
    text = json.dumps(result)
    if options.json:
        options.json.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()

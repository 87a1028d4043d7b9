"""A WebRTC server of aiortc with stock settings that sends back what it gets: what others stand on.

    python -m benchmarks.echo_stock PORT

`POST /offer` takes ``{"sdp", "type"}`` and answers the same; pictures and sound are decoded and encoded
again, as every program does that puts a model between aiortc's tracks.
"""

from __future__ import annotations

import sys

from aiohttp import web
from aiortc import MediaStreamTrack, RTCPeerConnection, RTCSessionDescription

peers: set[RTCPeerConnection] = set()


async def offer(request: web.Request) -> web.Response:
    """Answer an offer; each track that comes goes back on the same connection."""
    body = await request.json()
    peer = RTCPeerConnection()
    peers.add(peer)

    @peer.on("track")
    def on_track(track: MediaStreamTrack) -> None:
        peer.addTrack(track)

    @peer.on("connectionstatechange")
    async def on_change() -> None:
        if peer.connectionState in ("failed", "closed"):
            await peer.close()
            peers.discard(peer)

    await peer.setRemoteDescription(RTCSessionDescription(body["sdp"], body["type"]))
    await peer.setLocalDescription(await peer.createAnswer())
    local = peer.localDescription
    return web.json_response({"sdp": local.sdp, "type": local.type})


async def health(request: web.Request) -> web.Response:
    """As a worker's, so that both are waited for alike."""
    return web.json_response({"status": "IDLE"})


def main() -> None:
    app = web.Application()
    app.router.add_post("/offer", offer)
    app.router.add_get("/health", health)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)


if __name__ == "__main__":
    main()

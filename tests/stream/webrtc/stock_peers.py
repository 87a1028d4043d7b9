"""Stock aiortc peers that publish by WHIP and watch by WHEP."""

from __future__ import annotations

import asyncio
import fractions
import time
from typing import Any

import av
import numpy as np
from aiohttp.test_utils import TestClient
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from media_peers import close_stock

SDP = {"Content-Type": "application/sdp"}
RATE = 15


class Colour(MediaStreamTrack):
    """Pictures of one colour in real time."""

    kind = "video"

    def __init__(self, colour: tuple[int, int, int]) -> None:
        super().__init__()
        self._picture = np.full((120, 160, 3), colour, np.uint8)
        self._begin = time.monotonic()
        self._number = 0

    async def recv(self) -> av.VideoFrame:
        await asyncio.sleep(max(0.0, self._begin + self._number / RATE - time.monotonic()))
        frame = av.VideoFrame.from_ndarray(self._picture, format="rgb24")
        frame.pts, frame.time_base = self._number * 90_000 // RATE, fractions.Fraction(1, 90_000)
        self._number += 1
        return frame


class StockPeer:
    """One connection, and the answer to its POST."""

    def __init__(self, client: TestClient[Any, Any]) -> None:
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._client = client
        self.resource: str | None = None
        self.tag = ""

    async def post(self, path: str, **headers: str) -> int:
        """Offer, and take the answer; returns the status."""
        await self.pc.setLocalDescription(await self.pc.createOffer())
        answer = await self._client.post(path, data=self.pc.localDescription.sdp, headers={**SDP, **headers})
        text = await answer.text()
        if answer.status == 201:
            self.resource, self.tag = answer.headers["Location"], answer.headers["ETag"]
            await self.pc.setRemoteDescription(RTCSessionDescription(sdp=text, type="answer"))
        return answer.status

    async def delete(self) -> int:
        assert self.resource is not None
        return (await self._client.delete(self.resource)).status

    async def close(self) -> None:
        await close_stock(self.pc)


class Publisher(StockPeer):
    def __init__(self, client: TestClient[Any, Any], colour: tuple[int, int, int]) -> None:
        super().__init__(client)
        self.pc.addTransceiver(Colour(colour), direction="sendonly")


class Viewer(StockPeer):
    """Counts what it is shown."""

    def __init__(self, client: TestClient[Any, Any], *, audio: bool = False) -> None:
        super().__init__(client)
        self.pictures = 0
        self.sounds = 0
        self.colour: tuple[int, ...] = ()
        self.pc.addTransceiver("video", direction="recvonly")
        if audio:
            self.pc.addTransceiver("audio", direction="recvonly")
        self._tasks: list[asyncio.Task[None]] = []
        self.pc.on("track", lambda track: self._tasks.append(asyncio.create_task(self._watch(track))))

    async def _watch(self, track: MediaStreamTrack) -> None:
        while True:
            frame = await track.recv()
            if isinstance(frame, av.VideoFrame):
                self.pictures += 1
                self.colour = tuple(int(v) for v in frame.to_ndarray(format="rgb24").mean((0, 1)))
            else:
                self.sounds += 1

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await super().close()


async def until(condition: Any, limit: float = 20.0) -> None:
    """Wait for it; raises `TimeoutError` after ``limit`` s."""
    for _ in range(int(limit / 0.05)):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise TimeoutError

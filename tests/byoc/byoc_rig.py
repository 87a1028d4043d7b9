"""A `StreamServer` beside a trickle server, with a clip to play through it and a viewer of what comes out."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "live"))

from live_rig import Viewer, clip

from byoc import StreamServer
from byoc.mock import clip as clips
from stream.trickle.channels import ControlReader
from stream.trickle.publisher import TricklePublisher
from stream.trickle.server import TrickleServer, TrickleServerSettings
from stream.trickle.subscriber import TrickleSubscriber

__all__ = ["Rig", "Viewer", "clip", "serving", "trickle"]


@dataclass
class Rig:
    server: StreamServer
    trickle: TrickleServer
    http: aiohttp.ClientSession
    playing: list[asyncio.Task[Any]] = field(default_factory=list)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def channel(self, name: str) -> str:
        return f"{self.trickle.url.rstrip('/')}/{name}"

    def urls(self, name: str) -> dict[str, str]:
        return {
            "subscribe_url": self.channel(f"{name}-in"),
            "publish_url": self.channel(f"{name}-out"),
            "control_url": self.channel(f"{name}-control"),
            "events_url": self.channel(f"{name}-events"),
            "data_url": self.channel(f"{name}-data"),
        }

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        async with self.http.post(self.base + path, json=body, headers=headers) as response:
            return response.status, await response.json()

    async def get(self, path: str) -> Any:
        async with self.http.get(self.base + path) as response:
            return await response.json()

    async def start(self, name: str = "one", **change: Any) -> tuple[int, Any]:
        body = {"gateway_request_id": name, "params": {"width": 128, "height": 128}, **self.urls(name)}
        body = {key: value for key, value in {**body, **change}.items() if value is not None}
        for channel in ("control_url", "subscribe_url"):
            if channel in body:
                # An orchestrator makes them before it calls.
                await self.make(body[channel])
        return await self.post("/stream/start", body)

    async def make(self, url: str) -> None:
        async with self.http.post(url, headers={"Expect-Content": "application/json"}) as response:
            assert response.status == 200

    async def stop(self, name: str = "one") -> tuple[int, Any]:
        return await self.post("/stream/stop", {}, **{"X-Stream-Id": name})

    async def until(self, so: Callable[[], bool], timeout: float = 30.0) -> None:
        end = time.monotonic() + timeout
        while not so():
            assert time.monotonic() < end, "it never came to that"
            await asyncio.sleep(0.02)

    async def until_health(self, wanted: str, timeout: float = 30.0) -> None:
        end = time.monotonic() + timeout
        while (found := (await self.get("/health"))["status"]) != wanted:
            assert time.monotonic() < end, f"health is {found}"
            await asyncio.sleep(0.02)

    def play(self, segments: Sequence[Sequence[clips.Chunk]], name: str = "one") -> asyncio.Task[None]:
        """Publish in real time, then end the channel."""
        task = asyncio.create_task(self._play(segments, name))
        self.playing.append(task)
        return task

    async def _play(self, segments: Sequence[Sequence[clips.Chunk]], name: str) -> None:
        publisher = TricklePublisher(self.channel(f"{name}-in"))
        await publisher.start()
        try:
            begun = time.monotonic()
            for segment in segments:
                writer = await publisher.next_segment()
                for chunk in segment:
                    await asyncio.sleep(begun + chunk.due - time.monotonic())
                    await writer.write(chunk.data)
                await writer.close()
        finally:
            await publisher.close(delete_channel=True)

    def watch(self, name: str = "one") -> tuple[Viewer, asyncio.Task[None]]:
        viewer = Viewer(self.channel(f"{name}-out"))
        task = asyncio.create_task(viewer.run())
        self.playing.append(task)
        return viewer, task

    def listen(self, name: str = "one") -> tuple[list[dict[str, Any]], asyncio.Task[None]]:
        """What comes on the events channel, until it ends."""
        heard: list[dict[str, Any]] = []

        async def read() -> None:
            # Whoever asks before it is there asks ever more rarely, and the ring keeps five segments.
            await self.make(url := self.channel(f"{name}-events"))
            async for message in ControlReader(url, start=0, not_found_grace=20).messages():
                heard.append(message)

        task = asyncio.create_task(read())
        self.playing.append(task)
        return heard, task

    def collect(self, name: str = "one") -> tuple[list[bytes], asyncio.Task[None]]:
        """What comes on the data channel, a segment each, until it ends."""
        lines: list[bytes] = []

        async def read() -> None:
            await self.make(url := self.channel(f"{name}-data"))
            async for segment in TrickleSubscriber(url, start=0, not_found_grace=20).segments():
                lines.append(await segment.read(1 << 20))

        task = asyncio.create_task(read())
        self.playing.append(task)
        return lines, task

    async def end(self) -> None:
        for task in self.playing:
            task.cancel()
        await asyncio.gather(*self.playing, return_exceptions=True)


@contextlib.asynccontextmanager
async def trickle() -> AsyncIterator[TrickleServer]:
    async with TrickleServer(TrickleServerSettings(port=0, keepalive_interval=1.0)) as server:
        yield server


@contextlib.asynccontextmanager
async def serving(supply: Any, **options: Any) -> AsyncIterator[Rig]:
    """The server, listening; its model may still load."""
    server = (
        supply
        if isinstance(supply, StreamServer)
        else StreamServer(supply, port=0, host="127.0.0.1", **options)
    )
    async with trickle() as channels, aiohttp.ClientSession() as http:
        runner = await server.start_server()
        rig = Rig(server, channels, http)
        try:
            yield rig
        finally:
            await rig.end()
            await server.stop()
            await runner.cleanup()

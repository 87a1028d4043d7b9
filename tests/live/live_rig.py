"""A worker with its engine, a trickle server, a source that plays a clip in real time, and a viewer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from aiohttp import web

from byoc.mock import clip as clips
from headrace.server.app import build_app
from headrace.server.worker import Worker
from headrace.settings import Settings
from stream.codecs.audio_decoder import AudioDecoder
from stream.codecs.video_decoder import VideoDecoder
from stream.mpegts import TsDemuxer
from stream.trickle.publisher import TricklePublisher
from stream.trickle.server import TrickleServer, TrickleServerSettings
from stream.trickle.subscriber import TrickleSubscriber

ENGINE = 30.0
_tests = itertools.count(1)


@dataclass
class Picture:
    """A picture that a viewer got: when (s), its time (s), size and mean colour."""

    at: float
    time: float
    width: int
    height: int
    mean: tuple[float, float, float]
    segment: int


@dataclass
class Viewer:
    """Reads a publish channel to its end, decoding everything."""

    url: str
    pictures: list[Picture] = field(default_factory=list)
    sounds: list[tuple[float, float, int]] = field(default_factory=list)
    """When (s), its time (s), channels."""
    loudness: list[list[float]] = field(default_factory=list)
    """Root mean square of each channel, a frame each."""
    segments: list[int] = field(default_factory=list)
    first_bytes: list[bytes] = field(default_factory=list)

    async def run(self) -> None:
        demuxer, video, audio = TsDemuxer(), VideoDecoder("h264", hardware="off"), AudioDecoder("opus")
        async for segment in TrickleSubscriber(self.url, start=0, not_found_grace=20).segments():
            self.segments.append(segment.seq)
            first = True
            async for chunk in segment.chunks():
                if first:
                    self.first_bytes.append(chunk.data[:188])
                    first = False
                for unit in demuxer.feed(chunk.data, chunk.arrived):
                    self._take(unit, chunk.arrived / 1e9, segment.seq, video, audio)
            for unit in demuxer.flush():
                self._take(unit, time.monotonic(), segment.seq, video, audio)

    def _take(self, unit: Any, at: float, segment: int, video: VideoDecoder, audio: AudioDecoder) -> None:
        if unit.kind == "audio":
            for sound in audio.decode(unit):
                self.sounds.append((at, sound.time, sound.channels))
                self.loudness.append([float(np.sqrt(np.mean(row**2))) for row in sound.samples])
            return
        for frame in video.decode(unit):
            rgb = frame.picture.rgb()
            mean = tuple(float(v) for v in rgb.reshape(-1, 3).mean(0))
            self.pictures.append(Picture(at, frame.time, frame.width, frame.height, mean, segment))

    def longest_gap(self, since: float = 0.0, until: float = float("inf")) -> float:
        """Seconds between two pictures, by arrival."""
        times = [p.at for p in self.pictures if since <= p.at <= until]
        return max((b - a for a, b in pairwise(times)), default=float("inf"))


@dataclass
class Rig:
    worker: Worker
    trickle: TrickleServer
    http: aiohttp.ClientSession
    base: str
    folder: Path
    prefix: str = ""
    """Before the names of sessions and channels, where several tests share a worker."""

    def fresh(self) -> Rig:
        """The same worker for another test, whose sessions and channels have names of their own."""
        return replace(self, prefix=f"test{next(_tests)}-")

    async def end_sessions(self) -> None:
        """Stop what this test has left running."""
        left = [session for session in self.worker.table if session.id.startswith(self.prefix)]
        for session in left:
            session.stop("the test is over")
        for session in left:
            assert await self.worker.table.wait_ended(session.id), f"session {session.id} does not end"

    def channel(self, name: str) -> str:
        return f"{self.trickle.url.rstrip('/')}/{self.prefix}{name}"

    async def start(
        self, session: str = "one", *, route: str = "/stream/start", **change: Any
    ) -> tuple[int, Any]:
        body: dict[str, Any] = {
            "gateway_request_id": self.prefix + session,
            "subscribe_url": self.channel(f"{session}-in"),
            "publish_url": self.channel(f"{session}-out"),
            "params": {"width": 128, "height": 128},
        }
        body.update(change)
        return await self.post(route, body)

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        if "X-Stream-Id" in headers:
            headers["X-Stream-Id"] = self.prefix + headers["X-Stream-Id"]
        async with self.http.post(self.base + path, json=body, headers=headers) as response:
            return response.status, await response.json()

    async def get(self, path: str) -> Any:
        async with self.http.get(self.base + path) as response:
            return await response.json()

    async def report(self, session: str = "one") -> dict[str, Any]:
        """The session's own figures."""
        return (await self.get(f"/stream/status?stream_id={self.prefix}{session}"))["session"]

    async def until(self, wanted: Any, session: str = "one", timeout: float = 20.0) -> dict[str, Any]:
        """Wait until the report of ``session`` is as ``wanted`` says."""
        end = time.monotonic() + timeout
        while True:
            report = (await self.get(f"/stream/status?stream_id={self.prefix}{session}")).get("session")
            if report is not None and wanted(report):
                return report
            assert time.monotonic() < end, f"still not so: {report}"
            await asyncio.sleep(0.05)

    async def play(
        self, segments: Sequence[Sequence[clips.Chunk]], session: str = "one", *, speed: float = 1.0
    ) -> None:
        """Publish in real time, then end the channel."""
        publisher = TricklePublisher(self.channel(f"{session}-in"))
        await publisher.start()
        try:
            begun = time.monotonic()
            for segment in segments:
                writer = await publisher.next_segment()
                for chunk in segment:
                    await asyncio.sleep(begun + chunk.due / speed - time.monotonic())
                    await writer.write(chunk.data)
                await writer.close()
        finally:
            await publisher.close(delete_channel=True)


@contextlib.asynccontextmanager
async def running(folder: Path, **settings: Any) -> AsyncIterator[Rig]:
    """The whole rig; the engine is ready when it begins."""
    chosen: dict[str, Any] = {"port": 0, "hardware": "off", "bitrate": 500_000, "allow_processors": True}
    worker = Worker(Settings(**{**chosen, **settings}))
    runner = web.AppRunner(build_app(worker), shutdown_timeout=1.0)
    async with TrickleServer(TrickleServerSettings(port=0, keepalive_interval=1.0)) as trickle:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        await worker.start()
        host, port = runner.addresses[0][:2]
        try:
            async with aiohttp.ClientSession() as http:
                await worker.engine.wait_ready(ENGINE)
                yield Rig(worker, trickle, http, f"http://{host}:{port}", folder)
        finally:
            await worker.stop()
            await runner.cleanup()


def clip(seconds: float = 4, **recipe: Any) -> list[list[clips.Chunk]]:
    """Segments of a small clip, made once a run."""
    chosen: dict[str, Any] = {"width": 128, "height": 128, "bitrate": 300_000, "key_every": 1}
    recipe_of = clips.Recipe(seconds=seconds, **{**chosen, **recipe})
    return clips.cut(clips.cached(recipe_of, Path(tempfile.gettempdir())))


INVERT = {
    "1": {"class_type": "LoadTensor", "inputs": {}},
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    "3": {"class_type": "SaveTensor", "inputs": {"images": ["2", 0]}},
}
"""The clip is dark green, so what this workflow made of it is bright in red and blue."""


def is_processed(picture: Picture) -> bool:
    """Whether `INVERT` made it: neither the source nor a dimmed picture is bright in red."""
    return picture.mean[0] > 150


def is_raw(picture: Picture) -> bool:
    """Whether it is the source as it came: green stands out."""
    red, green, _ = picture.mean
    return green > red + 40

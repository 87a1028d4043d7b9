"""The preview over real HTTP connections, beside a real session that encodes the test pattern."""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stream import preview as preview_module
from stream.codecs.picture import AvPicture, to_av
from stream.errors import EngineError
from stream.frames import Picture, VideoFrame
from stream.overlay import OverlaySettings
from stream.pattern import PatternSettings
from stream.pattern_scene import Scene
from stream.pattern_session import pattern_session
from stream.pipeline import PipelineSettings
from stream.preview import MAX_SIDE, PreviewRoutes, jpeg_of
from stream.processor import FrameProcessor, VideoResult
from stream.session import SessionSettings
from stream.status import session_report
from stream.table import SessionTable

LIMIT = 20.0
BOUNDARY = b"--headrace"


class Away(FrameProcessor):
    """A processor that is never there."""

    async def process_video_async(self, frame: VideoFrame) -> VideoResult:
        raise EngineError("Fetching the model", progress=0.4)


@dataclass
class Part:
    pts: int
    jpeg: bytes

    def image(self) -> Image.Image:
        image = Image.open(io.BytesIO(self.jpeg))
        image.load()
        return image


@dataclass
class Server:
    """A server with one session, ``one``, of the test pattern."""

    port: int
    table: SessionTable
    routes: PreviewRoutes
    client: aiohttp.ClientSession

    def path(self, kind: str, session: str = "one") -> str:
        return f"http://127.0.0.1:{self.port}/sessions/{session}/preview.{kind}"

    @property
    def viewers(self) -> int:
        return sum(preview.viewers for preview in self.routes._previews.values())

    @property
    def compressed(self) -> int:
        return sum(preview._number for preview in self.routes._previews.values())

    @asynccontextmanager
    async def viewer(self) -> AsyncIterator[AsyncIterator[Part]]:
        async with self.client.get(self.path("mjpeg")) as response:
            assert response.status == 200
            assert response.headers["Content-Type"] == "multipart/x-mixed-replace; boundary=headrace"
            yield parts(response)


async def parts(response: aiohttp.ClientResponse) -> AsyncIterator[Part]:
    """The body parts of a multipart answer (RFC 2046), each with the length that it declares."""
    while (line := (await response.content.readline()).strip()) == BOUNDARY:
        headers = {}
        while line := (await response.content.readline()).strip():
            name, _, value = line.decode().partition(": ")
            headers[name] = value
        if not headers:
            return
        assert headers["Content-Type"] == "image/jpeg"
        jpeg = await response.content.readexactly(int(headers["Content-Length"]))
        assert await response.content.readline() == b"\r\n"
        yield Part(int(headers["X-Pts"]), jpeg)


async def some(viewer: AsyncIterator[Part], count: int) -> list[Part]:
    return [await anext(viewer) for _ in range(count)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():  # noqa: ASYNC110 (what is waited for is a plain figure)
            await asyncio.sleep(0.02)


@asynccontextmanager
async def serving(
    processor: FrameProcessor | None = None,
    pipeline: PipelineSettings | None = None,
    *,
    size: tuple[int, int] = (160, 96),
) -> AsyncIterator[Server]:
    table = SessionTable(2, session_report)
    routes = PreviewRoutes(table)
    app = web.Application()
    routes.register(app)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    session_settings = SessionSettings(pipeline=pipeline or PipelineSettings())
    pattern = PatternSettings(width=size[0], height=size[1], fps=30)
    table.add(pattern_session("one", processor or FrameProcessor(), session_settings, pattern))
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LIMIT)) as client:
            yield Server(runner.addresses[0][1], table, routes, client)
    finally:
        await table.close("the test is over")
        await runner.cleanup()


async def test_a_viewer_gets_moving_pictures_of_the_output() -> None:
    async with serving() as server, server.viewer() as viewer:
        seen = await some(viewer, 8)
    images = [part.image() for part in seen]
    assert {(image.format, image.size) for image in images} == {("JPEG", (160, 96))}
    assert len({part.jpeg for part in seen}) == len(seen)
    assert [part.pts for part in seen] == sorted(part.pts for part in seen)


async def test_pictures_are_compressed_at_most_fifteen_times_a_second() -> None:
    async with serving() as server, server.viewer() as viewer:
        seen = await some(viewer, 16)
    assert (seen[-1].pts - seen[0].pts) / 15 >= 90_000 / 15 * 0.9


async def test_viewers_share_one_compression() -> None:
    async with serving() as server, server.viewer() as here, server.viewer() as there:
        assert await some(here, 1)
        assert await some(there, 1)
        before = server.compressed
        one, other = await asyncio.gather(some(here, 10), some(there, 10))
        after = server.compressed
    assert after - before <= 12
    both = {part.pts: part.jpeg for part in one}
    shared = [part for part in other if part.pts in both]
    assert len(shared) >= 5
    assert all(both[part.pts] == part.jpeg for part in shared)


async def test_nothing_is_compressed_when_nobody_watches() -> None:
    async with serving() as server:
        async with server.viewer() as viewer:
            await some(viewer, 2)
        await until(lambda: server.viewers == 0)
        before = server.compressed
        await asyncio.sleep(0.4)
        assert server.compressed == before
        async with server.viewer() as viewer:
            assert (await some(viewer, 2))[0].image().size == (160, 96)


async def test_a_viewer_who_takes_nothing_is_dropped_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preview_module, "STALL", 0.3)
    async with serving(size=(1280, 720)) as server, server.viewer() as viewer:
        stalled = socket.socket()
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with stalled:
            stalled.connect(("127.0.0.1", server.port))
            stalled.sendall(b"GET /sessions/one/preview.mjpeg HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await until(lambda: server.viewers == 2)
            while server.viewers == 2:
                await some(viewer, 1)
            assert server.viewers == 1
            assert await some(viewer, 3)


async def test_a_viewer_who_leaves_is_forgotten() -> None:
    async with serving() as server:
        async with server.viewer() as viewer:
            await some(viewer, 1)
            assert server.viewers == 1
        await until(lambda: server.viewers == 0)


async def test_a_viewer_of_a_session_without_pictures_is_noticed_when_he_leaves() -> None:
    silent = PipelineSettings(overlay=OverlaySettings(enabled=False))
    async with serving(Away(), silent) as server:
        async with server.client.get(server.path("mjpeg")):
            await until(lambda: server.viewers == 1)
        await until(lambda: server.viewers == 0)


async def test_the_stream_ends_with_its_session_and_there_is_none_after_it() -> None:
    async with serving() as server:
        async with server.viewer() as viewer:
            await some(viewer, 2)
            server.table.find("one").stop("enough")
            rest = [part async for part in viewer]
        assert len(rest) < 15
        assert await server.table.wait_ended("one")
        for kind in ("mjpeg", "jpg"):
            async with server.client.get(server.path(kind)) as response:
                body = await response.json()
                assert (response.status, body["code"]) == (404, "not_found")
        await until(lambda: server.viewers == 0)


async def test_a_single_picture() -> None:
    async with serving() as server, server.client.get(server.path("jpg")) as response:
        assert response.status == 200
        assert response.content_type == "image/jpeg"
        assert response.headers["Cache-Control"] == "no-store"
        image = Image.open(io.BytesIO(await response.read()))
    assert image.size == (160, 96)
    assert np.asarray(image).std() > 20


async def test_a_session_that_puts_out_no_pictures_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview_module, "FIRST_PICTURE", 0.3)
    silent = PipelineSettings(overlay=OverlaySettings(enabled=False))
    async with serving(Away(), silent) as server, server.client.get(server.path("jpg")) as response:
        assert response.status == 404
        assert "puts out no pictures" in (await response.json())["message"]


async def test_the_notice_of_a_processor_that_is_away_is_seen() -> None:
    async with serving(Away()) as server, server.client.get(server.path("jpg")) as response:
        image = np.asarray(Image.open(io.BytesIO(await response.read())).convert("L"))
    assert image.max() > 200
    assert np.median(image) < 20


async def test_one_viewer_too_many_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview_module, "MAX_VIEWERS", 1)
    async with serving() as server, server.viewer() as viewer:
        await some(viewer, 1)
        async with server.client.get(server.path("mjpeg")) as response:
            assert (response.status, (await response.json())["code"]) == (503, "at_capacity")
        assert await some(viewer, 1)


async def test_another_site_may_not_show_it() -> None:
    async with serving() as server, server.client.get(server.path("mjpeg")) as response:
        assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"


@given(st.integers(16, 200), st.integers(16, 200), st.booleans())
@settings(max_examples=30)
def test_pictures_of_any_size_keep_it_and_their_colours(width: int, height: int, ours: bool) -> None:
    picture = Scene(width, height).draw(3, 0.1)
    if not ours:
        picture = AvPicture(to_av(picture), picture.matrix)
    image = Image.open(io.BytesIO(jpeg_of(picture, 95)))
    assert image.size == (width, height)
    difference = np.abs(np.asarray(image).astype(int) - picture.rgb())
    assert difference.mean() < 12


def test_large_pictures_are_made_smaller_in_proportion() -> None:
    rgb = np.zeros((1080, 1920, 3), np.uint8)
    image = Image.open(io.BytesIO(jpeg_of(Picture.from_rgb(rgb))))
    assert image.size == (MAX_SIDE, 720)

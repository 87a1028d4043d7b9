"""Motion JPEG of what a session puts out, for whoever watches.

Pictures are compressed only while somebody watches, once for all of them, and at most ``fps`` times a
second. A viewer gets the newest picture when the last one has gone to him; one who takes nothing is dropped.
"""

from __future__ import annotations

import asyncio
import io
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from aiohttp import web

from stream.answers import answering
from stream.codecs.convert import Converter
from stream.codecs.picture import AvPicture, to_av
from stream.errors import AtCapacity, NotFound
from stream.frames import Picture
from stream.logs import about_session
from stream.session import Session
from stream.table import SessionTable

log = logging.getLogger(__name__)

FPS = 15.0
QUALITY = 80
MAX_SIDE = 1280
"""Larger pictures are made smaller, in pixels of the longer side."""
MAX_VIEWERS = 64
STALL = 5.0
"""Seconds in which a viewer must take a picture."""
WAIT = 0.5
"""Seconds after which a viewer without a new picture looks whether the session still runs."""
FIRST_PICTURE = 2.0
SEND_BUFFER = 256 * 1024
"""Bytes that the system may hold back for a slow viewer: a few pictures."""

BOUNDARY = "headrace"
HEADERS = {
    "Cache-Control": "no-store",
    # No other site may show it: without a token a local worker is open to every page of a browser.
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class Shot:
    """One compressed picture; ``number`` counts from 1, ``pts`` counts 1/90000 s of the output."""

    number: int
    pts: int
    jpeg: bytes


class Preview:
    """The compressed pictures of one session; belongs to the loop that it is made on.

    Its `tap` is called by the encoding thread with every picture and returns at once.
    """

    def __init__(self, *, fps: float = FPS, quality: int = QUALITY) -> None:
        self._interval = 1 / fps
        self._quality = quality
        self._loop = asyncio.get_running_loop()
        self._newest: tuple[Picture, int] | None = None
        self._arrived = asyncio.Event()
        self._published = asyncio.Condition()
        self._shot: Shot | None = None
        self._failure: BaseException | None = None
        self._number = 0
        self._task: asyncio.Task[None] | None = None
        self.viewers = 0

    def tap(self, picture: Picture, pts: int) -> None:
        """Take note of a picture, in the encoding thread."""
        if not self.viewers:
            return
        self._newest = (picture, pts)
        try:
            self._loop.call_soon_threadsafe(self._arrived.set)
        except RuntimeError:
            # The loop has ended, and everybody who watched with it.
            pass

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While this lasts, pictures are compressed. Raises `AtCapacity` for one viewer too many."""
        if self.viewers >= MAX_VIEWERS:
            raise AtCapacity(f"{self.viewers} viewers watch this session; no more are taken")
        self.viewers += 1
        if self._task is None:
            self._shot, self._failure, self._newest = None, None, None
            self._task = asyncio.create_task(self._compress(), name="preview")
        try:
            yield
        finally:
            self.viewers -= 1
            if not self.viewers:
                self._task.cancel()
                self._task = None
                self._newest = None

    async def next(self, after: int, timeout: float) -> Shot | None:
        """A picture with a higher number than ``after``; None when none comes within ``timeout`` s."""
        try:
            async with asyncio.timeout(timeout), self._published:
                await self._published.wait_for(lambda: self._failure or self._is_newer(after))
        except TimeoutError:
            return None
        if self._failure is not None:
            raise self._failure
        return self._shot

    def _is_newer(self, after: int) -> bool:
        return self._shot is not None and self._shot.number > after

    async def _compress(self) -> None:
        due = self._loop.time()
        try:
            while True:
                await self._arrived.wait()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                self._arrived.clear()
                newest, self._newest = self._newest, None
                if newest is None:
                    continue
                due = max(due, self._loop.time()) + self._interval
                jpeg = await asyncio.to_thread(jpeg_of, newest[0], self._quality)
                self._number += 1
                await self._publish(Shot(self._number, newest[1], jpeg))
        except Exception as error:  # noqa: BLE001 (viewers get it, instead of waiting for ever)
            self._failure = error
            await self._publish(None)

    async def _publish(self, shot: Shot | None) -> None:
        async with self._published:
            self._shot = shot
            self._published.notify_all()


def jpeg_of(picture: Picture, quality: int = QUALITY) -> bytes:
    """The picture as a JPEG file (JFIF), its longer side at most `MAX_SIDE`."""
    # Weighty, and only needed once somebody watches.
    from PIL import Image

    longer = max(picture.width, picture.height)
    if longer > MAX_SIDE:
        width, height = (max(2, side * MAX_SIDE // longer & ~1) for side in (picture.width, picture.height))
        picture = Converter().scale(picture, width, height)
    elif picture.format == "yuv420p" and not isinstance(picture, AvPicture):
        picture = AvPicture(to_av(picture), picture.matrix, picture.full_range)
    file = io.BytesIO()
    Image.fromarray(picture.rgb().copy()).save(file, "JPEG", quality=quality)
    return file.getvalue()


class PreviewRoutes:
    """``GET /sessions/{id}/preview.mjpeg`` and ``/sessions/{id}/preview.jpg`` over a session table."""

    def __init__(self, table: SessionTable) -> None:
        self._table = table
        self._previews: WeakKeyDictionary[Session, Preview] = WeakKeyDictionary()

    def register(self, app: web.Application) -> None:
        app.router.add_get("/sessions/{id}/preview.mjpeg", answering(self.mjpeg), allow_head=False)
        app.router.add_get("/sessions/{id}/preview.jpg", answering(self.jpg), allow_head=False)

    async def jpg(self, request: web.Request) -> web.Response:
        """The next picture. 404 when the session has none, or none comes within two seconds."""
        session = self._table.find(request.match_info["id"])
        preview = self._preview_of(session)
        with preview.watched():
            shot = await preview.next(0, FIRST_PICTURE)
        if shot is None:
            raise NotFound(f"the session {session.id!r} puts out no pictures at present")
        return web.Response(body=shot.jpeg, content_type="image/jpeg", headers=HEADERS)

    async def mjpeg(self, request: web.Request) -> web.StreamResponse:
        """Pictures as multipart/x-mixed-replace until the session ends or the viewer goes."""
        session = self._table.find(request.match_info["id"])
        preview = self._preview_of(session)
        content_type = f"multipart/x-mixed-replace; boundary={BOUNDARY}"
        response = web.StreamResponse(headers={**HEADERS, "Content-Type": content_type})
        with about_session(session.id), preview.watched():
            _bound_buffers(request)
            try:
                await response.prepare(request)
                await self._send(request, response, session, preview)
            except TimeoutError:
                log.info("a viewer of the preview took nothing for %.0f s and was dropped", STALL)
                if request.transport is not None:
                    request.transport.abort()
            except ConnectionError:
                log.debug("a viewer of the preview has gone")
        return response

    async def _send(
        self, request: web.Request, response: web.StreamResponse, session: Session, preview: Preview
    ) -> None:
        await response.write(f"--{BOUNDARY}\r\n".encode())
        number = 0
        while session.ending is None and request.transport is not None:
            shot = await preview.next(number, WAIT)
            if shot is None:
                continue
            number = shot.number
            head = (
                f"Content-Type: image/jpeg\r\nContent-Length: {len(shot.jpeg)}\r\nX-Pts: {shot.pts}\r\n\r\n"
            )
            # The next boundary goes with the picture: browsers show it when they see that it has ended.
            part = b"".join((head.encode(), shot.jpeg, f"\r\n--{BOUNDARY}\r\n".encode()))
            async with asyncio.timeout(STALL):
                await response.write(part)

    def _preview_of(self, session: Session) -> Preview:
        preview = self._previews.get(session)
        if preview is None:
            preview = self._previews[session] = Preview()
            session.pipeline.encoding.taps.append(preview.tap)
        return preview


def _bound_buffers(request: web.Request) -> None:
    """Keep what waits for a slow viewer small, so that he is shown the present and not the past."""
    transport = request.transport
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)

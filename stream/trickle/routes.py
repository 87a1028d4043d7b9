"""What a trickle server answers, route by route."""

from __future__ import annotations

import asyncio
import posixpath
import re
from contextlib import suppress
from typing import Any
from urllib.parse import unquote_to_bytes

from stream.errors import HeadraceError, InvalidInput, TooLarge
from stream.trickle.http1_server import BadRequest, Request, ServerConnection
from stream.trickle.protocol import (
    CLOSED_HEADER,
    CREATE_TYPE_HEADER,
    LATEST_HEADER,
    RESET_HEADER,
    SEGMENT_MISSING,
    SEQ_HEADER,
    parse_integer,
)
from stream.trickle.ring import Channel, Channels, Missing, Reading, Segment, UnknownChannel, Upload

WRITE_SIZE = 256 * 1024
CLOSED = (CLOSED_HEADER, "terminated")
PLAIN = ("Content-Type", "text/plain; charset=utf-8")
ERROR_HEADERS = (PLAIN, ("X-Content-Type-Options", "nosniff"))
SCHEME_AND_AUTHORITY = re.compile("^https?://[^/?]*", re.IGNORECASE)
BROKEN_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")


class Routes:
    """Finds the handler of a request below ``base_path`` and lets it answer."""

    def __init__(self, channels: Channels, base_path: str, keepalive_interval: float) -> None:
        self._channels = channels
        self._base = base_path.rstrip("/") + "/"
        self._keepalive_interval = keepalive_interval

    async def answer(self, connection: ServerConnection, request: Request) -> None:
        """Answer one request; raises `ConnectionError` when its connection breaks."""
        try:
            await self._route(connection, request)
        except HeadraceError as error:
            await self._refuse(connection, request, error.status, error.message)

    async def refuse(self, connection: ServerConnection, status: int, message: str) -> None:
        """Say in plain text what is wrong and end the connection."""
        await connection.respond(status, ERROR_HEADERS, f"{message}\n".encode(), close=True)

    async def _refuse(
        self,
        connection: ServerConnection,
        request: Request,
        status: int,
        message: str,
        *headers: tuple[str, str],
    ) -> None:
        # What refuses a POST also ends its connection: the body may never end, and a publisher that waits
        # with it wakes up.
        fields = [*ERROR_HEADERS, *headers]
        await connection.respond(status, fields, f"{message}\n".encode(), close=request.method == "POST")

    async def _route(self, connection: ServerConnection, request: Request) -> None:
        path, query = split_target(request.target)
        clean = clean_path(path)
        if BROKEN_ESCAPE.search(path):
            raise InvalidInput("Bad Request")
        if clean != path:
            location = ("Location", clean + query)
            await self._refuse(connection, request, 307, "Temporary Redirect", location)
            return
        parts = path.removeprefix(self._base).split("/") if path.startswith(self._base) else []
        if not 1 <= len(parts) <= 2 or "" in parts:
            await self._refuse(connection, request, 404, "404 page not found")
        elif len(parts) == 1:
            await self._channel(connection, request, _decoded(parts[0]))
        else:
            await self._segment(connection, request, _decoded(parts[0]), _decoded(parts[1]))

    async def _channel(self, connection: ServerConnection, request: Request, name: str) -> None:
        match request.method:
            case "POST":
                self._channels.publish_to(name, request.header(CREATE_TYPE_HEADER))
                await connection.respond(200, [])
            case "DELETE":
                try:
                    self._channels.delete(name)
                except UnknownChannel:
                    raise InvalidInput("Invalid stream") from None
                await connection.respond(200, [])
            case _:
                allow = ("Allow", "DELETE, POST")
                await self._refuse(connection, request, 405, "Method Not Allowed", allow)

    async def _segment(self, connection: ServerConnection, request: Request, name: str, which: str) -> None:
        match request.method:
            case "GET" | "HEAD" if which == "next":
                latest = str(self._channels.get(name).next_write)
                await connection.respond(200, [PLAIN, (LATEST_HEADER, latest)], latest.encode())
            case "GET" | "HEAD":
                channel = self._channels.get(name)
                await Subscription(connection, channel).serve(_number(which))
            case "POST":
                self._channels.require_publishable(name)
                number = _number(which)
                channel = self._channels.publish_to(name, request.header("Content-Type"))
                upload = channel.upload(number, reset=bool(request.header(RESET_HEADER)))
                await Publication(connection, request, upload, self._keepalive_interval).serve()
            case "DELETE":
                self._channels.get(name).close_segment(_number(which))
                await connection.respond(200, [])
            case _:
                allow = ("Allow", "DELETE, GET, HEAD, POST")
                await self._refuse(connection, request, 405, "Method Not Allowed", allow)


class Subscription:
    """One GET: waits for the segment's first byte, then passes on what comes until the segment is closed."""

    def __init__(self, connection: ServerConnection, channel: Channel) -> None:
        self._connection = connection
        self._channel = channel
        self._changed = asyncio.Event()

    async def serve(self, number: int) -> None:
        """Raises `InvalidInput` on a number that cannot be, `ConnectionError` when the reader leaves."""
        reading = self._channel.read(number)
        if isinstance(reading, Missing):
            fields = [PLAIN, (LATEST_HEADER, str(reading.latest)), (SEQ_HEADER, str(number))]
            await self._connection.respond(SEGMENT_MISSING, fields, b"Entry not found")
            return
        unwatch = reading.segment.watch(self._changed.set)
        self._connection.notify_gone(self._changed.set)
        try:
            data = await self._next(reading.segment, 0)
            if data:
                await self._pass_on(reading, data)
            else:
                await self._answer_empty(reading.segment)
        finally:
            unwatch()
            self._connection.notify_gone(None)

    async def _pass_on(self, reading: Reading, data: bytes) -> None:
        segment = reading.segment
        fields = [(SEQ_HEADER, str(segment.seq)), ("Content-Type", self._channel.mime_type)]
        if reading.latest != segment.seq:
            fields.append((LATEST_HEADER, str(reading.latest)))
        await self._connection.begin_response(200, fields)
        offset = 0
        while data:
            await self._connection.send_body(data)
            offset += len(data)
            data = await self._next(segment, offset)
        await self._connection.end_response()

    async def _answer_empty(self, segment: Segment) -> None:
        fields = [(SEQ_HEADER, str(segment.seq)), (LATEST_HEADER, str(self._channel.next_write))]
        if self._channel.closed:
            fields.append(CLOSED)
        await self._connection.respond(200, fields)

    async def _next(self, segment: Segment, offset: int) -> bytes:
        """Bytes from ``offset`` on, none when the segment is closed and read to its end."""
        while True:
            data = segment.read(offset, WRITE_SIZE)
            if data or segment.closed:
                return data
            if self._connection.gone:
                raise ConnectionResetError("the subscriber has left")
            self._changed.clear()
            await self._changed.wait()


class Publication:
    """One POST: until its first byte a preconnect that is kept alive, then bytes for the segment."""

    def __init__(
        self, connection: ServerConnection, request: Request, upload: Upload, keepalive_interval: float
    ) -> None:
        self._connection = connection
        self._request = request
        self._upload = upload
        self._keepalive_interval = keepalive_interval

    async def serve(self) -> None:
        """Take the body and answer; the segment stays open when the body breaks off."""
        try:
            data = await self._first_bytes()
            while data is not None:
                self._upload.write(data)
                data = await self._connection.body()
        except TooLarge:
            # Nobody can complete it any more.
            self._upload.segment.close()
            raise
        except BadRequest:
            with suppress(ConnectionError):
                await self._connection.respond(500, ERROR_HEADERS, b"Server error\n", close=True)
            return
        self._upload.finish()
        await self._answer()

    async def _answer(self) -> None:
        fields = [(SEQ_HEADER, str(self._upload.segment.seq))]
        if self._upload.started:
            await self._connection.respond(200, fields)
            return
        if self._upload.channel_closed:
            fields.append(CLOSED)
        await self._connection.respond(200, fields, close=True)

    async def _first_bytes(self) -> bytes | None:
        """The first bytes of the body; None when it ends without any, or the segment is closed before."""
        if self._request.expects_continue and not self._upload.displaced:
            await self._connection.send_interim()
        displaced: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        unwatch = self._upload.segment.watch(lambda: self._note_change(displaced))
        self._note_change(displaced)
        reading = asyncio.ensure_future(self._connection.body())
        waiting: set[asyncio.Future[Any]] = {reading, displaced}
        interval = self._keepalive_interval
        try:
            while True:
                await asyncio.wait(waiting, timeout=interval, return_when=asyncio.FIRST_COMPLETED)
                if displaced.done():
                    return None
                if reading.done():
                    return reading.result()
                if not self._request.http_1_0:
                    await self._connection.send_interim()
        finally:
            unwatch()
            reading.cancel()
            await asyncio.wait({reading})
            if not reading.cancelled():
                reading.exception()

    def _note_change(self, displaced: asyncio.Future[None]) -> None:
        if self._upload.displaced and not displaced.done():
            displaced.set_result(None)


def split_target(target: str) -> tuple[str, str]:
    """Path and query (with its question mark) of a request's target in origin or absolute form."""
    path, mark, query = SCHEME_AND_AUTHORITY.sub("", target).partition("?")
    return path or "/", mark + query


def clean_path(path: str) -> str:
    """``path`` from the root without empty, ``.`` and ``..`` parts; a slash at its end is kept."""
    clean = posixpath.normpath(re.sub("/+", "/", "/" + path))
    return clean + "/" if path.endswith("/") and clean != "/" else clean


def _decoded(part: str) -> str:
    return unquote_to_bytes(part).decode("utf-8", "surrogateescape")


def _number(text: str) -> int:
    number = parse_integer(text)
    if number is None:
        raise InvalidInput("Invalid idx")
    return number

"""What the tests of trickle share: servers, raw requests, and a count of what is left behind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from stream.trickle.server import TrickleServer, TrickleServerSettings
from stream.trickle.subscriber import TrickleSubscriber

HANG = 20.0


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes
    interim: int


class Raw:
    """A plain socket to a server, so that a test says and sees every byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def send_chunk(self, data: bytes) -> None:
        self.writer.write(b"%x\r\n%s\r\n" % (len(data), data))

    def end_chunks(self) -> None:
        self.writer.write(b"0\r\n\r\n")

    async def head(self) -> tuple[int, dict[str, str], int]:
        """Status, headers (lower-case names) and the number of interim responses before them."""
        interim = 0
        while True:
            async with asyncio.timeout(HANG):
                text = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            lines = text.split("\r\n")
            status = int(lines[0].split(" ")[1])
            if status >= 200:
                fields = (line.split(":", 1) for line in lines[1:] if line)
                return status, {name.lower(): value.strip() for name, value in fields}, interim
            assert text == "HTTP/1.1 100 Continue\r\n\r\n"
            interim += 1

    async def chunk(self) -> bytes:
        """One chunk of a chunked body; empty at its end."""
        async with asyncio.timeout(HANG):
            size = int(await self.reader.readline(), 16)
            data = await self.reader.readexactly(size + 2)
        return data[:-2]

    async def reply(self) -> Reply:
        status, headers, interim = await self.head()
        body = b""
        if headers.get("transfer-encoding") == "chunked":
            while chunk := await self.chunk():
                body += chunk
        else:
            async with asyncio.timeout(HANG):
                body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return Reply(status, headers, body, interim)

    async def at_end(self) -> bool:
        """Whether the server closes the connection; waits for it."""
        async with asyncio.timeout(HANG):
            return await self.reader.read(1) == b""

    async def quiet(self, seconds: float = 0.15) -> bool:
        """Whether nothing comes for a while."""
        try:
            async with asyncio.timeout(seconds):
                await self.reader.read(1)
        except TimeoutError:
            return True
        return False

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        self.writer.transport.abort()


class Probe:
    """Raw requests to the channels of one server."""

    def __init__(self, server: TrickleServer) -> None:
        self.server = server
        host, port = server.url.split("/")[2].rsplit(":", 1)
        self._address = (host, int(port))
        self._base = server.settings.base_path.rstrip("/")
        self._open: list[Raw] = []

    async def connect(self) -> Raw:
        raw = Raw(*await asyncio.open_connection(*self._address))
        self._open.append(raw)
        return raw

    async def begin(self, method: str, path: str, *headers: str) -> Raw:
        """Send the head of a request."""
        raw = await self.connect()
        lines = [f"{method} {self._base}/{path} HTTP/1.1", "Host: test", *headers]
        raw.send(("\r\n".join(lines) + "\r\n\r\n").encode())
        return raw

    async def begin_post(self, path: str, *headers: str) -> Raw:
        return await self.begin("POST", path, "Transfer-Encoding: chunked", *headers)

    async def ask(self, method: str, path: str, *headers: str) -> Reply:
        return await (await self.begin(method, path, *headers)).reply()

    async def post(self, path: str, body: bytes, *headers: str) -> Reply:
        raw = await self.begin("POST", path, f"Content-Length: {len(body)}", *headers)
        raw.send(body)
        return await raw.reply()

    def close(self) -> None:
        for raw in self._open:
            raw.close()


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[TrickleServer]:
    async with TrickleServer(TrickleServerSettings(**{"port": 0, **settings})) as server:
        yield server


@asynccontextmanager
async def probing(**settings: Any) -> AsyncIterator[Probe]:
    async with serving(**settings) as server:
        probe = Probe(server)
        try:
            yield probe
        finally:
            probe.close()


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Fail when the block leaves a task or a descriptor behind."""
    tasks, descriptors = asyncio.all_tasks(), _descriptors()
    yield
    for _ in range(100):
        if asyncio.all_tasks() <= tasks and _descriptors() == descriptors:
            return
        await asyncio.sleep(0.01)
    assert asyncio.all_tasks() <= tasks
    assert _descriptors() == descriptors


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def until(condition: Any) -> None:
    """Wait until ``condition()`` is true."""
    async with asyncio.timeout(HANG):
        while not condition():  # noqa: ASYNC110  what is waited for has no event
            await asyncio.sleep(0.005)


async def collect(subscriber: TrickleSubscriber) -> dict[int, bytes]:
    """Every segment to the channel's end, by number."""
    segments: dict[int, bytes] = {}
    async with asyncio.timeout(HANG), subscriber:
        async for segment in subscriber.segments():
            assert segment.seq not in segments
            segments[segment.seq] = b"".join([chunk.data async for chunk in segment.chunks()])
    return segments

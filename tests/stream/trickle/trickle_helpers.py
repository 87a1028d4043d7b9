"""What the tests of trickle share: servers, raw requests, and a count of what is left behind."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from stream.trickle.ring import Segment
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

    async def begin_segment(self, channel: str, seq: int, data: bytes) -> Raw:
        """Begin a segment; ``data`` is with the server when this returns."""
        raw = await self.begin_post(f"{channel}/{seq}")
        raw.send_chunk(data)
        await until(lambda: any(s.seq == seq and s.size for s in self.segments(channel)))
        return raw

    def segments(self, channel: str) -> tuple[Segment, ...]:
        """What the server holds of a channel."""
        server = self.server
        return server._channels.get(channel).segments if channel in server.channels else ()

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


class Relay:
    """A TCP relay before a server, at which connections can be broken, held and counted."""

    def __init__(self, target: str) -> None:
        host, port = target.split("/")[2].rsplit(":", 1)
        self._target = (host, int(port))
        self._path = "/" + "/".join(target.split("/")[3:])
        self._listener: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self._transports: set[asyncio.Transport] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.accepted = 0
        self.downstream = 0
        self.cut_downstream_at: int | None = None

    @property
    def url(self) -> str:
        assert self._listener is not None
        return f"http://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}{self._path}".rstrip("/")

    async def __aenter__(self) -> Relay:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._listener is not None
        self._listener.close()
        self.break_all()
        if self._pipes:
            await asyncio.wait(self._pipes)

    def break_all(self) -> None:
        """Reset every connection."""
        for transport in tuple(self._transports):
            transport.abort()

    def hold(self) -> None:
        """Read nothing more, from either side."""
        self._flowing.clear()

    def release(self) -> None:
        self._flowing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pipes.add(task)
        self.accepted += 1
        self._transports.add(writer.transport)
        upstream: asyncio.StreamWriter | None = None
        try:
            upstream_reader, upstream = await asyncio.open_connection(*self._target)
            self._transports.add(upstream.transport)
            await asyncio.gather(
                self._pipe(reader, upstream, count=False), self._pipe(upstream_reader, writer, count=True)
            )
        except (OSError, RuntimeError, asyncio.CancelledError):
            # uvloop says RuntimeError of a transport that was aborted.
            pass
        finally:
            for end in (writer, upstream):
                if end is not None:
                    self._transports.discard(end.transport)
                    end.transport.abort()
            self._pipes.discard(task)

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, count: bool) -> None:
        while True:
            if not self._flowing.is_set():
                reader._transport.pause_reading()
                await self._flowing.wait()
                reader._transport.resume_reading()
            data = await reader.read(65536)
            if not data:
                if writer.can_write_eof():
                    writer.write_eof()
                return
            if count:
                self.downstream += len(data)
                cut = self.cut_downstream_at
                if cut is not None and self.downstream >= cut:
                    self.cut_downstream_at = None
                    writer.write(data[: len(data) - (self.downstream - cut)])
                    await writer.drain()
                    await asyncio.sleep(0.02)
                    writer.transport.abort()
                    raise ConnectionResetError
            writer.write(data)
            await writer.drain()


Script = Callable[[Raw, bytes], Awaitable[None]]


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[str]:
    """A server that does what ``script`` says after the head of each request; yields a channel's URL."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await script(Raw(reader, writer), await reader.readuntil(b"\r\n\r\n"))
            await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
            await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()
            tasks.discard(task)

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/c"
    finally:
        listener.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def self_signed(folder: Path) -> tuple[str, str]:
    """Paths of a new certificate for 127.0.0.1 and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "trickle test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    encoding, pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "cert.pem").write_bytes(certificate.public_bytes(encoding))
    (folder / "key.pem").write_bytes(key.private_bytes(encoding, pem, serialization.NoEncryption()))
    return str(folder / "cert.pem"), str(folder / "key.pem")

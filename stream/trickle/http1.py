"""The client side of HTTP/1.1 as trickle needs it: the head of a request goes out before its body exists.

Ordinary clients hold the head back until the first byte of a body, limit the time of a whole request, or
stumble over repeated interim responses. One request at a time; the server may answer before the request has
ended.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

import h11

from stream.errors import InvalidInput
from stream.hosts import refusal
from stream.trickle.wire import NotWritten, Wire

MAX_SHORT_BODY = 64 * 1024
TLS_SHUTDOWN_TIMEOUT = 1.0
USER_AGENT = "headrace"


class Chunk(NamedTuple):
    """Bytes of a body and `time.monotonic_ns` at which they were read from the socket."""

    data: bytes
    arrived: int


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an http or https URL leads; ``path`` has no trailing slash."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """Raises `InvalidInput` on anything but an http or https URL with a path but no query or user."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InvalidInput(f"{url!r} is not a URL: {error}", field="url") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInput(f"{url!r} is not an http or https URL", field="url")
        if parts.query or parts.fragment or "@" in parts.netloc:
            raise InvalidInput("a trickle URL has no query, fragment or credentials", field="url")
        path = parts.path.rstrip("/")
        if not path or not path.isascii() or any(c <= " " or c == "\x7f" for c in path):
            raise InvalidInput(f"{url!r} names no channel", field="url")
        return cls(parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80), path)

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


class ResponseHead:
    """Status and headers of a final response; names are looked up without regard to case."""

    def __init__(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.status = status
        self._headers = {name.lower(): value for name, value in headers}

    def get(self, name: str) -> str | None:
        value = self._headers.get(name.lower().encode())
        return None if value is None else value.decode("latin-1")

    @property
    def closes_connection(self) -> bool:
        return "close" in (self.get("Connection") or "").lower()


class ClientConnection:
    """A request and its response, then perhaps another. One task may send while another reads."""

    def __init__(self, wire: Wire, endpoint: Endpoint) -> None:
        self._wire = wire
        self._endpoint = endpoint
        self._http = h11.Connection(our_role=h11.CLIENT)
        self._arrived = 0
        self._at_end = False
        self._complete = False
        self.interim_responses = 0

    async def send_head(self, method: str, path: str, headers: Mapping[str, str], *, body: bool) -> None:
        """Send the head at once; with ``body``, pieces of unknown number follow. Raises `ConnectionError`."""
        fields = [("Host", self._endpoint.authority), ("User-Agent", USER_AGENT), *headers.items()]
        if body:
            fields.append(("Transfer-Encoding", "chunked"))
        await self._send(h11.Request(method=method, target=path, headers=fields))
        if not body:
            await self._send(h11.EndOfMessage())

    def put_body(self, data: bytes) -> None:
        """Hand over a piece of the body, at least one byte.

        Raises `NotWritten` when the server was gone before, another `ConnectionError` when it goes now.
        """
        if self._wire.gone:
            raise NotWritten("the server closed the connection")
        framed = self._http.send(h11.Data(data=data))
        if framed:
            self._wire.put(framed)

    @property
    def is_full(self) -> bool:
        """Whether `drain` would wait."""
        return self._wire.is_full

    async def drain(self) -> None:
        """Wait while the server takes nothing; raises `ConnectionError` when it is gone."""
        await self._wire.drain()

    async def end_body(self) -> None:
        await self._send(h11.EndOfMessage())

    async def response(self) -> ResponseHead:
        """The final response's head, however many interim ones precede it. Raises `ConnectionError`."""
        while True:
            event = await self._event()
            if isinstance(event, h11.Response):
                return ResponseHead(event.status_code, list(event.headers))
            self.interim_responses += 1

    async def read_chunk(self) -> Chunk | None:
        """The next bytes of the body, None at its end; raises `ConnectionError` when it breaks off."""
        if self._complete:
            return None
        event: h11.Event | None = await self._event()
        pieces = []
        while isinstance(event, h11.Data):
            pieces.append(bytes(event.data))
            event = self._parse()
        self._complete = isinstance(event, h11.EndOfMessage)
        return Chunk(b"".join(pieces), self._arrived) if pieces else None

    async def read_body(self, limit: int = MAX_SHORT_BODY) -> bytes:
        """A short body, cut off after ``limit`` bytes."""
        body = b""
        while len(body) < limit and (chunk := await self.read_chunk()) is not None:
            body += chunk.data
        return body[:limit]

    def reuse(self) -> bool:
        """Make ready for another request after a whole response; False when there can be none."""
        http = self._http
        if self._wire.gone or http.our_state is not h11.DONE or http.their_state is not h11.DONE:
            return False
        http.start_next_cycle()
        self._complete = False
        return True

    async def wait_gone(self) -> None:
        """Return when the server has ended the connection; for whoever reads nothing at the time."""
        gone = asyncio.Event()
        self._wire.notify_gone(gone.set)
        try:
            await gone.wait()
        finally:
            self._wire.notify_gone(None)

    async def close(self) -> None:
        """Drop the connection and return when its descriptor is closed."""
        self._wire.abort()
        await self._wire.wait_lost()

    async def _send(self, event: h11.Request | h11.Data | h11.EndOfMessage) -> None:
        data = self._http.send(event)
        if data:
            await self._wire.write(data)

    async def _event(self) -> h11.Event:
        while (event := self._parse()) is None:
            received = await self._wire.read()
            self._arrived = received.at
            self._at_end = not received.data
            self._http.receive_data(received.data)
        return event

    def _parse(self) -> h11.Event | None:
        """What the bytes at hand say; None when more are needed."""
        try:
            event = self._http.next_event()
        except h11.RemoteProtocolError as error:
            cause = (
                "the server closed the connection" if self._at_end else f"the answer is not HTTP ({error})"
            )
            raise ConnectionResetError(cause) from None
        if isinstance(event, h11.ConnectionClosed):
            raise ConnectionResetError("the server closed the connection")
        # What is left are h11's two sentinels, which are classes and not events.
        return None if isinstance(event, type) else event


@lru_cache(maxsize=2)
def tls_context(verify: bool) -> ssl.SSLContext:
    """A client's context; without ``verify`` any certificate will do."""
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


@asynccontextmanager
async def connect(endpoint: Endpoint, *, verify_tls: bool, timeout: float) -> AsyncIterator[ClientConnection]:
    """A connection that is dropped at the end of the block; raises `OSError` (a time-out included)."""
    connection = await open_connection(endpoint, verify_tls=verify_tls, timeout=timeout)
    try:
        yield connection
    finally:
        await connection.close()


async def open_connection(endpoint: Endpoint, *, verify_tls: bool, timeout: float) -> ClientConnection:
    """A connection that the caller closes; raises `OSError` (a time-out included)."""
    context = tls_context(verify_tls) if endpoint.scheme == "https" else None
    try:
        async with asyncio.timeout(timeout):
            transport, wire = await asyncio.get_running_loop().create_connection(
                Wire,
                endpoint.host,
                endpoint.port,
                ssl=context,
                ssl_handshake_timeout=timeout if context else None,
                ssl_shutdown_timeout=TLS_SHUTDOWN_TIMEOUT if context else None,
            )
    except TimeoutError:
        raise TimeoutError(f"no connection within {timeout:g} s") from None
    peer = transport.get_extra_info("peername")
    refused = refusal(endpoint.host, peer[0]) if peer else "the connection was lost"
    if refused is not None:
        wire.abort()
        await wire.wait_lost()
        raise PermissionError(refused)
    return ClientConnection(wire, endpoint)


async def short_request(
    method: str, endpoint: Endpoint, path: str, *, verify_tls: bool, timeout: float
) -> tuple[ResponseHead, bytes]:
    """A request without a body on a fresh connection; ``timeout`` covers it whole. Raises `OSError`."""
    async with (
        asyncio.timeout(timeout),
        connect(endpoint, verify_tls=verify_tls, timeout=timeout) as connection,
    ):
        await connection.send_head(method, path, {}, body=False)
        head = await connection.response()
        return head, await connection.read_body()

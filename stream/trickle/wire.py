"""One TCP or TLS connection: bytes with the moment of their arrival, and back-pressure both ways."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, cast

READ_LIMIT = 256 * 1024
WRITE_LIMIT = 64 * 1024

# A peer that vanished without a word is noticed in about half a minute, however long nothing is sent.
KEEPALIVE_IDLE = 15
KEEPALIVE_INTERVAL = 5
KEEPALIVE_PROBES = 3


class Received(NamedTuple):
    """Bytes of one read of the socket, and `time.monotonic_ns` of that read. No bytes: the peer has ended."""

    data: bytes
    at: int


class NotWritten(ConnectionResetError):
    """The connection was lost before any of the bytes were handed to the system."""


class Wire(asyncio.Protocol):
    """Reads are pulled: once `READ_LIMIT` bytes lie unread, the socket is left alone and the peer must wait.

    One task may read and one may write at a time. Cancelling a read loses nothing.
    """

    def __init__(self, on_connected: Callable[[Wire], None] | None = None) -> None:
        self._on_connected = on_connected
        self._transport: asyncio.Transport | None = None
        self._received: deque[Received] = deque()
        self._unread = 0
        self._paused = False
        self._ended = False
        self._error: Exception | None = None
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._lost = asyncio.Event()
        self._on_gone: Callable[[], None] | None = None

    @property
    def gone(self) -> bool:
        """Whether the peer has ended its side or the connection is lost."""
        return self._ended or self._lost.is_set()

    @property
    def encrypted(self) -> bool:
        return self._transport is not None and self._transport.get_extra_info("ssl_object") is not None

    def notify_gone(self, callback: Callable[[], None] | None) -> None:
        """Call ``callback`` when `gone` becomes true; one callback at a time, None for no more."""
        self._on_gone = callback
        if callback is not None and self.gone:
            callback()

    async def read(self) -> Received:
        """The next bytes; raises `ConnectionError` when the connection broke rather than ended."""
        while not self._received:
            if self._error is not None:
                raise self._error
            if self.gone:
                return Received(b"", time.monotonic_ns())
            self._readable.clear()
            await self._readable.wait()
        received = self._received.popleft()
        self._unread -= len(received.data)
        if self._paused and self._unread <= READ_LIMIT // 2 and self._transport is not None:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()
        return received

    async def write(self, data: bytes) -> None:
        """`put`, then `drain`."""
        self.put(data)
        await self.drain()

    def put(self, data: bytes) -> None:
        """Hand ``data`` over. Raises `NotWritten` when the connection was lost before."""
        transport = self._transport
        if transport is not None and not self._lost.is_set() and not transport.is_closing():
            transport.write(data)
        # A transport tries to send at once, and is closing when the system has refused.
        if transport is None or self._lost.is_set() or transport.is_closing():
            raise NotWritten(str(self._error or "the connection is closed"))

    @property
    def is_full(self) -> bool:
        """Whether `WRITE_LIMIT` bytes are queued before the socket, so that `drain` would wait."""
        return not self._writable.is_set()

    async def drain(self) -> None:
        """Wait until less than `WRITE_LIMIT` bytes are queued; raises `ConnectionError` when it is lost."""
        if self.is_full:
            await self._writable.wait()
        if self._lost.is_set():
            raise self._error or ConnectionResetError("the connection is closed")

    def end_writing(self) -> None:
        """Tell the peer that nothing follows, where the transport can."""
        if (
            self._transport is not None
            and not self._transport.is_closing()
            and self._transport.can_write_eof()
        ):
            try:
                self._transport.write_eof()
            except OSError as error:
                # asyncio's own loop hears of a reset only when it reads, and this may come before.
                raise ConnectionResetError(str(error)) from None

    def abort(self) -> None:
        """Drop the connection with whatever is queued."""
        if self._transport is not None:
            self._transport.abort()

    async def close(self, timeout: float) -> None:
        """Send what is queued and close; what is not sent after ``timeout`` seconds is dropped."""
        if self._transport is None:
            return
        try:
            self._transport.close()
            async with asyncio.timeout(timeout):
                await self._lost.wait()
        except TimeoutError:
            pass
        finally:
            self._transport.abort()

    async def wait_lost(self) -> None:
        """Return when the descriptor is closed."""
        if self._transport is not None:
            await self._lost.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's and asyncio's transports do not share a base class.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_LIMIT)
        keep_alive(self._transport.get_extra_info("socket"))
        if self._on_connected is not None:
            self._on_connected(self)

    def data_received(self, data: bytes) -> None:
        self._received.append(Received(data, time.monotonic_ns()))
        self._unread += len(data)
        if self._unread > READ_LIMIT and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._readable.set()

    def eof_received(self) -> bool:
        self._ended = True
        self._wake()
        return not self.encrypted

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._error = exc if isinstance(exc, ConnectionError) else ConnectionResetError(str(exc))
        self._lost.set()
        self._writable.set()
        self._wake()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _wake(self) -> None:
        self._readable.set()
        if self._on_gone is not None:
            self._on_gone()


def keep_alive(sock: socket.socket | None) -> None:
    """Have the kernel probe an idle TCP peer; other kinds of socket are left as they are."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)

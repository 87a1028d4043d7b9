"""The wire between worker and engine: small messages over a socket pair, memory files for what is large.

A message is a JSON object in one datagram of an AF_UNIX SOCK_SEQPACKET pair, with file descriptors beside
it (unix(7), SCM_RIGHTS). One that does not fit into a datagram travels in a sealed memory file whose
descriptor takes its place. Frames lie in a `SharedBlock`, a memory file that both sides map
(memfd_create(2), fcntl(2) on seals). Nothing has a name in a file system, so nothing stays behind however
either side dies.

Standard library only: any interpreter can load this module.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import select
import socket
import struct
import time
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from headrace.engine.memory import (
    BLOCK_SEALS,
    LinkClosed,
    LinkError,
    LinkOverflow,
    MalformedMessage,
    SharedBlock,
    check_file,
    memory_file,
)

__all__ = [
    "Link",
    "LinkClosed",
    "LinkError",
    "LinkOverflow",
    "MalformedMessage",
    "Message",
    "SharedBlock",
]

INLINE_LIMIT = 32 * 1024
"""Bytes of JSON that travel in the datagram itself; well under every system's socket buffer."""
MESSAGE_LIMIT = 64 * 1024 * 1024
"""Bytes of JSON that a message may have at all."""
DESCRIPTOR_LIMIT = 64
"""Descriptors beside one message (the kernel's own bound is 253)."""
QUEUE_LIMIT = 256
"""Messages that wait for a peer that does not read."""

_INLINE = b"\0"
_IN_FILE = b"\1"
_SIZE = struct.Struct("!Q")
_READS_PER_WAKE = 32
# As plain numbers: an enumeration's arithmetic takes longer than the call.
_CTRUNC, _TRUNC, _CLOEXEC = int(socket.MSG_CTRUNC), int(socket.MSG_TRUNC), int(socket.MSG_CMSG_CLOEXEC)
_ANCILLARY = socket.CMSG_SPACE(DESCRIPTOR_LIMIT * 4)


class Message:
    """A received message: ``body`` and the descriptors that came with it.

    The descriptors belong to the message until they are taken; `close` closes those that nobody took.
    """

    __slots__ = ("_fds", "body")

    def __init__(self, body: dict[str, Any], fds: Sequence[int] = ()) -> None:
        self.body = body
        self._fds = list(fds)

    @property
    def op(self) -> str:
        """What the message asks for; the empty string when it does not say."""
        op = self.body.get("op")
        return op if isinstance(op, str) else ""

    @property
    def waiting_fds(self) -> int:
        """How many descriptors nobody has taken yet."""
        return len(self._fds)

    def take_fd(self) -> int:
        """The next descriptor, from now on the caller's. Raises `MalformedMessage` when there is none."""
        if not self._fds:
            raise MalformedMessage(f"message {self.op!r} should have brought a descriptor")
        return self._fds.pop(0)

    def close(self) -> None:
        fds, self._fds = self._fds, []
        _close_all(fds)


class Link:
    """One end of the wire. Not for use from several threads.

    Without a loop, `send`, `receive` and `flush` work by themselves. With one (`start`), messages arrive
    through a callback and what the socket does not take at once is sent when it does.
    """

    def __init__(self, sock: socket.socket, *, queue_limit: int = QUEUE_LIMIT) -> None:
        sock.setblocking(False)
        self._sock: socket.socket | None = sock
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._queue_limit = queue_limit
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_message: Callable[[Message], None] | None = None
        self._on_closed: Callable[[LinkError], None] | None = None

    @staticmethod
    def sockets() -> tuple[socket.socket, socket.socket]:
        """The two ends, neither of them inherited by other programs."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    @classmethod
    def from_fd(cls, fd: int) -> Link:
        """The end that a parent process left open as ``fd``."""
        sock = socket.socket(fileno=fd)
        sock.set_inheritable(False)
        return cls(sock)

    @property
    def closed(self) -> bool:
        return self._sock is None

    @property
    def backlog(self) -> int:
        """Messages that wait for the other side to read."""
        return len(self._queue)

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        on_message: Callable[[Message], None],
        on_closed: Callable[[LinkError], None],
    ) -> None:
        """Let ``loop`` drive the link.

        Descriptors that ``on_message`` does not take are closed after it. ``on_closed`` is called once, with
        `LinkClosed` or `MalformedMessage`, when the other side ends the link, but not after `close`.
        """
        sock = self._open()
        self._loop, self._on_message, self._on_closed = loop, on_message, on_closed
        loop.add_reader(sock.fileno(), self._readable)
        if self._queue:
            loop.add_writer(sock.fileno(), self._writable)

    def send(self, body: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """Send or queue a message; ``fds`` stay the caller's and may be closed on return.

        Raises `LinkClosed`, `LinkOverflow`, or `LinkError` for what is not JSON or too large.
        """
        self._open()
        if len(self._queue) >= self._queue_limit:
            raise LinkOverflow(f"the other side does not read: {len(self._queue)} messages wait")
        data = _encode(body)
        if len(data) <= INLINE_LIMIT:
            self._send_packet(_INLINE + data, fds)
            return
        fd = _message_file(data)
        try:
            self._send_packet(_IN_FILE + _SIZE.pack(len(data)), [fd, *fds])
        finally:
            os.close(fd)

    def receive(self) -> Message | None:
        """The next message, None when there is none at the moment.

        Raises `LinkClosed` at the end, `MalformedMessage` for what is not a message.
        """
        sock = self._open()
        try:
            data, ancillary, flags, _ = sock.recvmsg(INLINE_LIMIT + 1, _ANCILLARY, _CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            raise LinkClosed(f"the link broke: {error}") from error
        fds = _descriptors(ancillary)
        if not data and not fds:
            raise LinkClosed("the other side closed the link")
        try:
            if flags & _CTRUNC:
                raise MalformedMessage("descriptors were lost on the way (too many, or too many open files)")
            if flags & _TRUNC:
                raise MalformedMessage(f"a datagram over {INLINE_LIMIT + 1} bytes")
            return Message(_decode(data, fds), fds)
        except BaseException:
            _close_all(fds)
            raise

    def flush(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds for the queue to drain; whether it has."""
        deadline = time.monotonic() + timeout
        while self._queue and self._sock is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            poll = select.poll()
            poll.register(self._sock, select.POLLOUT)
            poll.poll(left * 1000)
            self._drain()
        return not self._queue

    def close(self) -> None:
        """Close this end; the other side sees the end of the link. Says nothing to ``on_closed``."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(sock.fileno())
            self._loop.remove_writer(sock.fileno())
        self._loop = self._on_message = self._on_closed = None
        sock.close()
        for _, fds in self._queue:
            _close_all(fds)
        self._queue.clear()

    def _open(self) -> socket.socket:
        if self._sock is None:
            raise LinkClosed("the link is closed")
        return self._sock

    def _send_packet(self, data: bytes, fds: Sequence[int]) -> None:
        if not self._queue and self._try_packet(data, fds):
            return
        copies: list[int] = []
        try:
            copies.extend(os.dup(fd) for fd in fds)
        except OSError as error:
            _close_all(copies)
            raise LinkError(f"a message with {len(fds)} descriptors cannot wait: {error}") from error
        self._queue.append((data, copies))
        if self._loop is not None and len(self._queue) == 1:
            self._loop.add_writer(self._open().fileno(), self._writable)

    def _try_packet(self, data: bytes, fds: Sequence[int]) -> bool:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        try:
            self._open().sendmsg([data], ancillary)
        except (BlockingIOError, InterruptedError):
            return False
        except (BrokenPipeError, ConnectionError) as error:
            raise LinkClosed(f"the other side closed the link: {error}") from error
        except OSError as error:
            raise LinkError(f"a message of {len(data)} bytes, {len(fds)} descriptors: {error}") from error
        return True

    def _drain(self) -> None:
        while self._queue:
            data, fds = self._queue[0]
            try:
                if not self._try_packet(data, fds):
                    return
            except LinkError as error:
                self._fail(error)
                return
            self._queue.popleft()
            _close_all(fds)

    def _fail(self, error: LinkError) -> None:
        on_closed = self._on_closed
        self.close()
        if on_closed is not None:
            on_closed(error)

    def _writable(self) -> None:
        self._drain()
        if not self._queue and self._loop is not None and self._sock is not None:
            self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        for _ in range(_READS_PER_WAKE):
            if self._sock is None or self._on_message is None:
                return
            try:
                message = self.receive()
            except LinkError as error:
                self._fail(error)
                return
            if message is None:
                return
            try:
                self._on_message(message)
            finally:
                message.close()


def _encode(body: Mapping[str, Any]) -> bytes:
    try:
        data = json.dumps(body, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise LinkError(f"a message that is not JSON: {error}") from error
    if len(data) > MESSAGE_LIMIT:
        raise LinkError(f"a message of {len(data)} bytes; the limit is {MESSAGE_LIMIT}")
    return data


def _decode(data: bytes, fds: list[int]) -> dict[str, Any]:
    """The object in ``data``, or in the first of ``fds``, which is then closed and taken off the list."""
    kind, rest = data[:1], data[1:]
    if kind == _IN_FILE:
        if len(rest) != _SIZE.size or not fds:
            raise MalformedMessage("a message in a memory file, without its size or its file")
        fd = fds.pop(0)
        try:
            rest = _read_message_file(fd, _SIZE.unpack(rest)[0])
        finally:
            os.close(fd)
    elif kind != _INLINE:
        raise MalformedMessage(f"a datagram that begins with {kind!r}")
    try:
        body = json.loads(rest)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"a message that is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise MalformedMessage(f"a message that is a {type(body).__name__}, not an object")
    return body


def _message_file(data: bytes) -> int:
    try:
        fd = memory_file("headrace-message")
    except OSError as error:
        raise LinkError(f"no memory file for a message of {len(data)} bytes: {error}") from error
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, BLOCK_SEALS | fcntl.F_SEAL_WRITE)
    except OSError as error:
        os.close(fd)
        raise LinkError(f"no memory file for a message of {len(data)} bytes: {error}") from error
    return fd


def _read_message_file(fd: int, size: int) -> bytes:
    if size > MESSAGE_LIMIT:
        raise MalformedMessage(f"a message of {size} bytes; the limit is {MESSAGE_LIMIT}")
    try:
        check_file(fd, size, BLOCK_SEALS | fcntl.F_SEAL_WRITE)
        data = bytearray()
        while len(data) < size:
            part = os.pread(fd, size - len(data), len(data))
            if not part:
                break
            data += part
    except OSError as error:
        raise MalformedMessage(f"a message file that cannot be read: {error}") from error
    return bytes(data)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)

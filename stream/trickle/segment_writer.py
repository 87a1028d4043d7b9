"""One segment on its way to a trickle server, from the request sent ahead to the server's confirmation."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from stream.errors import SinkError
from stream.trickle.http1 import ClientConnection, Endpoint, ResponseHead, open_connection, short_request
from stream.trickle.protocol import CLOSED_HEADER, RESET_HEADER, ChannelClosed, SegmentLost
from stream.trickle.retry import Backoff
from stream.trickle.wire import NotWritten

log = logging.getLogger(__name__)

SEND_SIZE = 64 * 1024

# What is kept of a segment's beginning, to send it again when the server says that it took nothing.
REPLAY_LIMIT = 64 * 1024

# After a failed write the server's reason may still be on its way.
LAST_WORD = 0.2


@dataclass(frozen=True, slots=True)
class PublisherOptions:
    """What all segments of a publisher have in common; times in seconds."""

    content_type: str
    verify_tls: bool
    connect_timeout: float
    write_timeout: float
    retry_for: float
    max_pending_bytes: int


@dataclass(slots=True)
class PublisherStatistics:
    """Counts since the start: ``segments`` confirmed by the server, ``abandoned`` those given up."""

    segments: int = 0
    bytes: int = 0
    reconnects: int = 0
    abandoned: int = 0


class SegmentWriter:
    """A segment that is being written; made by `TricklePublisher.next_segment`.

    Until its first byte is sent it survives a lost connection. After that it is given up: `write`, `close`
    and `confirmed` raise `SegmentLost`, and the next segment can be written. They raise `ChannelClosed` when
    the channel has ended and another `SinkError` when the server cannot be reached or refuses.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        seq: int,
        options: PublisherOptions,
        statistics: PublisherStatistics,
        on_over: Callable[[SegmentWriter], None],
        *,
        reset: bool = False,
    ) -> None:
        self.seq = seq
        self.failure: SinkError | None = None
        self._endpoint = endpoint
        self._options = options
        self._statistics = statistics
        self._on_over = on_over
        self._reset = reset
        self._handed_out = False
        self._pending: deque[bytes | memoryview] = deque()
        self._pending_bytes = 0
        self._sent = 0
        self._kept: list[bytes] | None = []
        self._ended = False
        self._complete = False
        self._repeated = False
        self._abandoned = False
        self._scope: asyncio.Timeout | None = None
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._ready = asyncio.Event()
        self._over = asyncio.Event()
        self._settled = asyncio.Event()

    @property
    def pending_bytes(self) -> int:
        """Bytes that wait to be sent; `write` waits while they are ``max_pending_bytes`` or more."""
        return self._pending_bytes

    @property
    def ended(self) -> bool:
        """Whether `close` was called."""
        return self._ended

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Queue ``data``; waits while too much is queued."""
        self._require_open()
        while self._pending_bytes >= self._options.max_pending_bytes:
            self._room.clear()
            await self._room.wait()
            self._require_open()
        if len(data):
            self._pending.append(bytes(data))
            self._pending_bytes += len(data)
            self._changed.set()

    async def close(self) -> None:
        """The segment is complete. What is queued goes on being sent; `confirmed` waits for that."""
        self.end()
        self._raise_failure()

    async def confirmed(self) -> None:
        """Wait until the server has the whole segment."""
        await self._over.wait()
        self._raise_failure()

    async def abandon(self) -> None:
        """Drop what is not sent and tell the server that nothing follows; raises nothing."""
        self.give_up()
        await self._settled.wait()

    def end(self) -> None:
        """As `close`, without telling of a failure."""
        self._ended = True
        self._changed.set()

    def give_up(self) -> None:
        """As `abandon`, without waiting for the server."""
        self._abandoned = True
        if self._scope is not None and not self._over.is_set():
            self._scope.reschedule(asyncio.get_running_loop().time())

    def hand_out(self) -> None:
        """From now on the number stays."""
        self._handed_out = True

    async def ready(self) -> None:
        """Wait until the request for the segment is with the server."""
        await self._ready.wait()
        self._raise_failure()

    async def carry(self) -> None:
        """Bring the segment to the server; runs as a task of its own, and its outcome is `failure`."""
        try:
            async with asyncio.timeout(0 if self._abandoned else None) as self._scope:
                await self._deliver()
            self._finish(None)
        except TimeoutError:
            self._finish(SegmentLost(f"{self._url} was abandoned"))
        except SinkError as error:
            self._finish(error)
        if isinstance(self.failure, SegmentLost):
            self._statistics.abandoned += 1
            await self._delete()

    def settle(self) -> None:
        """`carry` has come to its end, or was cancelled, perhaps before it began."""
        if not self._over.is_set():
            self._finish(SinkError(f"{self._url}: the publisher was closed"))
        self._settled.set()

    @property
    def _url(self) -> str:
        return f"{self._endpoint}/{self.seq}"

    def _finish(self, failure: SinkError | None) -> None:
        self.failure = failure
        self._pending.clear()
        self._pending_bytes = 0
        self._kept = None
        for event in (self._over, self._ready, self._room):
            event.set()
        self._on_over(self)

    def _require_open(self) -> None:
        self._raise_failure()
        if self._ended or self._over.is_set():
            raise SinkError(f"{self._url} is closed already")

    def _raise_failure(self) -> None:
        if self.failure is not None:
            raise self.failure

    async def _deliver(self) -> None:
        """Connect, send and be confirmed, again and again while nothing is lost by it."""
        backoff = Backoff(self._options.retry_for)
        while True:
            begun = time.monotonic()
            try:
                head = await self._attempt()
            except ssl.SSLCertVerificationError as error:
                raise SinkError(f"{self._endpoint}: its certificate is not valid: {error}") from None
            except OSError as error:
                cause = str(error) or type(error).__name__
                if self._sent:
                    raise SegmentLost(f"{self._url} broke off after {self._sent} bytes: {cause}") from None
            else:
                if self._judge(head):
                    return
                cause = f"it answered {head.status} before the segment was sent"
            now = time.monotonic()
            pause = backoff.failed(now, held=now - begun)
            if pause is None:
                raise SinkError(f"cannot write {self._url}: {cause}")
            self._statistics.reconnects += 1
            await asyncio.sleep(pause)

    def _judge(self, head: ResponseHead) -> bool:
        """Whether the segment is done; False when it is to be sent again."""
        if head.status == 404:
            raise ChannelClosed(f"{self._endpoint}: the channel does not exist (404)")
        if head.get(CLOSED_HEADER):
            raise ChannelClosed(f"{self._endpoint}: the channel was closed")
        if head.status == 200:
            return self._judge_accepted(head)
        if head.status in (429, 500, 502, 503, 504) and not self._sent:
            return False
        if head.status == 413 or self._sent:
            raise SegmentLost(f"{self._url}: the server answered {head.status}")
        raise SinkError(f"cannot write {self._url}: the server answered {head.status}")

    def _judge_accepted(self, head: ResponseHead) -> bool:
        """200. The server took nothing if it came early, or with the end of the connection.

        It says so when the segment was closed before its first byte came. A short segment can be under way as
        a whole by then; sent again under its number it is taken, or discarded if it was there after all.
        """
        doubtful = head.closes_connection and self._sent > 0 and self._kept is not None
        if self._complete and (self._repeated or not doubtful):
            self._statistics.segments += self._sent > 0
            return True
        if self._kept is None or (self._repeated and self._handed_out):
            raise SegmentLost(f"{self._url} was closed by the server or another publisher")
        if self._repeated:
            self.seq += 1
        self._repeated = not self._repeated
        self._pending.extendleft(reversed(self._kept))
        self._pending_bytes += self._sent
        self._kept, self._sent, self._complete = [], 0, False
        return False

    async def _attempt(self) -> ResponseHead:
        """One POST; raises `OSError` when it breaks or stalls."""
        connection = await open_connection(
            self._endpoint, verify_tls=self._options.verify_tls, timeout=self._options.connect_timeout
        )
        try:
            headers = {"Content-Type": self._options.content_type}
            if self._reset:
                headers[RESET_HEADER] = "1"
            await connection.send_head("POST", f"{self._endpoint.path}/{self.seq}", headers, body=True)
            self._ready.set()
            return await self._exchange(connection)
        finally:
            await connection.close()

    async def _exchange(self, connection: ClientConnection) -> ResponseHead:
        answer = asyncio.create_task(connection.response())
        answer.add_done_callback(lambda _: self._changed.set())
        timeout = self._options.write_timeout
        try:
            try:
                await self._send_body(connection, answer)
            except OSError as error:
                await asyncio.wait({answer}, timeout=LAST_WORD)
                if not answer.done() or answer.exception() is not None:
                    raise error from None
            await asyncio.wait({answer}, timeout=timeout)
            if not answer.done():
                raise TimeoutError(f"no answer within {timeout:g} s")
            return answer.result()
        finally:
            answer.cancel()
            await asyncio.wait({answer})
            if not answer.cancelled():
                answer.exception()

    async def _send_body(self, connection: ClientConnection, answer: asyncio.Task[ResponseHead]) -> None:
        """Send what comes until `close`, or until the server answers. Raises `OSError`."""
        timeout = self._options.write_timeout
        try:
            while not answer.done():
                if self._pending:
                    data = self._take()
                    try:
                        connection.put_body(data)
                    except NotWritten:
                        self._put_back(data)
                        raise
                    if connection.is_full:
                        async with asyncio.timeout(timeout):
                            await connection.drain()
                elif self._ended:
                    async with asyncio.timeout(timeout):
                        await connection.end_body()
                    self._complete = True
                    return
                else:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise TimeoutError(f"the server has taken nothing for {timeout:g} s") from None

    def _take(self) -> bytes:
        """Up to `SEND_SIZE` bytes of what is pending."""
        pieces: list[bytes | memoryview] = []
        size = 0
        while self._pending and size < SEND_SIZE:
            piece = self._pending.popleft()
            if size + len(piece) > SEND_SIZE:
                whole, cut = memoryview(piece), SEND_SIZE - size
                self._pending.appendleft(whole[cut:])
                piece = whole[:cut]
            pieces.append(piece)
            size += len(piece)
        data = b"".join(pieces)
        self._pending_bytes -= size
        self._sent += size
        self._statistics.bytes += size
        if self._kept is not None:
            self._kept.append(data)
            if self._sent > REPLAY_LIMIT:
                self._kept = None
        self._room.set()
        return data

    def _put_back(self, data: bytes) -> None:
        """Undo the last `_take`."""
        self._pending.appendleft(data)
        self._pending_bytes += len(data)
        self._sent -= len(data)
        self._statistics.bytes -= len(data)
        if self._sent == 0:
            self._kept = []
        elif self._kept is not None:
            self._kept.pop()

    async def _delete(self) -> None:
        options = self._options
        try:
            await short_request(
                "DELETE",
                self._endpoint,
                f"{self._endpoint.path}/{self.seq}",
                verify_tls=options.verify_tls,
                timeout=options.connect_timeout,
            )
        except OSError as error:
            log.info("could not tell the server that %s was given up: %s", self._url, error)

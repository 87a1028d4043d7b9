"""Writes segments to a trickle channel, each with its request sent ahead while the one before is written."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from typing import Self

from stream.errors import SinkError
from stream.trickle.http1 import Endpoint, ResponseHead, short_request
from stream.trickle.protocol import NEXT, SegmentLost, parse_integer
from stream.trickle.retry import Backoff
from stream.trickle.segment_writer import PublisherOptions, PublisherStatistics, SegmentWriter

log = logging.getLogger(__name__)

# The server keeps five: these and the one that waits for its first byte.
MAX_IN_FLIGHT = 4
FLUSH_TIMEOUT = 2.0


class TricklePublisher:
    """Publishes to one channel; `start` it, then write segment after segment.

    ``verify_tls`` false accepts any certificate. Times in seconds: ``connect_timeout`` for one connection,
    ``write_timeout`` how long the server may take nothing or leave a whole segment unconfirmed,
    ``retry_for`` how long an unreachable server is tried. At most ``max_pending_bytes`` and one more write
    are queued a segment. Use as ``async with`` to have it closed; the channel is then deleted.
    """

    def __init__(
        self,
        url: str,
        content_type: str = "video/mp2t",
        *,
        verify_tls: bool = True,
        connect_timeout: float = 5.0,
        write_timeout: float = 10.0,
        retry_for: float = 10.0,
        max_pending_bytes: int = 1024 * 1024,
    ) -> None:
        self._endpoint = Endpoint.parse(url)
        self._options = PublisherOptions(
            content_type, verify_tls, connect_timeout, write_timeout, retry_for, max_pending_bytes
        )
        self.statistics = PublisherStatistics()
        self._tasks: dict[SegmentWriter, asyncio.Task[None]] = {}
        self._in_flight: set[SegmentWriter] = set()
        self._waiting: SegmentWriter | None = None
        self._room = asyncio.Event()
        self._failure: SinkError | None = None
        self._ended = asyncio.Event()
        self._closed = False

    @property
    def url(self) -> str:
        return str(self._endpoint)

    @property
    def failure(self) -> SinkError | None:
        """Why nothing more can be published: `ChannelClosed` at the channel's end, None while all is well."""
        return self._failure

    async def wait_ended(self) -> None:
        """Return when nothing more can be published, for the reason that `failure` then gives."""
        await self._ended.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def start(self, seq: int = 0, *, reset: bool = False) -> None:
        """Send the request for the first segment, ``seq``; `NEXT` asks the server where it stands.

        ``reset`` has the server end all segments with lower numbers, for readers of a publisher that is gone.
        Raises `SinkError` when the server cannot be reached or refuses. That there is no such channel (404)
        shows a moment later: `wait_ended` returns, and `next_segment` or `write` raise `ChannelClosed`.
        """
        if self._waiting is not None:
            raise RuntimeError("a publisher is started once")
        if seq == NEXT:
            seq = await self._ask_next()
        if self._closed:
            raise SinkError(f"{self._endpoint}: the publisher is closed")
        if seq < 0:
            raise ValueError(f"{seq} is not a segment's number")
        await self._preconnect(seq, reset=reset).ready()

    async def next_segment(self) -> SegmentWriter:
        """The next segment, its request with the server already; numbers rise and none is given twice.

        Waits while `MAX_IN_FLIGHT` segments are unconfirmed. Raises `ChannelClosed` at the end of the channel
        and `SinkError` when publishing has failed for good or the wait was longer than ``write_timeout``.
        """
        timeout = self._options.write_timeout
        try:
            async with asyncio.timeout(timeout):
                while len(self._in_flight) >= MAX_IN_FLIGHT and not self._closed and self._failure is None:
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            count = len(self._in_flight)
            raise SinkError(f"{self._endpoint}: {count} segments unfinished for {timeout:g} s") from None
        if self._failure is not None:
            raise self._failure
        if self._closed or self._waiting is None:
            state = "closed" if self._closed else "not started"
            raise SinkError(f"{self._endpoint}: the publisher is {state}")
        writer = self._waiting
        writer.hand_out()
        self._in_flight.add(writer)
        self._preconnect(writer.seq + 1)
        return writer

    async def close(self, delete_channel: bool = True) -> None:
        """End publishing: flush for a moment what was closed, drop the rest. May be called again.

        ``delete_channel`` removes the channel for everybody, which is how readers learn of the end.
        Raises nothing; what could not be told to the server is logged.
        """
        if self._closed:
            return
        self._closed = True
        self._room.set()
        self._ended.set()
        try:
            await self._flush(delete_channel)
        finally:
            for task in self._tasks.values():
                task.cancel()
            if self._tasks:
                await asyncio.wait(set(self._tasks.values()))
        if delete_channel and self._waiting is not None and self._failure is None:
            await self._delete_channel()

    def _preconnect(self, seq: int, *, reset: bool = False) -> SegmentWriter:
        writer = SegmentWriter(
            self._endpoint, seq, self._options, self.statistics, self._note_over, reset=reset
        )
        self._waiting = writer
        task = asyncio.create_task(writer.carry())
        self._tasks[writer] = task
        task.add_done_callback(lambda _: self._note_settled(writer))
        return writer

    def _note_settled(self, writer: SegmentWriter) -> None:
        del self._tasks[writer]
        writer.settle()

    def _note_over(self, writer: SegmentWriter) -> None:
        self._in_flight.discard(writer)
        self._room.set()
        failure = writer.failure
        if failure is not None and not isinstance(failure, SegmentLost) and not self._closed:
            self._failure = self._failure or failure
            self._ended.set()

    async def _flush(self, delete_channel: bool) -> None:
        """Wait for what was closed. A channel that stays is left without a segment that never ends."""
        waiting = self._waiting
        writers = {writer for writer in self._tasks if writer is not waiting}
        if not delete_channel:
            for writer in writers:
                if not writer.ended:
                    writer.give_up()
            if waiting is not None and waiting in self._tasks:
                # Its readers get an empty segment and wait for the one after it.
                waiting.hand_out()
                waiting.end()
                writers.add(waiting)
        flushing = {self._tasks[writer] for writer in writers if writer.ended or not delete_channel}
        if flushing:
            await asyncio.wait(flushing, timeout=FLUSH_TIMEOUT)

    async def _delete_channel(self) -> None:
        try:
            head, _ = await self._request("DELETE", self._endpoint.path)
        except OSError as error:
            log.warning(
                "could not delete the channel %s: %s", self._endpoint, str(error) or type(error).__name__
            )
        else:
            if head.status != 200:
                log.info("deleting the channel %s was answered with %d", self._endpoint, head.status)

    async def _request(self, method: str, path: str) -> tuple[ResponseHead, bytes]:
        options = self._options
        return await short_request(
            method, self._endpoint, path, verify_tls=options.verify_tls, timeout=options.connect_timeout
        )

    async def _ask_next(self) -> int:
        """Where the channel stands; 0 when the server does not know, as with one that is still to be made."""
        backoff = Backoff(self._options.retry_for)
        while True:
            try:
                head, body = await self._request("GET", f"{self._endpoint.path}/next")
            except ssl.SSLCertVerificationError as error:
                raise SinkError(f"{self._endpoint}: its certificate is not valid: {error}") from None
            except OSError as error:
                cause = str(error) or type(error).__name__
            else:
                number = parse_integer(body.decode("latin-1").strip()) if head.status == 200 else None
                return max(number or 0, 0)
            pause = backoff.failed(time.monotonic())
            if pause is None:
                raise SinkError(f"cannot write {self._endpoint}: {cause}")
            self.statistics.reconnects += 1
            await asyncio.sleep(pause)

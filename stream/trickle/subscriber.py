"""Reads the segments of a trickle channel, one after the other, as their bytes arrive."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Self

from stream.errors import SourceError, TooLarge
from stream.trickle.cursor import Ask, Cursor, Deliver, Ended, Failed, Verdict
from stream.trickle.fetch import Answer, Fetcher
from stream.trickle.http1 import Chunk, Endpoint
from stream.trickle.protocol import CURRENT, SEGMENT_MISSING, ChannelIdle

MAX_RESUMES = 3


@dataclass(slots=True)
class SubscriberStatistics:
    """Counts since the start: ``empty`` segments came without a byte, ``skipped`` ones never came."""

    segments: int = 0
    bytes: int = 0
    empty: int = 0
    skipped: int = 0
    truncated: int = 0
    resumed: int = 0
    reconnects: int = 0


class SubscribedSegment:
    """A segment on its way. Its bytes are read once, by `chunks` or `read`.

    ``latest`` is the channel's next number as the server saw it, None at the live edge. ``truncated`` becomes
    true when the end could not be had: the connection broke and the segment could not be continued, or it
    stalled while the following one had begun. No byte is delivered twice.
    """

    def __init__(
        self,
        seq: int,
        answer: Answer,
        fetcher: Fetcher,
        statistics: SubscriberStatistics,
        stall_timeout: float,
        superseded: Callable[[], bool],
    ) -> None:
        assert answer.first is not None
        self.seq = seq
        self.latest = answer.latest
        self.content_type = answer.content_type
        self.truncated = False
        self._first: Chunk | None = answer.first
        self._connection = answer.connection
        self._fetcher = fetcher
        self._statistics = statistics
        self._stall_timeout = stall_timeout
        self._superseded = superseded
        self._delivered = 0
        self._checksum = 0
        self._resumes = 0
        self._closed = False

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """The bytes as they come, each with the time of its arrival, until the segment ends."""
        while (chunk := await self._next()) is not None:
            self._delivered += len(chunk.data)
            self._checksum = zlib.crc32(chunk.data, self._checksum)
            self._statistics.bytes += len(chunk.data)
            yield chunk
        await self.close()

    async def read(self, limit: int) -> bytes:
        """The whole segment; raises `TooLarge` once it has more than ``limit`` bytes."""
        body = bytearray()
        async for chunk in self.chunks():
            body += chunk.data
            if len(body) > limit:
                await self.close()
                raise TooLarge(f"segment {self.seq} is over the limit of {limit} bytes")
        return bytes(body)

    async def close(self) -> None:
        """Let go of the connection, whatever is still to come."""
        self._closed = True
        await self._connection.close()

    async def _next(self) -> Chunk | None:
        while not self._closed:
            if self._first is not None:
                chunk, self._first = self._first, None
                return chunk
            try:
                async with asyncio.timeout(self._stall_timeout):
                    return await self._connection.read_chunk()
            except TimeoutError:
                if self._superseded():
                    break
            except ConnectionError:
                if self._closed or not await self._resume():
                    break
        self.truncated = True
        self._statistics.truncated += 1
        return None

    async def _resume(self) -> bool:
        """Ask for the same segment again and go on after the bytes that were delivered already.

        The server sends a segment from its beginning. That it is still the same one is known by a checksum.
        """
        await self._connection.close()
        self._resumes += 1
        if self._resumes > MAX_RESUMES:
            return False
        same = False
        try:
            async with asyncio.timeout(self._stall_timeout):
                answer = await self._fetcher.get(self.seq)
                self._connection = answer.connection
                if not self._closed and answer.seq in (self.seq, None):
                    same = await self._skip_delivered(answer.first)
        except (TimeoutError, ConnectionError, SourceError):
            pass
        finally:
            if not same:
                await self._connection.close()
        self._statistics.resumed += same
        return same

    async def _skip_delivered(self, chunk: Chunk | None) -> bool:
        """Read past what was delivered; what follows it in the same chunk is kept. False: other bytes."""
        skipped = checksum = 0
        while chunk is not None:
            part = chunk.data[: self._delivered - skipped]
            skipped += len(part)
            checksum = zlib.crc32(part, checksum)
            if skipped == self._delivered:
                rest = chunk.data[len(part) :]
                self._first = Chunk(rest, chunk.arrived) if rest else None
                return checksum == self._checksum
            chunk = await self._connection.read_chunk()
        return False


class TrickleSubscriber:
    """Follows a channel from ``start`` (a number, `NEXT` or `CURRENT`) to its end.

    ``verify_tls`` false accepts any certificate. Times in seconds: ``connect_timeout`` for one connection;
    ``retry_for`` how long an unreachable server is tried; ``not_found_grace`` how long a channel may take to
    appear; ``idle_timeout`` how long to wait for a segment (None: for ever); ``reissue_after`` how long to
    hold a request open without an answer; ``stall_timeout`` after how long without a byte a segment is given
    up when the next one has begun; ``missing_patience`` how long the server may refuse every number.

    Reading is pull-based: what is not taken stays with the server. Use as ``async with``, or call `close`.
    """

    def __init__(
        self,
        url: str,
        *,
        start: int = CURRENT,
        verify_tls: bool = True,
        connect_timeout: float = 5.0,
        retry_for: float = 5.0,
        not_found_grace: float = 2.0,
        idle_timeout: float | None = None,
        reissue_after: float = 20.0,
        stall_timeout: float = 5.0,
        missing_patience: float = 30.0,
    ) -> None:
        self._endpoint = Endpoint.parse(url)
        self._idle_timeout = idle_timeout
        self._stall_timeout = stall_timeout
        self._cursor = Cursor(start, time.monotonic(), grace=not_found_grace, patience=missing_patience)
        self._fetcher = Fetcher(
            self._endpoint,
            verify_tls=verify_tls,
            connect_timeout=connect_timeout,
            reissue_after=reissue_after,
            retry_for=retry_for,
            on_parked=self._cursor.channel_exists,
            on_retry=self._note_retry,
        )
        self.statistics = SubscriberStatistics()
        self._fetch: asyncio.Task[Answer] | None = None
        self._current: SubscribedSegment | None = None
        self._started = False
        self._closing = asyncio.Event()

    @property
    def url(self) -> str:
        return str(self._endpoint)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def segments(self) -> AsyncGenerator[SubscribedSegment, None]:
        """The segments that have bytes, in the order in which the channel offers them; once a subscriber.

        Each is to be read before the next is asked for; what is left of it is dropped. Ends when the channel
        does, or on `close`; an iteration that is thrown away closes the subscriber. Raises `SourceError`
        (unreachable, 404 at the start, refused) and `ChannelIdle`.
        """
        if self._started:
            raise RuntimeError("a subscriber is read once")
        self._started = True
        try:
            waiting_since = time.monotonic()
            while (answer := await self._answer(waiting_since)) is not None:
                verdict = self._judge(answer)
                if isinstance(verdict, Ask):
                    await answer.connection.close()
                    await asyncio.sleep(verdict.pause)
                elif isinstance(verdict, Deliver):
                    yield self._deliver(verdict, answer)
                    await self._drop_current()
                    waiting_since = time.monotonic()
                elif isinstance(verdict, Failed):
                    await answer.connection.close()
                    raise SourceError(f"cannot read {self._endpoint}: {verdict.reason}")
                else:
                    return
        finally:
            await self.close()

    async def close(self) -> None:
        """Drop every connection; whoever iterates comes to the end. May be called again."""
        self._closing.set()
        await self._drop_fetch()
        await self._drop_current()

    async def _answer(self, waiting_since: float) -> Answer | None:
        """The answer for the number that the cursor wants; None when the subscriber was closed."""
        if self._closing.is_set():
            return None
        fetch = self._fetch or self._ask()
        timeout = None
        if self._idle_timeout is not None:
            timeout = max(waiting_since + self._idle_timeout - time.monotonic(), 0.0)
        await asyncio.wait({fetch}, timeout=timeout)
        if self._closing.is_set():
            return None
        if not fetch.done():
            raise ChannelIdle(f"{self._endpoint}: no segment for {self._idle_timeout:g} s")
        self._fetch = None
        return fetch.result()

    def _ask(self) -> asyncio.Task[Answer]:
        self._fetch = asyncio.create_task(self._fetcher.get(self._cursor.wanted))
        return self._fetch

    def _judge(self, answer: Answer) -> Verdict:
        now = time.monotonic()
        seq = self._cursor.wanted if answer.seq is None else answer.seq
        if answer.status == 404:
            return self._cursor.not_found(now)
        if answer.status == SEGMENT_MISSING:
            return self._cursor.missing(answer.latest, waited=answer.waited, now=now)
        if answer.status != 200:
            return Failed(f"it answered {answer.status}")
        if seq < 0:
            return Failed(f"it answered with the segment number {seq}")
        if answer.first is None:
            verdict = self._cursor.empty(seq, closed=answer.closed, waited=answer.waited)
            self.statistics.empty += not isinstance(verdict, Ended)
            return verdict
        return self._cursor.begun(seq)

    def _deliver(self, verdict: Deliver, answer: Answer) -> SubscribedSegment:
        self.statistics.segments += 1
        self.statistics.skipped += verdict.skipped
        self._ask()
        self._current = SubscribedSegment(
            verdict.seq, answer, self._fetcher, self.statistics, self._stall_timeout, self._next_has_begun
        )
        return self._current

    def _next_has_begun(self) -> bool:
        fetch = self._fetch
        if fetch is None or not fetch.done() or fetch.cancelled() or fetch.exception() is not None:
            return False
        return fetch.result().first is not None

    def _note_retry(self) -> None:
        self.statistics.reconnects += 1

    async def _drop_current(self) -> None:
        segment, self._current = self._current, None
        if segment is not None:
            await segment.close()

    async def _drop_fetch(self) -> None:
        fetch, self._fetch = self._fetch, None
        if fetch is None:
            return
        fetch.cancel()
        await asyncio.wait({fetch})
        if not fetch.cancelled() and fetch.exception() is None:
            await fetch.result().connection.close()

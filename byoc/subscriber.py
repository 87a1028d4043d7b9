"""Segments of a trickle channel, for those who read them by hand."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Self

from byoc.base import ComponentState, ErrorCallback, TrickleComponent
from stream.errors import SourceError
from stream.trickle.http1 import Chunk
from stream.trickle.subscriber import SubscribedSegment
from stream.trickle.subscriber import TrickleSubscriber as Subscriber

__all__ = ["Segment", "TrickleSubscriber"]


class TrickleSubscriber(TrickleComponent):
    """`next` gives one segment after the other, and None at the channel's end; or ``async with``.

    ``start_seq``: a number, -1 for the next segment, -2 for the one that is being written. ``max_retries`` is
    taken and not needed. Raises `SourceError` when the channel cannot be read.
    """

    def __init__(
        self,
        url: str,
        start_seq: int = -2,
        max_retries: int = 5,
        connect_timeout_seconds: float = 30.0,
        error_callback: ErrorCallback | None = None,
        component_name: str | None = "subscriber",
        *,
        verify_tls: bool = False,
    ) -> None:
        super().__init__(error_callback, component_name or "subscriber")
        self.base_url = url
        self.idx = start_seq
        self._subscriber = Subscriber(
            url, start=start_seq, verify_tls=verify_tls, connect_timeout=connect_timeout_seconds
        )
        self._segments: AsyncGenerator[SubscribedSegment, None] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def start(self) -> None:
        self._update_state(ComponentState.RUNNING)

    async def next(self) -> Segment | None:
        """The next segment, as soon as its first byte is there."""
        if self._segments is None:
            self._segments = self._subscriber.segments()
        try:
            found = await anext(self._segments, None)
        except SourceError as error:
            await self._notify_error("subscribe_failed", error)
            raise
        if found is None:
            return None
        self.idx = found.seq
        return Segment(found)

    async def close(self) -> None:
        if self._segments is not None:
            await self._segments.aclose()
        await self._subscriber.close()
        self._update_state(ComponentState.STOPPED)


class Segment:
    """One segment, read once."""

    def __init__(self, segment: SubscribedSegment) -> None:
        self._segment = segment
        self._chunks: AsyncGenerator[Chunk, None] = segment.chunks()
        self._rest = b""

    def seq(self) -> int:
        return self._segment.seq

    def eos(self) -> bool:
        """Whether it is the channel's end and no segment; `next` gives None for that here."""
        return False

    async def read(self, chunk_size: int = 32 * 1024) -> bytes | None:
        """Up to ``chunk_size`` bytes as they come; None at the end of the segment."""
        if not self._rest:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                return None
            self._rest = chunk.data
        data, self._rest = self._rest[:chunk_size], self._rest[chunk_size:]
        return data

    async def close(self) -> None:
        await self._segment.close()

"""Segments to a trickle channel, for those who write them by hand."""

from __future__ import annotations

from typing import Self

from byoc.base import ComponentState, ErrorCallback, TrickleComponent
from stream.errors import SinkError
from stream.trickle.publisher import TricklePublisher as Publisher
from stream.trickle.segment_writer import SegmentWriter as Writer

__all__ = ["SegmentWriter", "TricklePublisher"]


class TricklePublisher(TrickleComponent):
    """`start`, then `next` for each segment, then `close`, which deletes the channel; or ``async with``.

    Numbers rise by one, however fast segments follow each other. Raises `SinkError`.
    """

    def __init__(
        self,
        url: str,
        mime_type: str = "video/mp4",
        error_callback: ErrorCallback | None = None,
        component_name: str | None = "publisher",
        *,
        verify_tls: bool = False,
    ) -> None:
        super().__init__(error_callback, component_name or "publisher")
        self.url = url
        self.mime_type = mime_type
        self.idx = -1
        self._publisher = Publisher(url, mime_type, verify_tls=verify_tls)

    def stream_idx(self) -> str:
        """The URL of the last segment, of which `idx` is the number; -1 before the first."""
        return f"{self.url}/{self.idx}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def start(self) -> None:
        await self._publisher.start()
        self._update_state(ComponentState.RUNNING)

    async def next(self) -> SegmentWriter:
        """The next segment."""
        try:
            writer = await self._publisher.next_segment()
        except SinkError as error:
            await self._notify_error("post_failed", error)
            raise
        self.idx = writer.seq
        return SegmentWriter(writer)

    async def close(self) -> None:
        await self._publisher.close()
        self._update_state(ComponentState.STOPPED)


class SegmentWriter:
    """One segment; as ``async with`` it is closed at the end."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    @property
    def seq(self) -> int:
        return self._writer.seq

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def write(self, data: bytes) -> None:
        await self._writer.write(data)

    async def close(self) -> None:
        await self._writer.close()

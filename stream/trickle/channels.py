"""The channels beside the media: control in, events and data out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, Final

from stream.errors import HeadraceError, InvalidInput
from stream.trickle.documents import EMPTY_BATCH, batch_lines, decode_control, encode, encode_item
from stream.trickle.protocol import CURRENT, NEXT, ChannelClosed, SegmentLost
from stream.trickle.publisher import TricklePublisher
from stream.trickle.subscriber import TrickleSubscriber

log = logging.getLogger(__name__)

AI_STREAM_EVENTS: Final = "ai_stream_events"
MAX_MESSAGE: Final = 1024 * 1024
MAX_QUEUED_DATA: Final = 4 * 1024 * 1024
FLUSH_TIMEOUT: Final = 2.0

Report = Callable[[HeadraceError], None]


def log_problem(error: HeadraceError) -> None:
    """What becomes of problems when nobody asks for them."""
    log.warning("%s", error)


class ControlReader:
    """Messages of the control channel: one JSON object a segment, keepalives left out.

    A message that is not a JSON object, has more than ``max_message_bytes`` or breaks off is told to
    ``on_problem`` and passed over. ``retry_for`` and ``not_found_grace`` as for `TrickleSubscriber`.
    """

    def __init__(
        self,
        url: str,
        *,
        on_problem: Report = log_problem,
        start: int = CURRENT,
        max_message_bytes: int = MAX_MESSAGE,
        verify_tls: bool = True,
        connect_timeout: float = 5.0,
        retry_for: float = 30.0,
        not_found_grace: float = 2.0,
    ) -> None:
        self._on_problem = on_problem
        self._max_message_bytes = max_message_bytes
        self._subscriber = TrickleSubscriber(
            url,
            start=start,
            verify_tls=verify_tls,
            connect_timeout=connect_timeout,
            retry_for=retry_for,
            not_found_grace=not_found_grace,
        )

    async def messages(self) -> AsyncGenerator[dict[str, Any], None]:
        """The messages until the channel ends or the reader is closed. Raises `SourceError`."""
        async with aclosing(self._subscriber.segments()) as segments:
            async for segment in segments:
                try:
                    data = await segment.read(self._max_message_bytes)
                    if segment.truncated:
                        raise InvalidInput(f"control segment {segment.seq} broke off after {len(data)} bytes")
                    message = decode_control(data)
                except HeadraceError as error:
                    self._on_problem(error)
                    continue
                if message is not None:
                    yield message

    async def run(self, on_message: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        """Hand each message to ``on_message``, one after the other; returns when the channel ends."""
        try:
            async for message in self.messages():
                await on_message(message)
        finally:
            await self.close()

    async def close(self) -> None:
        """Drop the connections; `run` and `messages` come to their end."""
        await self._subscriber.close()


class DocumentPublisher:
    """Whole documents to a channel, one a segment, each confirmed before the next is sent.

    A document whose segment is lost is sent once more in the next one, then told to ``on_problem``.
    """

    def __init__(self, publisher: TricklePublisher, on_problem: Report, *, delete_channel: bool) -> None:
        self.changed = asyncio.Event()
        self._publisher = publisher
        self._on_problem = on_problem
        self._delete_channel = delete_channel
        self._closing = False
        self._running = False
        self._finished = asyncio.Event()

    @property
    def closing(self) -> bool:
        return self._closing

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Start the publisher, do ``work`` until it is done or the channel has ended, and close.

        Raises `SinkError` when the server cannot be reached or refuses.
        """
        self._running = True
        ended = asyncio.create_task(self._publisher.wait_ended())
        ended.add_done_callback(lambda _: self.changed.set())
        try:
            await self._publisher.start(NEXT)
            await work()
        except ChannelClosed as error:
            log.info("%s", error)
        finally:
            ended.cancel()
            try:
                await self._publisher.close(self._delete_channel)
            finally:
                self._finished.set()

    async def publish(self, document: bytes) -> None:
        """Send ``document`` and wait until the server has it."""
        for last in (False, True):
            writer = await self._publisher.next_segment()
            try:
                await writer.write(document)
                await writer.close()
                await writer.confirmed()
            except SegmentLost as error:
                if last:
                    self._on_problem(error)
            else:
                return

    async def wait(self, timeout: float) -> None:
        """Return when something has changed or ``timeout`` s have passed; raises why the publisher failed."""
        try:
            async with asyncio.timeout(max(timeout, 0.0)):
                await self.changed.wait()
        except TimeoutError:
            pass
        self.changed.clear()
        if self._publisher.failure is not None:
            raise self._publisher.failure

    async def close(self) -> None:
        """Have `run` finish what is queued and wait for it, for a moment; then end the publisher anyway."""
        self._closing = True
        self.changed.set()
        if self._running:
            try:
                async with asyncio.timeout(FLUSH_TIMEOUT):
                    await self._finished.wait()
            except TimeoutError:
                pass
        await self._publisher.close(self._delete_channel)


class EventsWriter:
    """Events to the gateway: one JSON document a segment, in order, ``max_queue`` waiting at most.

    ``heartbeat`` is asked for an event and its kind every ``interval`` seconds from the very start, because a
    gateway gives an orchestrator up after 30 s of silence; where it has none, a bare heartbeat is sent. The
    oldest event gives way when the queue is full; `dropped` counts.
    """

    def __init__(
        self,
        url: str,
        heartbeat: Callable[[], tuple[Mapping[str, Any], str] | None],
        *,
        interval: float = 10.0,
        max_queue: int = 100,
        on_problem: Report = log_problem,
        verify_tls: bool = True,
        connect_timeout: float = 5.0,
        retry_for: float = 30.0,
        delete_channel: bool = True,
    ) -> None:
        publisher = TricklePublisher(
            url,
            "application/json",
            verify_tls=verify_tls,
            connect_timeout=connect_timeout,
            retry_for=retry_for,
        )
        self.dropped = 0
        self.sent = 0
        self._documents = DocumentPublisher(publisher, on_problem, delete_channel=delete_channel)
        self._heartbeat = heartbeat
        self._interval = interval
        self._queue: deque[bytes] = deque()
        self._max_queue = max_queue
        self._on_problem = on_problem

    def send(self, event: Mapping[str, Any], kind: str = AI_STREAM_EVENTS) -> None:
        """Queue an event as it is now; never waits.

        Raises `InvalidInput` on what is no JSON and `TooLarge` on what is over 1 MiB.
        """
        document = encode_event(event, kind)
        if len(self._queue) >= self._max_queue:
            self._queue.popleft()
            self.dropped += 1
        self._queue.append(document)
        self._documents.changed.set()

    async def run(self) -> None:
        """Send until the channel ends or `close`; raises `SinkError` when the server is lost."""
        await self._documents.run(self._work)

    async def close(self) -> None:
        """Send what is queued, within two seconds, and end the channel."""
        await self._documents.close()

    async def _work(self) -> None:
        beat = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= beat:
                beat = max(beat + self._interval, now)
                await self._publish(self._heartbeat_document())
            elif self._queue:
                await self._publish(self._queue.popleft())
            elif self._documents.closing:
                return
            else:
                await self._documents.wait(beat - now)

    async def _publish(self, document: bytes) -> None:
        await self._documents.publish(document)
        self.sent += 1

    def _heartbeat_document(self) -> bytes:
        try:
            answer = self._heartbeat()
            if answer is not None:
                return encode_event(*answer)
        except HeadraceError as error:
            self._on_problem(error)
        return encode_event({"type": "heartbeat", "timestamp": int(time.time() * 1000)}, AI_STREAM_EVENTS)


class DataWriter:
    """Data of a processor to the gateway: lines that each hold a JSON array of items.

    A segment goes out at most every ``interval`` seconds with whatever has come since, and an empty array
    after ``keepalive`` seconds without any. The oldest items give way when ``max_items`` or
    ``max_queued_bytes`` wait; `dropped` counts them.
    """

    def __init__(
        self,
        url: str,
        *,
        interval: float = 1 / 3,
        keepalive: float = 20.0,
        max_items: int = 1000,
        max_queued_bytes: int = MAX_QUEUED_DATA,
        on_problem: Report = log_problem,
        verify_tls: bool = True,
        connect_timeout: float = 5.0,
        retry_for: float = 30.0,
        delete_channel: bool = True,
    ) -> None:
        publisher = TricklePublisher(
            url,
            "application/jsonl",
            verify_tls=verify_tls,
            connect_timeout=connect_timeout,
            retry_for=retry_for,
        )
        self.dropped = 0
        self.sent = 0
        self._documents = DocumentPublisher(publisher, on_problem, delete_channel=delete_channel)
        self._interval = interval
        self._keepalive = keepalive
        self._max_items = max_items
        self._max_queued_bytes = max_queued_bytes
        self._items: deque[bytes] = deque()
        self._queued_bytes = 0

    def send(self, item: Any) -> None:
        """Queue any JSON value as it is now; never waits.

        Raises `InvalidInput` on what is no JSON and `TooLarge` on what does not fit on a line of 64 KiB.
        """
        data = encode_item(item)
        self._items.append(data)
        self._queued_bytes += len(data)
        while len(self._items) > self._max_items or self._queued_bytes > self._max_queued_bytes:
            self._queued_bytes -= len(self._items.popleft())
            self.dropped += 1
        self._documents.changed.set()

    async def run(self) -> None:
        """Send until the channel ends or `close`; raises `SinkError` when the server is lost."""
        await self._documents.run(self._work)

    async def close(self) -> None:
        """Send what is queued, within two seconds, and end the channel."""
        await self._documents.close()

    async def _work(self) -> None:
        last = time.monotonic() - self._interval
        keepalive_from = time.monotonic()
        while not self._documents.closing or self._items:
            now = time.monotonic()
            if self._items and (now >= last + self._interval or self._documents.closing):
                last = keepalive_from = now
                await self._publish_items()
            elif now >= keepalive_from + self._keepalive:
                last = keepalive_from = now
                await self._documents.publish(EMPTY_BATCH)
            else:
                due = last + self._interval if self._items else keepalive_from + self._keepalive
                await self._documents.wait(due - now)

    async def _publish_items(self) -> None:
        items = tuple(self._items)
        self._items.clear()
        self._queued_bytes = 0
        await self._documents.publish(b"".join(batch_lines(items)))
        self.sent += len(items)


def encode_event(event: Mapping[str, Any], kind: str) -> bytes:
    """The document of an event; raises `InvalidInput` or `TooLarge`."""
    return encode({"event": dict(event), "queue_event_type": kind}, MAX_MESSAGE)

"""One stream at a gateway without a network: fed, steered, and watched for what comes back.

It goes by go-livepeer's rules for workers: keepalives on the control channel, one JSON document a segment on
the events channel and no silence of 30 s there, data lines under 64 KiB, output segments while input flows.
Whatever a worker does against them is put down in `GatewayStream.problems`, in words.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from byoc.mock.answers import Answer
from byoc.mock.clip import Chunk
from byoc.mock.jobs import Job
from byoc.mock.orchestrator import MockOrchestrator
from byoc.mock.outputs import Arrival
from stream.errors import HeadraceError, SinkError
from stream.trickle.documents import KEEPALIVE, MAX_LINE
from stream.trickle.publisher import TricklePublisher
from stream.trickle.subscriber import SubscribedSegment, TrickleSubscriber

MAX_KEPT = 256 << 20
"""Bytes of output that a stream keeps."""
MAX_MESSAGES = 100_000
POLL = 0.05


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Times in seconds, go-livepeer's by default: between keepalives, the longest silence of the events
    channel, the longest wait for an output segment while input flows, and for an answer of the worker."""

    keepalive: float = 10.0
    event_gap: float = 30.0
    output_gap: float = 30.0
    timeout: int = 30


@dataclass(slots=True)
class OutputSegment:
    """One segment that the worker published, its bytes with the moments at which they came."""

    seq: int
    content_type: str | None
    reads: list[Arrival] = field(default_factory=list)
    truncated: bool = False

    @property
    def data(self) -> bytes:
        return b"".join(read.data for read in self.reads)


class GatewayStream:
    """One stream, from the answer to its start until `close`. Made by `byoc.mock.gateway.MockGateway`."""

    def __init__(
        self, orchestrator: MockOrchestrator, job: Job, answer: Answer, settings: GatewaySettings
    ) -> None:
        self.id = job.id
        self.answer = answer
        """What the worker answered to the start, as the orchestrator passes it on."""
        self.problems: list[str] = []
        self.events: list[dict[str, Any]] = []
        """Each as ``{"event": ..., "queue_event_type": ...}``."""
        self.data: list[Any] = []
        """The JSON value of each line of the data channel."""
        self.segments: list[OutputSegment] = []
        self.fed: dict[int, int] = {}
        """When the last byte of each numbered frame was written, in ns of `time.monotonic_ns`."""
        self.ended: str | None = None
        """Why the gateway gave the stream up, if it did."""
        self._orchestrator = orchestrator
        self._job = job
        self._settings = settings
        self._publisher: TricklePublisher | None = None
        self._control: TricklePublisher | None = None
        self._last_event = self._last_output = time.monotonic()
        self._last_input = 0.0
        self._kept = 0
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def accepted(self) -> bool:
        return self.answer.status == 200

    @property
    def first_output(self) -> int | None:
        """When the first byte of output came, in ns of `time.monotonic_ns`."""
        return next((read.at for segment in self.segments for read in segment.reads), None)

    def url(self, name: str) -> str | None:
        """The gateway's end of the channel ``publish``, ``subscribe``, ``control``, ``events``, ``data``."""
        return self.answer.headers.get(f"X-{name.capitalize()}-Url")

    # -- what a client does ----------------------------------------------------------------------------

    async def play(self, segments: Sequence[Sequence[Chunk]], *, end: bool = False) -> None:
        """Publish a clip (`byoc.testing.generated`) in real time; with ``end`` the input channel ends then.

        Frames that the clip has before are numbered on only within one clip: play one per stream. Raises
        `SinkError` when the worker's input channel is gone.
        """
        publisher = await self._input()
        begun = time.monotonic()
        for segment in segments:
            writer = await publisher.next_segment()
            for chunk in segment:
                await asyncio.sleep(begun + chunk.due - time.monotonic())
                await writer.write(chunk.data)
                self._last_input = time.monotonic()
                if chunk.number is not None:
                    self.fed[chunk.number] = time.monotonic_ns()
            await writer.close()
        if end:
            await self.end_input()

    async def end_input(self) -> None:
        """The source has gone: the gateway deletes the input channel."""
        publisher = await self._input()
        await publisher.close(delete_channel=True)

    async def update(self, params: Mapping[str, Any] | bytes) -> Answer:
        """New parameters by HTTP; bytes go as they are. The worker's answer."""
        body = params if isinstance(params, bytes) else json.dumps(params).encode()
        return await self._orchestrator.update_stream(self._about_stream(), body)

    async def control(self, params: Mapping[str, Any]) -> None:
        """New parameters on the control channel, where nothing is answered."""
        await self._send_control(json.dumps(params).encode())

    async def stop(self, body: bytes = b"") -> list[Answer]:
        """A client's stop. One of them has go-livepeer call the worker up to three times: with the client's
        body, with the reason of the gateway's own clearing up, and with that of its monitor."""
        first = await self._stop(body)
        self._cancel()
        later = await asyncio.gather(self._stop(b"context canceled"), self._stop(b"stream ended"))
        return [first, *later]

    def vanish(self) -> None:
        """End every channel without a stop, as the orchestrator does when a balance has run out."""
        self._orchestrator.remove_stream(self.id)

    async def until(self, condition: Callable[[], bool], timeout: float = 10.0) -> bool:
        """Wait until ``condition`` holds; False when that takes longer than ``timeout`` s."""
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() >= end:
                return False
            await asyncio.sleep(POLL)
        return True

    async def close(self) -> None:
        """End what is open here; the stream is stopped unless it was. May be called again."""
        if self.id in self._orchestrator.streams:
            await self._stop(b"stream ended")
        self._cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for publisher in (self._publisher, self._control):
            if publisher is not None:
                await publisher.close(delete_channel=False)

    # -- what the gateway does by itself ---------------------------------------------------------------

    def begin(self) -> None:
        """Watch the channels; called once, for a stream that was accepted."""
        for name, work in {
            "X-Control-Url": self._keep_alive(),
            "X-Events-Url": self._read_events(),
            "X-Data-Url": self._read_data(),
            "X-Subscribe-Url": self._read_output(),
        }.items():
            if name in self.answer.headers:
                self._tasks.append(asyncio.create_task(self._guarded(work), name=name))
            else:
                work.close()
        self._tasks.append(asyncio.create_task(self._watch()))

    def _problem(self, text: str) -> None:
        if text not in self.problems:
            self.problems.append(text)

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _about_stream(self) -> Job:
        request = json.dumps({"stream_id": self.id})
        return Job(self._job.capability, request=request, timeout=self._settings.timeout)

    async def _stop(self, body: bytes) -> Answer:
        return await self._orchestrator.stop_stream(self._about_stream(), body)

    async def _input(self) -> TricklePublisher:
        if self._publisher is None:
            url = self.url("publish")
            if url is None:
                raise SinkError("this stream has no video input")
            self._publisher = TricklePublisher(url, "video/MP2T", verify_tls=False)
            await self._publisher.start()
        return self._publisher

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except HeadraceError as error:
            self._problem(error.message)

    async def _send_control(self, message: bytes) -> None:
        if self._control is None:
            url = self.url("control")
            assert url is not None
            self._control = TricklePublisher(url, "video/MP2T", verify_tls=False)
            await self._control.start()
        writer = await self._control.next_segment()
        await writer.write(message)
        await writer.close()

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self._settings.keepalive)
            try:
                await self._send_control(json.dumps(KEEPALIVE).encode())
            except SinkError:
                self.ended = self.ended or "control channel does not exist"
                return

    async def _read_events(self) -> None:
        async for segment in self._segments("events"):
            body = await segment.read(MAX_LINE * 16)
            event = self._event_of(segment.seq, body)
            if event is None:
                continue
            self._last_event = time.monotonic()
            if len(self.events) < MAX_MESSAGES:
                self.events.append(event)

    def _event_of(self, seq: int, body: bytes) -> dict[str, Any] | None:
        """The document of an events segment; None for what the gateway passes over as if nothing had come."""
        try:
            document = json.loads(body)
        except ValueError as error:
            self._problem(f"events segment {seq} is not one JSON document ({error}): the gateway ignores it")
            return None
        if not isinstance(document, dict):
            self._problem(f"events segment {seq} is no JSON object: the gateway ignores it")
            return None
        event = document.get("event")
        if event is None:
            event, kind = document, "ai_stream_events"
        else:
            kind = document.get("queue_event_type", "")
        if not isinstance(event, dict):
            self._problem(f"events segment {seq}: `event` is no object: the gateway ignores it")
            return None
        if not isinstance(event.get("type"), str):
            self._problem(f"events segment {seq} has an event without a type")
        return {"event": event, "queue_event_type": kind}

    async def _read_data(self) -> None:
        async for segment in self._segments("data"):
            for line in (await segment.read(MAX_LINE * 64)).splitlines():
                if len(line) > MAX_LINE:
                    self._problem(
                        f"a data line has {len(line)} bytes, over {MAX_LINE}: the gateway reads it for ever"
                    )
                    continue
                try:
                    value = json.loads(line)
                except ValueError:
                    self._problem(f"a data line is not JSON: {line[:60]!r}")
                    continue
                if len(self.data) < MAX_MESSAGES:
                    self.data.append(value)

    async def _read_output(self) -> None:
        async for segment in self._segments("subscribe"):
            known = OutputSegment(segment.seq, segment.content_type)
            self.segments.append(known)
            async for chunk in segment.chunks():
                self._last_output = time.monotonic()
                self._kept += len(chunk.data)
                if self._kept <= MAX_KEPT:
                    known.reads.append(Arrival(chunk.arrived, chunk.data))
            known.truncated = segment.truncated
            if known.truncated:
                self._problem(f"output segment {segment.seq} broke off")
        for before, after in pairwise(self.segments):
            if after.seq <= before.seq:
                self._problem(f"output segment {after.seq} came after {before.seq}")

    async def _segments(self, name: str) -> AsyncIterator[SubscribedSegment]:
        url = self.url(name)
        assert url is not None
        async with TrickleSubscriber(url, start=0, verify_tls=False) as subscriber:
            async for segment in subscriber.segments():
                yield segment

    async def _watch(self) -> None:
        """The watchdogs: silence of the events, and no output while there is input."""
        settings = self._settings
        step = min(settings.event_gap, settings.output_gap) / 3
        while True:
            await asyncio.sleep(step)
            now = time.monotonic()
            reason = None
            if now - self._last_event > settings.event_gap:
                reason = "timeout waiting for events"
            elif (
                "X-Subscribe-Url" in self.answer.headers
                and now - self._last_output > settings.output_gap
                and now - self._last_input < settings.output_gap / 2
            ):
                reason = "timeout waiting for segments"
            if reason is not None:
                self.ended = reason
                self._problem(f"the gateway gives the worker up: {reason}")
                await self._stop(reason.encode())
                return

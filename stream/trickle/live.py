"""A live session over trickle: where its parts and its channels are put together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from stream.errors import HeadraceError, InvalidInput
from stream.frames import DEFAULT_HEIGHT, DEFAULT_WIDTH
from stream.ingest import Ingest
from stream.mpegts import AccessUnit, TsDemuxer
from stream.processor import Emission, FrameProcessor, Params
from stream.requests import StreamStart
from stream.session import Session, SessionSettings, SideChannels, Source
from stream.sinks import TrickleSink
from stream.status import status_event
from stream.ticking import TickingDecoding
from stream.tracks import Track
from stream.trickle.channels import ControlReader, DataWriter, EventsWriter
from stream.trickle.publisher import TricklePublisher
from stream.trickle.subscriber import TrickleSubscriber
from stream.units import Rendition

log = logging.getLogger(__name__)

STATUS_EVENT = "ai_stream_events"
"""The gateway itself files what has ``type: status`` under another name."""
DATA_INTERVAL = 1 / 3
HEARTBEAT_INTERVAL = 10.0
"""Seconds; a gateway gives up after 30 without an event."""


class TrickleSource:
    """MPEG-TS segments of a trickle channel as access units, each stamped when its last byte came."""

    def __init__(self, subscriber: TrickleSubscriber, on_first: Callable[[], None] | None = None) -> None:
        self._subscriber = subscriber
        self._on_first = on_first
        self.demuxer = TsDemuxer()
        self.problem: str | None = None
        """What of it cannot be used, and why, in words."""

    @property
    def bytes_received(self) -> int:
        return self._subscriber.statistics.bytes

    async def run(self, put: Callable[[AccessUnit], None], tracks: Callable[[bool, bool], None]) -> None:
        """Read to the channel's end; raises `SourceError` when it cannot be read."""
        known: tuple[Track, ...] = ()
        demuxer = self.demuxer
        async with self._subscriber:
            async for segment in self._subscriber.segments():
                self._tell_first()
                async for chunk in segment.chunks():
                    units = demuxer.feed(chunk.data, chunk.arrived)
                    if demuxer.tracks != known:
                        known = demuxer.tracks
                        self._announce(known, tracks)
                    for unit in units:
                        put(unit)
                for unit in demuxer.flush():
                    put(unit)
                if not known and self.bytes_received:
                    self._note("what comes in is no MPEG transport stream, or one without its tables")

    def _announce(self, found: tuple[Track, ...], tracks: Callable[[bool, bool], None]) -> None:
        kinds = {track.kind for track in found if track.selected}
        useless = [t for t in found if t.kind != "other" and not t.supported and t.kind not in kinds]
        self.problem = None
        if useless:
            self._note("; ".join(f"the {t.kind} track is {t.codec}, which is not supported" for t in useless))
        tracks("video" in kinds, "audio" in kinds)

    def _note(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("%s", problem)
        self.problem = problem

    def _tell_first(self) -> None:
        on_first, self._on_first = self._on_first, None
        if on_first is not None:
            on_first()


class TrickleSide:
    """The control, events and data channels of a stream; each may be missing."""

    def __init__(
        self,
        urls: StreamStart,
        *,
        verify_tls: bool,
        data_interval: float = DATA_INTERVAL,
        heartbeat_interval: float = HEARTBEAT_INTERVAL,
    ) -> None:
        control, events, data = urls.url("control"), urls.url("events"), urls.url("data")
        self._control = ControlReader(control, verify_tls=verify_tls) if control else None
        self._events = (
            EventsWriter(events, self.heartbeat, interval=heartbeat_interval, verify_tls=verify_tls)
            if events
            else None
        )
        self._data = DataWriter(data, interval=data_interval, verify_tls=verify_tls) if data else None
        self.session: Session | None = None
        """Whose channels they are, once it runs."""
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self, session: Session) -> str:
        """Serve the channels; returns when one of them ends, and leaves the others open for last words."""
        self.session = session
        parts: dict[str, Coroutine[Any, Any, None]] = {}
        if self._events is not None:
            parts["events"] = self._events.run()
        if self._data is not None:
            parts["data"] = self._data.run()
        if self._control is not None:
            parts["control"] = self._steer(self._control, session)
        self._tasks = [asyncio.create_task(part, name=name) for name, part in parts.items()]
        if not self._tasks:
            await asyncio.Event().wait()
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        return f"the {next(iter(done)).get_name()} channel ended"

    def event(self, event: dict[str, Any], kind: str) -> None:
        if self._events is None:
            return
        try:
            self._events.send(event, kind)
        except HeadraceError as error:
            log.warning("an event was not sent: %s", error.message)

    def data(self, emission: Emission) -> None:
        if self._data is None:
            return
        try:
            self._data.send(emission.data)
        except HeadraceError as error:
            log.warning("data was not sent: %s", error.message)

    async def close(self) -> None:
        """Send what is queued, end the channels; bounded by the channels' own limits."""
        try:
            parts = (self._control, self._events, self._data)
            await asyncio.gather(*(part.close() for part in parts if part is not None))
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _steer(self, control: ControlReader, session: Session) -> None:
        async for params in control.messages():
            try:
                await self.steer(params, session)
            except HeadraceError as error:
                log.info("parameters from the control channel were refused: %s", error.message)
                self.event(
                    {"type": "error", "pipeline": session.pipeline_name, **error.as_dict()},
                    "ai_stream_events",
                )

    async def steer(self, params: Params, session: Session) -> None:
        """A message of the control channel; a `HeadraceError` refuses it."""
        await session.update_params(params)

    def heartbeat(self) -> tuple[dict[str, Any], str] | None:
        """What is sent every so often, and its kind: the session's status."""
        return None if self.session is None else (status_event(self.session), STATUS_EVENT)


def trickle_session(
    session_id: str,
    request: StreamStart,
    processor: FrameProcessor,
    settings: SessionSettings,
    *,
    start_params: Params,
    verify_tls: bool,
    ingest: Ingest | None = None,
    side: SideChannels | None = None,
    make: type[Session] = Session,
) -> Session:
    """A session that reads and writes what ``request`` names; not yet started.

    Without an input a clock asks the processor for frames, if it makes them of nothing
    (`ProcessorInfo.generates`). With ``ingest`` others publish to it, and ``request`` must name no subscribe
    URL; ``side`` takes the place of the side channels that ``request`` names. Raises `InvalidInput`.
    """
    subscribe, publish = request.url("subscribe"), request.url("publish")
    if subscribe and ingest is not None:
        raise InvalidInput("a stream that is published to reads no subscribe_url", field="subscribe_url")
    source: Source | None = ingest
    if subscribe:
        subscriber = TrickleSubscriber(subscribe, verify_tls=verify_tls)
        source = TrickleSource(subscriber, lambda: _milestone(side, "receive_first_ingest_segment"))
    side = side or TrickleSide(request, verify_tls=verify_tls)
    session = make(
        session_id,
        source,
        processor,
        side,
        settings,
        start_params=start_params,
        decoding=None if source is not None else _clock(processor, settings),
    )
    session.urls = {"subscribe_url": subscribe, "publish_url": publish, "gateway_request_id": session_id}
    if publish:
        sink = trickle_sink(session, publish, verify_tls=verify_tls)
        sink.on_first = lambda: _milestone(side, "send_first_processed_segment")
        session.attach(sink, essential=True)
    return session


def _milestone(side: SideChannels | None, name: str) -> None:
    if side is not None:
        side.event({"type": name, "timestamp": int(time.time() * 1000)}, STATUS_EVENT)


def _clock(processor: FrameProcessor, settings: SessionSettings) -> TickingDecoding:
    return TickingDecoding(processor.info, settings.pipeline.size or (DEFAULT_WIDTH, DEFAULT_HEIGHT))


def trickle_sink(session: Session, url: str, *, verify_tls: bool) -> TrickleSink:
    """A sink that publishes what ``session`` puts out to the channel ``url``; not yet attached."""
    encoding, rendition = session.pipeline.encoding, Rendition()
    return TrickleSink(
        TricklePublisher(url, verify_tls=verify_tls),
        rendition=rendition,
        video_parameters=lambda: encoding.parameters(rendition),
        audio_parameters=lambda: encoding.audio_parameters,
        request_key=lambda: encoding.request_key(rendition),
        on_sent=lambda unit: session.pipeline.figures.latency.add_sent(unit.timeline),
    )

"""Where encoded units go. Each sink has its own bound and its own way of dropping."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from stream.codecs.mpegts_muxer import TsMuxer
from stream.errors import SinkError
from stream.segments import Cut, Segmenter
from stream.trickle.protocol import ChannelClosed
from stream.trickle.publisher import TricklePublisher
from stream.trickle.segment_writer import SegmentWriter
from stream.units import AudioParameters, EncodedUnit, Rendition, VideoParameters

log = logging.getLogger(__name__)

FILE = Rendition()
"""What goes into segments and files, where nothing else is asked for."""
GIVE_UP = 15.0
"""Seconds for which nothing could be published after which a sink fails for good."""


class Sink(Protocol):
    """Takes encoded units on the loop; `offer` never waits, `run` ends after `end` when everything is out.

    ``rendition`` says which pictures it gets, from a key picture on (None: none); sound goes to every sink.
    `expect` is called before units come, and again when that changes.
    """

    @property
    def rendition(self) -> Rendition | None: ...
    def expect(self, *, video: bool, audio: bool) -> None: ...
    def offer(self, unit: EncodedUnit) -> None: ...
    def end(self) -> None: ...
    async def run(self) -> None: ...


class UnitBacklog:
    """Units that wait for a sink. Full, it drops everything up to the next key picture."""

    def __init__(self, *, max_bytes: int = 8 << 20, max_units: int = 600) -> None:
        self._units: deque[EncodedUnit] = deque()
        self._bytes = 0
        self._max_bytes = max_bytes
        self._max_units = max_units
        self._skipping = False
        self._arrived = asyncio.Event()
        self._ended = False
        self.dropped = 0

    @property
    def skipping(self) -> bool:
        """Whether it waits for a key picture."""
        return self._skipping

    def put(self, unit: EncodedUnit) -> None:
        if self._skipping:
            if unit.kind != "video" or not unit.key:
                self.dropped += 1
                return
            self._skipping = False
        if self._bytes + len(unit.data) > self._max_bytes or len(self._units) >= self._max_units:
            self.dropped += len(self._units) + 1
            self._units.clear()
            self._bytes = 0
            self._skipping = True
            return
        self._units.append(unit)
        self._bytes += len(unit.data)
        self._arrived.set()

    def end(self) -> None:
        self._ended = True
        self._arrived.set()

    async def take(self) -> EncodedUnit | None:
        """The next unit, or None when there will be no more."""
        while not self._units:
            if self._ended:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        unit = self._units.popleft()
        self._bytes -= len(unit.data)
        return unit


class TrickleSink:
    """MPEG-TS segments to a trickle channel, each byte sent as soon as it is muxed.

    A segment that breaks is given up and the next key picture begins another. `run` raises `SinkError`
    when nothing got through for `GIVE_UP` seconds, and its subclass `ChannelClosed` when the channel is gone.
    """

    def __init__(
        self,
        publisher: TricklePublisher,
        *,
        video_parameters: Callable[[], VideoParameters | None],
        audio_parameters: Callable[[], AudioParameters | None],
        request_key: Callable[[], None],
        on_sent: Callable[[EncodedUnit], None],
        segment_duration: float = 2.0,
        rendition: Rendition = FILE,
    ) -> None:
        self.rendition = rendition
        self._publisher = publisher
        self._video_parameters = video_parameters
        self._audio_parameters = audio_parameters
        self._request_key = request_key
        self._on_sent = on_sent
        self._segmenter = Segmenter(duration=segment_duration)
        self._backlog = UnitBacklog()
        self._muxer: TsMuxer | None = None
        self._writer: SegmentWriter | None = None
        self._confirmed = 0
        self._confirmed_at: float | None = None
        self._key_asked = 0.0
        self.bytes_sent = 0
        self.segments = 0
        self.on_first: Callable[[], None] | None = None
        """Called once, when the first picture that is a result has been handed over."""
        self.last_error: str | None = None

    @property
    def dropped(self) -> int:
        """Units that were left out."""
        return self._backlog.dropped + self._segmenter.dropped

    def expect(self, *, video: bool, audio: bool) -> None:
        """Which kinds of units will come."""
        self._segmenter.expects_video, self._segmenter.expects_audio = video, audio

    def offer(self, unit: EncodedUnit) -> None:
        self._backlog.put(unit)
        now = time.monotonic()
        # Half a second between requests: the answer needs a frame's time to arrive.
        if (self._backlog.skipping or self._segmenter.wants_key) and now - self._key_asked > 0.5:
            self._key_asked = now
            self._request_key()

    def end(self) -> None:
        self._backlog.end()

    async def run(self) -> None:
        try:
            await self._publisher.start()
            while (unit := await self._backlog.take()) is not None:
                await self._put(unit)
            await self._finish_segment()
        finally:
            await self._publisher.close(delete_channel=True)

    async def _put(self, unit: EncodedUnit) -> None:
        try:
            for step in self._segmenter.put(unit):
                if isinstance(step, Cut):
                    await self._finish_segment()
                    await self._begin_segment(step)
                else:
                    await self._write(step)
        except ChannelClosed:
            raise
        except SinkError as error:
            self._broken(error)
        self._check_progress()

    def _check_progress(self) -> None:
        """Raise when the server has confirmed no segment for `GIVE_UP` seconds, for whatever reason."""
        now = time.monotonic()
        confirmed = self._publisher.statistics.segments
        if self._confirmed_at is None or confirmed != self._confirmed:
            self._confirmed, self._confirmed_at = confirmed, now
        if now - self._confirmed_at > GIVE_UP:
            reason = self.last_error or "the server confirms no segment"
            raise SinkError(f"nothing could be published for {GIVE_UP:.0f} s: {reason}")

    async def _begin_segment(self, cut: Cut) -> None:
        # Opus packets say themselves how many channels they carry; two is what a decoder must be ready for.
        audio = (self._audio_parameters() or AudioParameters(2)) if cut.audio else None
        self._muxer = TsMuxer(self._video_parameters() if cut.video else None, audio)
        self._writer = await self._publisher.next_segment()
        self.segments += 1

    async def _write(self, unit: EncodedUnit) -> None:
        if self._muxer is None or self._writer is None:
            return
        await self._send(self._writer, self._muxer.mux(unit))
        if unit.kind == "video" and not (unit.repeat or unit.overlay):
            unit.timeline.sent = time.monotonic_ns()
            self._on_sent(unit)
            on_first, self.on_first = self.on_first, None
            if on_first is not None:
                on_first()

    async def _send(self, writer: SegmentWriter, data: bytes) -> None:
        if data:
            await writer.write(data)
            self.bytes_sent += len(data)

    async def _finish_segment(self) -> None:
        muxer, writer = self._muxer, self._writer
        self._muxer = self._writer = None
        if muxer is not None and writer is not None:
            await self._send(writer, muxer.close())
            await writer.close()

    def _broken(self, error: SinkError) -> None:
        """Give the segment up; nobody waits for the server to hear of it."""
        self.last_error = error.message
        log.warning("a segment was lost: %s", error.message)
        self._segmenter.abandon()
        writer, self._writer, self._muxer = self._writer, None, None
        if writer is not None:
            writer.give_up()

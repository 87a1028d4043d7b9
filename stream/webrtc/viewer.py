"""The way out: a session's encoded units to a peer's senders. Viewers share an encoding and its payloads."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from stream.errors import Conflict
from stream.renditions import RenditionHandle
from stream.session import Session
from stream.sinks import UnitBacklog
from stream.units import EncodedUnit, Rendition
from stream.webrtc.adapter.sender import PacketSender
from stream.webrtc.bitrate import SentRate, ViewerLimits, ViewerRate
from stream.webrtc.payload import packetise_h264, packetise_vp8

log = logging.getLogger(__name__)

MAX_BYTES = 4 << 20
MAX_UNITS = 90
"""What may wait for a connection, about a second; then everything up to the next key picture is left out."""
WORTHWHILE = 0.03
"""Changes of the bitrate by less than this share are not passed on."""
MAX_TIMINGS = 120


class Payloads:
    """The payloads of a session's latest pictures: made once, however many viewers take them."""

    KEPT = 8
    _of: ClassVar[WeakKeyDictionary[Session, Payloads]] = WeakKeyDictionary()

    def __init__(self) -> None:
        self._latest: deque[tuple[EncodedUnit, list[bytes]]] = deque(maxlen=self.KEPT)

    @classmethod
    def of(cls, session: Session) -> Payloads:
        return cls._of.setdefault(session, cls())

    def get(self, unit: EncodedUnit) -> list[bytes]:
        if unit.kind == "audio":
            return [unit.data]
        for known, payloads in reversed(self._latest):
            if known is unit:
                return payloads
        payloads = packetise_vp8(unit.data) if unit.codec == "vp8" else packetise_h264(unit.data)
        self._latest.append((unit, payloads))
        return payloads


class ViewerSink:
    """A viewer's place among a session's sinks, for one rendition (None: sound only)."""

    def __init__(self, viewer: Viewer, rendition: Rendition | None) -> None:
        self.rendition = rendition
        self.handle: RenditionHandle | None = None
        self.bytes_sent = 0
        self._viewer = viewer
        self._backlog = UnitBacklog(max_bytes=MAX_BYTES, max_units=MAX_UNITS)
        self._pictures = 0

    @property
    def dropped(self) -> int:
        """Units that were left out because the connection was too slow."""
        return self._backlog.dropped

    def expect(self, *, video: bool, audio: bool) -> None:
        """What comes is sent; there is nothing to prepare for it."""

    def offer(self, unit: EncodedUnit) -> None:
        if not self._viewer.takes(self, unit):
            return
        self._backlog.put(unit)
        self._pictures += unit.kind == "video"
        if self._backlog.skipping:
            # It was emptied.
            self._pictures = 0
            if self.handle is not None:
                self.handle.request_key()

    def end(self) -> None:
        self._backlog.end()

    async def run(self) -> None:
        reason = "the session ended"
        try:
            while (unit := await self._backlog.take()) is not None:
                self._pictures -= unit.kind == "video"
                self.bytes_sent += await self._viewer.send(unit, lambda: self._pictures > 0)
        except ConnectionError:
            reason = "the connection is gone"
        finally:
            self._viewer.left(self, reason)


class Viewer:
    """One peer that watches. `begin` when its connection stands; ``on_ended`` is told why it is over."""

    def __init__(
        self,
        session: Session,
        *,
        video: PacketSender | None,
        audio: PacketSender | None,
        rendition: Rendition | None,
        on_ended: Callable[[str], None],
    ) -> None:
        self.timings: deque[tuple[int | None, int, float]] = deque(maxlen=MAX_TIMINGS)
        """Of the latest pictures: the source's timestamp (1/90000 s), the RTP timestamp, ms in the worker."""
        self._session = session
        self._video = video
        self._audio = audio
        self._rendition = rendition if video is not None else None
        self._on_ended = on_ended
        self._payloads = Payloads.of(session)
        self._active: ViewerSink | None = None
        self._coming: ViewerSink | None = None
        self._begun = self._closed = False
        self._sent_video, self._sent_audio = SentRate(), SentRate()
        encoding = session.settings.pipeline.encoding
        self._limits = ViewerLimits(encoding.viewers, encoding.viewers_low)
        self._rate = ViewerRate(self._limits)
        self._wished = 0
        self._gone_dropped = 0
        if video is not None and audio is not None:
            audio.clock = video.clock
        if video is not None:
            video.on_key_wanted = self._want_key
            video.on_estimate = self._estimated
            video.on_loss = self._lost

    def begin(self) -> None:
        """Take a place in the session; raises `Conflict` when it has ended."""
        if self._begun or self._closed:
            return
        self._begun = True
        self._active = self._attach(self._rendition)
        handle = self._active.handle
        if handle is not None:
            self._rate = ViewerRate(self._limits, handle.bitrate)

    def close(self) -> None:
        """Leave; safe to call twice."""
        self._closed = True
        for sender in (self._video, self._audio):
            if sender is not None:
                sender.on_key_wanted = sender.on_estimate = sender.on_loss = None
        for sink in (self._active, self._coming):
            if sink is not None:
                self._session.detach(sink)

    # -- for its sinks ---------------------------------------------------------------------------------

    def takes(self, sink: ViewerSink, unit: EncodedUnit) -> bool:
        """Whether that unit is sent. A rendition that is moved to takes over with its first key picture."""
        if self._closed:
            return False
        if sink is self._coming and unit.kind == "video" and unit.key:
            before, self._active, self._coming = self._active, sink, None
            if before is not None:
                self._gone_dropped += before.dropped
                self._session.detach(before)
        if unit.kind == "audio" and self._audio is None:
            return False
        return sink is self._active

    async def send(self, unit: EncodedUnit, hurry: Callable[[], bool]) -> int:
        """Send a unit; returns the bytes of its payloads. ``hurry``: whether the next picture waits."""
        sender = self._video if unit.kind == "video" else self._audio
        if sender is None:
            return 0
        payloads = self._payloads.get(unit)
        await sender.transmit(payloads, unit.pts, hurry)
        size = sum(map(len, payloads))
        rate = self._sent_video if unit.kind == "video" else self._sent_audio
        rate.add(size, time.monotonic())
        if unit.kind == "video" and unit.timeline.received:
            spent = (time.monotonic_ns() - unit.timeline.received) / 1e6
            self.timings.append((unit.source, sender.timestamp(unit.pts), spent))
        return size

    def left(self, sink: ViewerSink, reason: str) -> None:
        """A sink's task has ended."""
        if sink is self._coming:
            self._coming = None
        elif sink is self._active and not self._closed:
            self._closed = True
            self._on_ended(reason)

    # -- feedback --------------------------------------------------------------------------------------

    def _attach(self, rendition: Rendition | None) -> ViewerSink:
        sink = ViewerSink(self, rendition)
        sink.handle = self._session.attach(sink)
        return sink

    def _want_key(self) -> None:
        if self._active is not None and self._active.handle is not None:
            self._active.handle.request_key()

    def _estimated(self, bits: int) -> None:
        # Sound carries no time of sending, and so is not part of the estimate.
        now = time.monotonic()
        self._rate.estimate(bits, self._sent_video.bits(now), now)
        self._adapt()

    def _lost(self, fraction: float) -> None:
        now = time.monotonic()
        self._rate.loss(fraction, self._sent_video.bits(now), now)
        self._adapt()

    def _adapt(self) -> None:
        """Pass on what the connection carries, and change the rendition where it must be."""
        if self._closed or self._active is None or self._rendition is None:
            return
        if self._coming is None and (self._active.rendition != self._wanted()):
            try:
                self._coming = self._attach(self._wanted())
            except Conflict:
                log.debug("the session ends")
                return
            self._wished = 0
            log.info("a viewer moves to the %s rendition", "lower" if self._rate.low else "common")
        if abs(self._rate.target - self._wished) > WORTHWHILE * self._wished:
            self._wished = self._rate.target
            sink = self._coming or self._active
            if sink.handle is not None:
                sink.handle.set_bitrate(self._wished)

    def _wanted(self) -> Rendition:
        assert self._rendition is not None
        return (
            dataclasses.replace(self._rendition, purpose="viewers_low") if self._rate.low else self._rendition
        )

    def report(self) -> dict[str, Any]:
        """What goes out, by kind of media."""
        report: dict[str, Any] = {}
        now = time.monotonic()
        if self._video is not None and self._rendition is not None:
            sink = self._active
            report["video"] = {
                "codec": self._rendition.codec,
                "profile": self._rendition.profile if self._rendition.codec == "h264" else None,
                "low": self._rate.low,
                "bitrate": self._sent_video.bits(now),
                "target": self._rate.target,
                "dropped": self._gone_dropped + (sink.dropped if sink is not None else 0),
                **_report(self._video),
            }
        if self._audio is not None:
            report["audio"] = {
                "codec": "opus",
                "bitrate": self._sent_audio.bits(now),
                **_report(self._audio),
            }
        return report


def _report(sender: PacketSender) -> dict[str, Any]:
    counts = sender.counts
    return {
        "units": counts.units,
        "packets": counts.packets,
        "lost": counts.lost,
        "fraction_lost": round(counts.fraction_lost, 4),
        "retransmitted": counts.retransmitted,
        "round_trip_ms": None if counts.round_trip is None else round(counts.round_trip * 1000, 1),
        "plis": counts.plis + counts.firs,
        "nacks": counts.nacks,
    }

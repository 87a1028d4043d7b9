"""The way in: units of a peer's receivers, placed on one timeline, into a session's `Ingest`."""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Callable
from typing import Any, Literal

from stream.ingest import Feed, Ingest
from stream.mpegts import AccessUnit
from stream.webrtc.adapter.receiver import PacketReceiver
from stream.webrtc.assembly import Unit
from stream.webrtc.payload import with_parameter_sets
from stream.webrtc.times import Timeline

log = logging.getLogger(__name__)

VIDEO_ID, AUDIO_ID = 0x100, 0x101
"""Where the units of a transport stream have their PID."""


class Publisher:
    """One peer's tracks; `begin` when its connection stands. ``on_replaced``: it has lost the session."""

    def __init__(
        self,
        ingest: Ingest,
        name: str,
        *,
        video: PacketReceiver | None,
        audio: PacketReceiver | None,
        parameter_sets: str,
        on_replaced: Callable[[], None],
    ) -> None:
        self.timeline = Timeline()
        self._ingest = ingest
        self._name = name
        self._receivers: dict[Literal["video", "audio"], PacketReceiver] = {}
        if video is not None:
            self._receivers["video"] = video
        if audio is not None:
            self._receivers["audio"] = audio
        self._parameter_sets = annex_b(parameter_sets)
        self._on_replaced = on_replaced
        self._feed: Feed | None = None
        self._closed = False
        for kind, receiver in self._receivers.items():
            self._listen(kind, receiver)

    @property
    def begun(self) -> bool:
        return self._feed is not None

    def begin(self) -> None:
        """Take the session over; raises `Conflict` when it has ended."""
        if self._feed is not None or self._closed:
            return
        self._feed = feed = self._ingest.publish(self._name, on_replaced=self._replaced)
        feed.wants_key = self._want_key
        feed.tracks(video="video" in self._receivers, audio="audio" in self._receivers)

    def close(self, reason: str) -> None:
        """Nothing more comes; safe to call twice."""
        self._closed = True
        for receiver in self._receivers.values():
            receiver.on_unit = receiver.on_report = receiver.on_source = None
        if self._feed is not None:
            feed, self._feed = self._feed, None
            feed.wants_key = None
            feed.close(reason)

    def report(self) -> dict[str, Any]:
        """What came in, by kind of media."""
        return {kind: _report(receiver) for kind, receiver in self._receivers.items()}

    def _listen(self, kind: Literal["video", "audio"], receiver: PacketReceiver) -> None:
        receiver.on_unit = lambda unit: self._put(kind, receiver, unit)
        receiver.on_report = lambda ntp, timestamp: self.timeline.report(kind, ntp, timestamp)
        receiver.on_source = lambda: self.timeline.forget(kind)

    def _put(self, kind: Literal["video", "audio"], receiver: PacketReceiver, unit: Unit) -> None:
        feed, codec = self._feed, receiver.codec
        if feed is None or codec is None:
            return
        pts = self.timeline.place(kind, unit.timestamp, unit.received)
        data = with_parameter_sets(unit.data, self._parameter_sets) if codec == "h264" else unit.data
        feed.put(
            AccessUnit(
                VIDEO_ID if kind == "video" else AUDIO_ID,
                codec,
                kind,
                data,
                pts,
                pts,
                unit.received,
                unit.key,
                unit.lost,
                2 if kind == "audio" else 0,
            )
        )

    def _want_key(self) -> None:
        if "video" in self._receivers:
            self._receivers["video"].request_key()

    def _replaced(self) -> None:
        self._feed = None
        self.close("replaced")
        self._on_replaced()


def annex_b(sets: str) -> bytes:
    """Parameter sets as an offer may carry them (``sprop-parameter-sets``, RFC 6184, 8.1) as Annex B.

    What is not Base64 is left out: they usually come within the stream as well.
    """
    data = b""
    for text in sets.split(","):
        try:
            unit = base64.b64decode(text, validate=True)
        except binascii.Error:
            log.info("sprop-parameter-sets of the offer cannot be read")
            continue
        if unit and unit[0] & 0x1F in (7, 8):
            data += b"\x00\x00\x00\x01" + unit
    return data


def _report(receiver: PacketReceiver) -> dict[str, Any]:
    counts, feedback = receiver.counts, receiver.feedback
    report = {
        "codec": receiver.codec,
        "packets": counts.packets,
        "units": counts.units,
        "lost": counts.lost,
        "recovered": counts.recovered,
        "reordered": counts.reordered,
        "duplicates": counts.duplicates,
        "malformed": counts.malformed,
        "foreign": feedback.foreign,
    }
    if receiver.kind == "video":
        report |= {
            "bitrate": receiver.arriving,
            "estimate": feedback.estimate,
            "plis": feedback.plis,
            "nacks": feedback.nacks,
        }
    return report

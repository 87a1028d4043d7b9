"""AAC (ADTS) and Opus frames into samples."""

from __future__ import annotations

import logging
import time
from fractions import Fraction
from typing import Any

import av
import av.error
import numpy as np
import numpy.typing as npt

from stream.errors import CodecError
from stream.frames import AudioFrame, Timeline
from stream.mpegts import AccessUnit
from stream.units import TS_TIME_BASE

log = logging.getLogger(__name__)

_CODECS = ("aac", "opus")
_ERRORS = (av.error.FFmpegError, ValueError)
# Streams, coupled streams and channel mapping for 1 to 8 channels (RFC 7845, 5.1.1.2, mapping family 1).
_OPUS_MAPPINGS: dict[int, tuple[int, int, tuple[int, ...]]] = {
    3: (2, 1, (0, 2, 1)),
    4: (2, 2, (0, 1, 2, 3)),
    5: (3, 2, (0, 4, 1, 2, 3)),
    6: (4, 2, (0, 4, 1, 2, 3, 5)),
    7: (4, 3, (0, 4, 1, 2, 3, 5, 6)),
    8: (5, 3, (0, 6, 1, 2, 3, 4, 5, 7)),
}


class AudioDecoder:
    """Decodes one track to ``fltp`` in the source's layout and rate; used by one thread at a time.

    Layout and rate may change from frame to frame, and do so in the frames that come out. ``errors`` counts
    what could not be decoded. Raises `CodecError` where the codec cannot be opened.
    """

    def __init__(self, codec: str) -> None:
        if codec not in _CODECS:
            raise CodecError(f"{codec} sound cannot be decoded here; {' and '.join(_CODECS)} can")
        self.codec = codec
        self.errors = 0
        self._channels = 0
        self._context: av.AudioCodecContext | None = None
        if codec == "aac":
            self._context = self._open()

    def decode(self, unit: AccessUnit) -> list[AudioFrame]:
        """The sound of one unit; ``timestamp`` counts 1/90000 s and is the unit's."""
        try:
            context = self._context_for(unit)
            if not unit.data:
                # For FFmpeg an empty packet is the end of the stream.
                raise ValueError("an empty unit")
            packet = av.Packet(unit.data)
            packet.pts = packet.dts = unit.pts
            packet.time_base = TS_TIME_BASE
            frames = context.decode(packet)
            timeline = Timeline(unit.received, time.monotonic_ns())
            return [self._timed(frame, unit, timeline, index) for index, frame in enumerate(frames)]
        except _ERRORS as error:
            self.errors += 1
            log.debug("%d bytes of %s cannot be decoded: %s", len(unit.data), self.codec, error)
            return []

    def flush(self) -> list[AudioFrame]:
        """Begin anew; neither codec holds sound back."""
        if self._context is not None and self._context.is_open:
            self._context.flush_buffers()
        return []

    def _timed(self, frame: av.AudioFrame, unit: AccessUnit, timeline: Timeline, index: int) -> AudioFrame:
        result = audio_frame_of(frame)
        # A decoder may split a unit; its frames then follow on one another.
        result.timestamp = unit.pts + index * frame.samples * TS_TIME_BASE.denominator // frame.sample_rate
        result.time_base = TS_TIME_BASE
        result.timeline = timeline.copy()
        return result

    def _context_for(self, unit: AccessUnit) -> av.AudioCodecContext:
        if self._context is None or (self.codec == "opus" and unit.channels != self._channels):
            self._channels = unit.channels
            self._context = self._open(_opus_head(unit.channels or 2) if self.codec == "opus" else None)
        return self._context

    def _open(self, extradata: bytes | None = None) -> av.AudioCodecContext:
        try:
            context = av.CodecContext.create(self.codec, "r")
            assert isinstance(context, av.AudioCodecContext)
            context.thread_count = 1
            if extradata is not None:
                context.extradata = extradata
            context.open()
        except _ERRORS as error:
            raise CodecError(f"{self.codec} cannot be decoded here: {error}") from error
        return context


def audio_frame_of(frame: av.AudioFrame) -> AudioFrame:
    """A decoded frame with its own timestamp and time base; its samples as planar floats."""
    samples = frame.to_ndarray()
    layout = frame.layout.name
    if not frame.format.is_planar:
        samples = samples.reshape(-1, len(frame.layout.channels)).T
    return AudioFrame(
        _as_floats(samples),
        0 if frame.pts is None else frame.pts,
        frame.time_base or Fraction(1, frame.sample_rate),
        rate=frame.sample_rate,
        format="fltp",
        layout=layout,
    )


def _as_floats(samples: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Full scale of whole numbers as -1..1."""
    floats = np.ascontiguousarray(samples, dtype=np.float32)
    if samples.dtype == np.uint8:
        floats = (floats - np.float32(128)) / np.float32(128)
    elif samples.dtype.kind == "i":
        floats = floats / np.float32(-int(np.iinfo(samples.dtype).min))
    return floats


def _opus_head(channels: int) -> bytes:
    """An identification header (RFC 7845, 5.1) without pre-skip, which a live stream has long passed."""
    head = b"OpusHead\x01" + bytes((channels, 0, 0)) + (48_000).to_bytes(4, "little") + b"\x00\x00"
    if channels <= 2:
        return head + b"\x00"
    streams, coupled, mapping = _OPUS_MAPPINGS[channels]
    return head + bytes((1, streams, coupled, *mapping))

"""H.264, HEVC and VP8 access units into pictures, with no delay but what a stream's B-frames ask for."""

from __future__ import annotations

import logging
import time
from fractions import Fraction

import av
import av.error
from av.codec.context import Flags
from av.video.frame import PictureType

from stream.codecs.convert import Converter
from stream.codecs.hardware import (
    HARDWARE,
    NVDEC_CODECS,
    FallbackCallback,
    HardwarePolicy,
    nvdec_context,
    wants_hardware,
)
from stream.errors import CodecError
from stream.frames import Timeline, VideoFrame
from stream.mpegts import AccessUnit
from stream.recording.sps import sequence_parameters
from stream.units import TS_TIME_BASE

log = logging.getLogger(__name__)

MAX_WITHHELD = 180_000
"""Ticks for which damaged pictures are withheld at most while no key picture comes."""

MAX_PIXELS = 4096 * 4096
"""Pixels of the largest picture that is decoded."""
_MAX_PENDING = 64
_HARDWARE_ATTEMPTS = 5
_DEVICE_FORMATS = ("nv12", "p010", "p016", "yuv444p")
_ERRORS = (av.error.FFmpegError, ValueError)


class FrameReader:
    """Decoded frames as `VideoFrame`: 8-bit 4:2:0, upright, of square pixels, free of what an encoder would
    inherit."""

    def __init__(self) -> None:
        self._converter = Converter()

    def read(
        self, frame: av.VideoFrame, timeline: Timeline | None = None, aspect: Fraction | None = None
    ) -> VideoFrame:
        """The frame with its own timestamp and time base; ``aspect`` is the width of its pixels by their
        height.

        Raises `av.error.FFmpegError` for a pixel format that cannot be converted.
        """
        timestamp = 0 if frame.pts is None else frame.pts
        time_base = frame.time_base or Fraction(1, 1)
        frame.pict_type = PictureType.NONE
        return VideoFrame.from_picture(self._converter.from_av(frame, aspect), timestamp, time_base, timeline)


class VideoDecoder:
    """Decodes one track; used by one thread at a time.

    ``codec`` is ``h264``, ``hevc`` or ``vp8``. Without B-frames a picture comes out of the call that its
    access unit went into; with them, as soon as its order is known. Nothing comes before the first key
    picture. After damage, pictures are withheld until the next key picture, or for `MAX_WITHHELD`.

    ``name`` says what decodes, ``hardware`` whether that is the device, ``fallback_reason`` why it no longer
    is; ``on_fallback`` is called with that reason. ``errors`` counts units and pictures that were damaged,
    ``withheld`` those left out after them, ``skipped`` units before the first key picture.

    Raises `CodecError` where the codec cannot be opened; damaged data only counts.
    """

    def __init__(
        self, codec: str, *, hardware: HardwarePolicy = "auto", on_fallback: FallbackCallback | None = None
    ) -> None:
        self.codec = codec
        self.errors = 0
        self.withheld = 0
        self.skipped = 0
        self.problem: str | None = None
        """What last was wrong with the stream itself, in words."""
        self.fallback_reason: str | None = None
        self._on_fallback = on_fallback
        self._reader = FrameReader()
        self._received: dict[int, int] = {}
        self._began = False
        self._damaged_since: int | None = None
        self._failures = 0
        self.hardware = codec in NVDEC_CODECS and wants_hardware(hardware, HARDWARE.decoding)
        if hardware == "require" and not self.hardware:
            raise CodecError(f"the device does not decode {codec}", field="hardware")
        self._context = self._open()

    @property
    def name(self) -> str:
        return f"{self.codec} (nvdec)" if self.hardware else self.codec

    @property
    def wants_key(self) -> bool:
        """Whether it waits for a key picture: the first one, or one after damage."""
        return not self._began or self._damaged_since is not None

    def decode(self, unit: AccessUnit) -> list[VideoFrame]:
        """The pictures that this unit completes, in the order of presentation, stamped ``decoded``."""
        if not self._began:
            self._began = unit.key or _has_parameter_sets(unit)
            if not self._began:
                self.skipped += 1
                return []
        if unit.discontinuity and not unit.key and self._damaged_since is None:
            self._damaged_since = unit.pts
        if not unit.data:
            # For FFmpeg an empty packet is the end of the stream.
            self._count_damage(unit.pts)
            return []
        packet = av.Packet(unit.data)
        packet.pts, packet.dts, packet.time_base = unit.pts, unit.dts, TS_TIME_BASE
        self._received[unit.pts] = unit.received
        if len(self._received) > _MAX_PENDING:
            del self._received[next(iter(self._received))]
        try:
            frames = self._context.decode(packet)
        except _ERRORS as error:
            self._fail(unit, error)
            return []
        self._failures = 0
        return self._read(frames)

    def flush(self) -> list[VideoFrame]:
        """What is still held for its order; the decoder then begins anew, with a key picture."""
        try:
            frames = self._context.decode(None)
        except _ERRORS:
            # Nothing went in yet, or the stream ended within damage: there is nothing to give out.
            frames = []
        result = self._read(frames)
        self._restart()
        return result

    # -- opening and falling back ------------------------------------------------------------------------

    def _open(self) -> av.VideoCodecContext:
        if self.hardware:
            try:
                context = nvdec_context(self.codec)
                self._prepare(context)
            except (*_ERRORS, NotImplementedError) as error:
                self._fall_back(str(error))
            else:
                return context
        try:
            context = self._software()
            self._prepare(context)
        except _ERRORS as error:
            raise CodecError(f"{self.codec} cannot be decoded here: {error}") from error
        return context

    def _software(self) -> av.VideoCodecContext:
        context = av.CodecContext.create(self.codec, "r")
        if not isinstance(context, av.VideoCodecContext):
            raise ValueError("not a video codec")
        return context

    def _prepare(self, context: av.VideoCodecContext) -> None:
        # Frame threads would each hold a picture back.
        context.thread_count = 1
        context.flags |= Flags.low_delay
        # Checked before anything is allocated: a few bytes may claim a picture of gigabytes.
        context.options = {**context.options, "max_pixels": str(MAX_PIXELS)}
        context.open()

    def _fall_back(self, reason: str) -> None:
        self.hardware = False
        self.fallback_reason = reason
        log.warning("decoding %s goes on in software: %s", self.codec, reason)
        if self._on_fallback is not None:
            self._on_fallback(reason)

    def _restart(self) -> None:
        self._context.flush_buffers()
        self._received.clear()
        self._began = False
        self._damaged_since = None

    # -- pictures and damage -----------------------------------------------------------------------------

    def _fail(self, unit: AccessUnit, error: Exception) -> None:
        self._count_damage(unit.pts)
        problem = _oversize(unit)
        if problem is not None:
            if problem != self.problem:
                log.error("%s", problem)
            self.problem = problem
            return
        if not self.hardware:
            return
        self._failures += 1
        # Damaged data is not the device's fault, unless it goes on and on.
        if not isinstance(error, av.error.InvalidDataError) or self._failures >= _HARDWARE_ATTEMPTS:
            self._fall_back(str(error))
            self._context = self._open()
            self._restart()

    def _count_damage(self, pts: int) -> None:
        self.errors += 1
        if self._damaged_since is None:
            self._damaged_since = pts

    def _read(self, frames: list[av.VideoFrame]) -> list[VideoFrame]:
        result = []
        aspect = self._context.sample_aspect_ratio
        for frame in frames:
            if self.hardware and not frame.format.name.startswith(_DEVICE_FORMATS):
                self._fall_back(f"the device does not decode this stream ({frame.format.name})")
            received = self._received.pop(frame.pts, 0) if frame.pts is not None else 0
            if not self._is_usable(frame):
                continue
            try:
                result.append(self._reader.read(frame, Timeline(received, time.monotonic_ns()), aspect))
            except _ERRORS as error:
                self.errors += 1
                log.warning("a picture of format %s cannot be used: %s", frame.format.name, error)
        return result

    def _is_usable(self, frame: av.VideoFrame) -> bool:
        pts = frame.pts
        if pts is None:
            self.errors += 1
            return False
        if frame.is_corrupt:
            self._count_damage(pts)
            return False
        if self._damaged_since is None:
            return True
        if frame.key_frame or not 0 <= pts - self._damaged_since < MAX_WITHHELD:
            self._damaged_since = None
            return True
        self.withheld += 1
        return False


def _oversize(unit: AccessUnit) -> str | None:
    """What is wrong with the size of a key picture, in words; None where nothing is, or nothing is known."""
    size: tuple[int, int] | None = None
    if unit.codec == "vp8" and len(unit.data) >= 10 and unit.data[3:6] == b"\x9d\x01\x2a":
        # RFC 6386, 9.1.
        width, height = (int.from_bytes(unit.data[i : i + 2], "little") & 0x3FFF for i in (6, 8))
        size = width, height
    elif unit.codec == "h264":
        found = [nal for nal in unit.data.split(b"\x00\x00\x01") if nal and nal[0] & 0x1F == 7]
        try:
            parameters = sequence_parameters(found[0]) if found else None
        except ValueError as error:
            log.debug("a parameter set cannot be read: %s", error)
        else:
            size = (parameters.width, parameters.height) if parameters is not None else None
    if size is None or size[0] * size[1] <= MAX_PIXELS:
        return None
    return f"pictures of {size[0]}x{size[1]} are not decoded: {MAX_PIXELS} pixels are the most that is taken"


def _has_parameter_sets(unit: AccessUnit) -> bool:
    """Whether a sequence parameter set is in it: a stream without IDR pictures may begin there."""
    if unit.codec == "vp8":
        return False
    if unit.codec == "hevc":
        return b"\x00\x00\x01\x42\x01" in unit.data
    return any(b"\x00\x00\x01" + bytes((header,)) in unit.data for header in (0x67, 0x47, 0x27))

"""Pictures into H.264 without B-frames: the unit comes out of the call that took the picture."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.error
from av.video.frame import PictureType

from stream.codecs.convert import Converter, default_matrix
from stream.codecs.h264_levels import level_for
from stream.codecs.h264_options import (
    constrained,
    nvenc_options,
    parameter_sets,
    threads_for,
    x264_options,
)
from stream.codecs.hardware import (
    HARDWARE,
    NVENC,
    FallbackCallback,
    HardwarePolicy,
    wants_hardware,
)
from stream.codecs.picture import COLORSPACES, FULL, LIMITED, AvPicture, copied
from stream.errors import CodecError, InvalidInput
from stream.frames import Matrix, Picture, Timeline
from stream.units import TS_TIME_BASE, EncodedUnit, Profile, Rendition, VideoParameters

log = logging.getLogger(__name__)

TICKS = TS_TIME_BASE.denominator
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
MIN_BITRATE = 50_000
LEAST_LEVEL_RATE = 30.0
"""Frames a second that a stream's level allows at least, whatever comes in."""

_X264 = "libx264"
_PROFILES = ("constrained_baseline", "baseline", "main", "high")
_NO_AUTOMATIC_KEYS = 1 << 20
_RATE_CHANGE = 1.25
_BUFFER_CHANGE = 2.0
_ERRORS = (av.error.FFmpegError, ValueError)


@dataclass(frozen=True, slots=True)
class VideoEncoderSettings:
    """How to encode; sizes and colours come with the pictures.

    ``bitrate`` in bits/s, ``highest_bitrate`` what it may be set to while it runs without being opened anew
    (0: no more than ``bitrate``), ``key_interval`` in seconds of the pictures' own time, ``buffer`` the
    seconds of bitrate that a burst may take, ``framerate`` a first guess (the true one is measured),
    ``threads`` 0 for as many as the size needs. ``preset`` is x264's. ``quality``: x264 spends no more bits
    than a constant rate factor of 1 (best) to 51 takes, and ``bitrate`` is the most (0: it is aimed at);
    NVENC aims at the bitrate. Raises `InvalidInput` for what cannot be.
    """

    bitrate: int = 3_000_000
    preset: str = "superfast"
    key_interval: float = 2.0
    profile: Profile = "high"
    hardware: HardwarePolicy = "auto"
    threads: int = 0
    framerate: float = 30.0
    buffer: float = 0.5
    highest_bitrate: int = 0
    quality: int = 0

    def __post_init__(self) -> None:
        checks = {
            "bitrate": (self.bitrate >= MIN_BITRATE, f"at least {MIN_BITRATE}"),
            "preset": (self.preset in PRESETS, f"one of {', '.join(PRESETS)}"),
            "profile": (self.profile in _PROFILES, f"one of {', '.join(_PROFILES)}"),
            "hardware": (self.hardware in ("auto", "off", "require"), "auto, off or require"),
            "key_interval": (0.1 <= self.key_interval <= 3600, "0.1 to 3600 s"),
            "threads": (0 <= self.threads <= 64, "0 to 64"),
            "framerate": (1 <= self.framerate <= 1000, "1 to 1000"),
            "quality": (0 <= self.quality <= 51, "0 to 51"),
            "buffer": (0.05 <= self.buffer <= 10, "0.05 to 10 s"),
        }
        for field, (right, expected) in checks.items():
            if not right:
                raise InvalidInput(f"{field} must be {expected}, not {getattr(self, field)!r}", field=field)


@dataclass(frozen=True, slots=True)
class _Marks:
    """What belongs to a picture on its way through the encoder."""

    timeline: Timeline
    repeat: bool
    overlay: bool
    source: int | None


class VideoEncoder:
    """Encodes one rendition; used by one thread at a time.

    Pictures of another size are fitted between black bars, other colours are converted to ``matrix`` and
    ``full_range``, which the stream declares. 4:2:0 has no odd sizes: the last row or column of such a
    picture is left out (``parameters`` has the size of the stream), because an added one would show.

    ``hardware`` says whether the device encodes, ``fallback_reason`` why it no longer does; ``on_fallback``
    is called with that reason. Raises `CodecError` where no encoder can be opened.
    """

    def __init__(
        self,
        settings: VideoEncoderSettings,
        width: int,
        height: int,
        *,
        matrix: Matrix | None = None,
        full_range: bool = False,
        on_fallback: FallbackCallback | None = None,
        rendition: Rendition | None = None,
    ) -> None:
        if width < 2 or height < 2:
            raise CodecError(f"pictures of {width}x{height} are too small to encode", field="width")
        self.settings = settings
        self.width, self.height = width, height
        self.matrix: Matrix = default_matrix(width, height) if matrix is None else matrix
        self.full_range = full_range
        self.fallback_reason: str | None = None
        self.hardware = wants_hardware(settings.hardware, HARDWARE.encoding)
        self._on_fallback = on_fallback
        self._rendition = rendition
        self._coded = (width // 2 * 2, height // 2 * 2)
        self._converter = Converter()
        self._bitrate = settings.bitrate
        self._ceiling = self._buffer_for = settings.bitrate
        self._framerate = settings.framerate
        self._measured = settings.framerate
        self._last_pts: int | None = None
        self._last_key: int | None = None
        self._since_key = 0
        self._duration = round(TICKS / settings.framerate)
        self._marks: dict[int, _Marks] = {}
        self._extradata = b""
        self._finished = False
        self._context = self._open()

    @property
    def name(self) -> str:
        """FFmpeg's name of the encoder at work."""
        return NVENC if self.hardware else _X264

    @property
    def bitrate(self) -> int:
        """Bits/s that are aimed at."""
        return self._bitrate

    @property
    def parameters(self) -> VideoParameters:
        """Size of the stream and, from the first key picture on, its parameter sets (Annex B)."""
        return VideoParameters(*self._coded, "h264", self._extradata)

    def encode(
        self,
        picture: Picture,
        pts: int,
        *,
        key: bool = False,
        timeline: Timeline | None = None,
        repeat: bool = False,
        overlay: bool = False,
        source: int | None = None,
    ) -> list[EncodedUnit]:
        """One picture in, its unit out. ``pts`` counts 1/90000 s and must grow (`ValueError` otherwise).

        A key picture is made when ``key`` asks for it, and ``key_interval`` after the last one. Raises
        `CodecError` when the encoder fails and there is none to fall back to.
        """
        if self._last_pts is not None and pts <= self._last_pts:
            raise ValueError(f"timestamps must grow: {pts} after {self._last_pts}")
        if self._last_pts is not None:
            self._duration = min(pts - self._last_pts, TICKS)
        is_key = key or self._last_key is None or self._key_is_due(pts)
        if is_key:
            self._measure(pts)
            if self._finished or self._needs_reopening():
                self._context = self._open()
            self._last_key, self._since_key = pts, 0
        self._since_key += 1
        self._last_pts = pts
        self._marks[pts] = _Marks(Timeline() if timeline is None else timeline, repeat, overlay, source)
        with self._ready(picture).as_input(pts, TS_TIME_BASE, is_key) as frame:
            packets = self._encode(frame)
        return [self._unit(packet) for packet in packets]

    def flush(self) -> list[EncodedUnit]:
        """What the encoder still holds (x264 holds nothing); it then begins anew with a key picture."""
        try:
            packets = self._context.encode(None)
        except _ERRORS as error:
            log.debug("%s had nothing to flush: %s", self.name, error)
            packets = []
        units = [self._unit(packet) for packet in packets]
        self._finished = True
        self._last_key = None
        return units

    def set_bitrate(self, bits_per_second: int) -> None:
        """Aim at another bitrate from the next picture on.

        x264 follows at once up to ``highest_bitrate``; above that from the next key picture on, where opening
        it anew costs nothing that is seen.
        """
        self._bitrate = max(MIN_BITRATE, bits_per_second)
        self._apply_rate()

    # -- rate ----------------------------------------------------------------------------------------------

    def _wanted(self) -> int:
        """The rate to set: encoders spend bits by picture, counted by the frame rate they were told."""
        return max(MIN_BITRATE // 4, int(self._bitrate * self._framerate / self._measured))

    def _apply_rate(self) -> None:
        wanted = self._wanted()
        if self.hardware:
            self._context.bit_rate = wanted
        elif not self.settings.quality:
            # In the other mode the limit follows where x264 is opened anew.
            self._context.bit_rate = min(wanted, self._ceiling)

    def _needs_reopening(self) -> bool:
        """Whether x264 would be served better by other limits; asked where a key picture is due anyway."""
        if self.hardware:
            return False
        buffer_fits = 1 / _BUFFER_CHANGE < self._bitrate / self._buffer_for < _BUFFER_CHANGE
        return self._wanted() > self._ceiling * 1.02 or not buffer_fits

    def _key_is_due(self, pts: int) -> bool:
        return self._last_key is not None and pts - self._last_key >= self.settings.key_interval * TICKS

    def _measure(self, pts: int) -> None:
        """The frame rate since the last key picture, where that says anything."""
        if self._last_key is None or pts - self._last_key < TICKS // 2 or self._since_key < 3:
            return
        measured = min(1000.0, max(1.0, self._since_key * TICKS / (pts - self._last_key)))
        if not 1 / _RATE_CHANGE < measured / self._measured < _RATE_CHANGE:
            self._measured = measured
            self._apply_rate()

    # -- opening and falling back --------------------------------------------------------------------------

    def _open(self) -> av.VideoCodecContext:
        self._finished = False
        self._framerate = self._measured
        self._ceiling = max(self._bitrate, self.settings.highest_bitrate)
        self._buffer_for = self._bitrate
        buffer = int(self._bitrate * self.settings.buffer)
        if self.hardware:
            try:
                return self._opened(NVENC, self._bitrate, nvenc_options(self.settings.profile, buffer))
            except _ERRORS as error:
                self._fall_back(str(error))
        try:
            settings = self.settings
            options = x264_options(settings.preset, settings.profile, self._ceiling, buffer, settings.quality)
            context = self._opened(_X264, 0 if settings.quality else self._ceiling, options)
            if not settings.quality:
                context.bit_rate = min(self._wanted(), self._ceiling)
        except _ERRORS as error:
            raise CodecError(f"{_X264} cannot encode {self._coded[0]}x{self._coded[1]}: {error}") from error
        return context

    def _opened(self, name: str, bitrate: int, options: dict[str, str]) -> av.VideoCodecContext:
        context = av.CodecContext.create(name, "w")
        assert isinstance(context, av.VideoCodecContext)
        context.width, context.height = self._coded
        context.pix_fmt = "yuv420p"
        context.time_base = TS_TIME_BASE
        context.framerate = Fraction(self._framerate).limit_denominator(1001)
        context.bit_rate = bitrate
        context.gop_size = _NO_AUTOMATIC_KEYS
        context.max_b_frames = 0
        context.thread_count = self.settings.threads or threads_for(*self._coded)
        context.colorspace = COLORSPACES[self.matrix]
        context.color_range = FULL if self.full_range else LIMITED
        if self.matrix == "bt709":
            context.color_primaries = context.color_trc = 1
        high = self.settings.profile == "high"
        rate = max(self._framerate, LEAST_LEVEL_RATE)
        level = level_for(*self._coded, rate, self._ceiling, high=high)
        context.options = options if level is None else {**options, "level": level.name}
        context.open()
        return context

    def _fall_back(self, reason: str) -> None:
        if self.settings.hardware == "require" and self._last_pts is None:
            raise CodecError(f"{NVENC}, which is required, does not open: {reason}", field="hardware")
        self.hardware = False
        self.fallback_reason = reason
        log.warning("encoding goes on with %s: %s", _X264, reason)
        if self._on_fallback is not None:
            self._on_fallback(reason)

    # -- pictures ------------------------------------------------------------------------------------------

    def _encode(self, frame: av.VideoFrame) -> list[av.Packet[Any]]:
        try:
            return self._context.encode(frame)
        except _ERRORS as error:
            if not self.hardware:
                raise CodecError(f"{_X264} failed: {error}") from error
            self._fall_back(str(error))
        self._context = self._open()
        self._last_key, self._since_key = frame.pts, 1
        frame.pict_type = PictureType.I
        try:
            return self._context.encode(frame)
        except _ERRORS as error:
            raise CodecError(f"{_X264} failed: {error}") from error

    def _ready(self, picture: Picture) -> AvPicture:
        """The picture in the size and colours of the stream; not copied where it is so already."""
        if (picture.width, picture.height) != (self.width, self.height):
            picture = self._converter.scale(picture, self.width, self.height, crop=False)
        picture = self._converter.to_yuv420p(picture, self.matrix, self.full_range)
        fits = (picture.width, picture.height) == self._coded
        if fits and isinstance(picture, AvPicture) and picture.av.format.name == "yuv420p":
            return picture
        return AvPicture(copied(picture, *self._coded), self.matrix, self.full_range)

    def _unit(self, packet: av.Packet[Any]) -> EncodedUnit:
        pts = self._last_pts if packet.pts is None else packet.pts
        assert pts is not None
        marks = self._marks.pop(pts, _Marks(Timeline(), False, False, None))
        data = bytes(packet)
        if packet.is_keyframe and self.settings.profile == "constrained_baseline":
            data = constrained(data)
        if packet.is_keyframe and (not self._extradata or self._extradata not in data):
            self._extradata = parameter_sets(data)
        timeline = marks.timeline.copy()
        timeline.stamp("encoded")
        return EncodedUnit(
            "video",
            data,
            pts,
            self._duration,
            packet.is_keyframe,
            marks.repeat,
            marks.overlay,
            timeline,
            self._rendition,
            "h264",
            marks.source,
        )

"""Pictures into VP8 (RFC 6386) at a bitrate that follows at once; no picture is held back."""

from __future__ import annotations

import weakref

import numpy as np

from stream.codecs.convert import Converter
from stream.codecs.libvpx import Vp8Context, library
from stream.codecs.video_encoder import MIN_BITRATE, VideoEncoderSettings
from stream.errors import CodecError, HeadraceError
from stream.frames import Picture, Timeline, plane_shapes
from stream.units import TS_TIME_BASE, EncodedUnit, Rendition, VideoParameters

TICKS = TS_TIME_BASE.denominator


def vp8_problem() -> str | None:
    """Why VP8 cannot be encoded here; None where it can."""
    try:
        library()
    except HeadraceError as error:
        return error.message
    return None


class Vp8Encoder:
    """Encodes one rendition; used by one thread at a time.

    Pictures of another size are fitted between black bars; colours become BT.601 in limited range, the only
    ones that VP8 has (RFC 6386, 9.2). Odd sizes lose their last row or column. Raises `CodecError`, and
    `NotInstalled` where there is no libvpx.
    """

    def __init__(
        self, settings: VideoEncoderSettings, width: int, height: int, *, rendition: Rendition | None = None
    ) -> None:
        if width < 2 or height < 2:
            raise CodecError(f"pictures of {width}x{height} are too small to encode", field="width")
        self.settings = settings
        self.width, self.height = width, height
        self.fallback_reason: str | None = None
        self._rendition = rendition
        self._coded = (width // 2 * 2, height // 2 * 2)
        self._converter = Converter()
        self._bitrate = settings.bitrate
        self._last_pts: int | None = None
        self._last_key: int | None = None
        self._context = Vp8Context(
            *self._coded,
            settings.bitrate,
            buffer=settings.buffer,
            threads=settings.threads or _threads_for(*self._coded),
        )
        weakref.finalize(self, self._context.close)

    @property
    def name(self) -> str:
        return "libvpx"

    @property
    def bitrate(self) -> int:
        """Bits/s that are aimed at."""
        return self._bitrate

    @property
    def parameters(self) -> VideoParameters:
        return VideoParameters(*self._coded, "vp8")

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
        """One picture in, its unit out. ``pts`` counts 1/90000 s and must grow (`ValueError` otherwise)."""
        if self._last_pts is not None and pts <= self._last_pts:
            raise ValueError(f"timestamps must grow: {pts} after {self._last_pts}")
        duration = min(pts - self._last_pts, TICKS) if self._last_pts is not None else TICKS // 30
        due = self._last_key is None or pts - self._last_key >= self.settings.key_interval * TICKS
        self._load(picture)
        packets = self._context.encode(pts, duration, key=key or due)
        self._last_pts = pts
        units = []
        for data, is_key in packets:
            if is_key:
                self._last_key = pts
            stamped = Timeline() if timeline is None else timeline.copy()
            stamped.stamp("encoded")
            units.append(
                EncodedUnit(
                    "video",
                    data,
                    pts,
                    duration,
                    is_key,
                    repeat,
                    overlay,
                    stamped,
                    self._rendition,
                    "vp8",
                    source,
                )
            )
        return units

    def flush(self) -> list[EncodedUnit]:
        """Nothing is held; the next picture is a key picture."""
        self._last_key = None
        return []

    def set_bitrate(self, bits_per_second: int) -> None:
        """Aim at another bitrate from the next picture on."""
        self._bitrate = max(MIN_BITRATE, bits_per_second)
        self._context.set_bitrate(self._bitrate)

    def _load(self, picture: Picture) -> None:
        """Write the picture where libvpx reads it."""
        if (picture.width, picture.height) != (self.width, self.height):
            picture = self._converter.scale(picture, self.width, self.height, crop=False)
        picture = self._converter.to_yuv420p(picture, "bt601", False)
        target = np.frombuffer(self._context.pixels, np.uint8)
        begin = 0
        for plane, (rows, columns) in zip(picture.planes, plane_shapes("yuv420p", *self._coded), strict=True):
            end = begin + rows * columns
            np.copyto(target[begin:end].reshape(rows, columns), plane[:rows, :columns])
            begin = end


def _threads_for(width: int, height: int) -> int:
    """VP8 gains little from threads below 720p."""
    return 1 if width * height < 1280 * 720 else 2

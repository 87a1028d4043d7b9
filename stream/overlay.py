"""The notice that is shown while there is no result: the last one dimmed, words, and progress.

It is drawn in the worker on luma and chroma directly, so that it costs well under a millisecond a frame.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stream.frames import Picture, Plane, plane_shapes

DIM = 0.35
BLACK, WHITE = 16, 235
BAR_CHROMA = (160, 100)
"""Cb and Cr of the bar: a calm blue."""


@dataclass(frozen=True, slots=True)
class OverlaySettings:
    """``after``: seconds without a result until the notice appears; ``message`` is used when there is
    nothing better to say."""

    enabled: bool = True
    after: float = 1.5
    message: str = "Loading"


@dataclass(frozen=True, slots=True)
class Notice:
    """``progress`` from 0 to 1, or None when it is not known (the bar then moves to and fro)."""

    message: str
    progress: float | None = None


class OverlayPainter:
    """Draws notices for one session; keeps what stays the same from frame to frame."""

    def __init__(self) -> None:
        self._base: Picture | None = None
        self._dimmed: list[Plane] = []
        self._size = (0, 0)
        self._text_for: tuple[str, int, int] | None = None
        self._text: npt.NDArray[np.uint8] = np.zeros((1, 1), np.uint8)

    def paint(self, base: Picture | None, width: int, height: int, notice: Notice) -> Picture:
        """A yuv420p picture of the size of ``base`` (black of ``width`` x ``height`` without one)."""
        if base is not None and base.format == "yuv420p":
            width, height = base.width, base.height
        else:
            base = None
        if base is not self._base or (width, height) != self._size:
            self._dimmed = _dim(base, width, height)
            self._base, self._size = base, (width, height)
        planes = [plane.copy() for plane in self._dimmed]
        self._write(planes[0], notice.message)
        _draw_bar(planes, notice.progress)
        return Picture(
            "yuv420p",
            width,
            height,
            planes,
            matrix=base.matrix if base else "bt709",
            full_range=base.full_range if base else False,
        )

    def _write(self, luma: Plane, message: str) -> None:
        height, width = luma.shape
        if (message, width, height) != self._text_for:
            self._text = _text_mask(message, width, height)
            self._text_for = (message, width, height)
        rows, columns = self._text.shape
        top, left = (height - rows) // 2, (width - columns) // 2
        area = luma[top : top + rows, left : left + columns]
        np.maximum(area, (self._text.astype(np.uint16) * WHITE // 255).astype(np.uint8), out=area)


def _dim(base: Picture | None, width: int, height: int) -> list[Plane]:
    shapes = plane_shapes("yuv420p", width, height)
    if base is None:
        return [
            np.full(shape, level, np.uint8) for shape, level in zip(shapes, (BLACK, 128, 128), strict=True)
        ]
    black = 0 if base.full_range else BLACK
    luma = np.array([black + (max(v, black) - black) * DIM for v in range(256)], np.float32).astype(np.uint8)
    chroma = np.array([128 + (v - 128) * DIM for v in range(256)], np.float32).astype(np.uint8)
    return [(luma if index == 0 else chroma)[plane] for index, plane in enumerate(base.planes)]


def _draw_bar(planes: list[Plane], progress: float | None) -> None:
    height, width = planes[0].shape
    length, thickness = int(width * 0.5) & ~1, max(4, height // 80) & ~1
    top, left = (int(height * 0.62) & ~1), ((width - length) // 2) & ~1
    if length < 8 or top + thickness > height:
        return
    if progress is None:
        sweep = abs((time.monotonic() / 1.6) % 2 - 1)
        start, end = left + int(length * 0.75 * sweep), left + int(length * (0.75 * sweep + 0.25))
    else:
        start, end = left, left + int(length * min(1.0, max(0.0, progress)))
    start, end = start & ~1, end & ~1
    planes[0][top : top + thickness, left : left + length] = 60
    planes[0][top : top + thickness, start:end] = 150
    half = slice(top // 2, (top + thickness) // 2)
    for plane, level in zip(planes[1:], BAR_CHROMA, strict=True):
        plane[half, left // 2 : (left + length) // 2] = 128
        plane[half, start // 2 : end // 2] = level


def _text_mask(message: str, width: int, height: int) -> npt.NDArray[np.uint8]:
    """The words as 8-bit coverage, wrapped to the picture's width."""
    # Pillow takes 50 ms to import and most sessions never show a notice.
    from PIL import Image, ImageDraw, ImageFont

    font: Any = ImageFont.load_default(size=max(10, min(height // 18, width // 16)))
    room = width * 0.9
    lines = _wrap(message, lambda text: font.getlength(text) <= room)[:3]
    text = "\n".join(lines)
    probe = ImageDraw.Draw(Image.new("L", (1, 1)))
    left, top, right, bottom = probe.multiline_textbbox((0, 0), text, font=font, align="center", spacing=4)
    size = (min(width, int(right - left) + 4), min(height, int(bottom - top) + 4))
    image = Image.new("L", size)
    ImageDraw.Draw(image).multiline_text(
        (2 - left, 2 - top), text, fill=255, font=font, align="center", spacing=4
    )
    return np.asarray(image, dtype=np.uint8)


def _wrap(message: str, fits: Any) -> list[str]:
    lines: list[str] = []
    for word in message.split():
        if lines and fits(f"{lines[-1]} {word}"):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines

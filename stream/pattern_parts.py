"""Parts of the test pattern: sprites, the wheel, the clock, and colours as planes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stream.frames import LUMA_COEFFICIENTS, Plane

Pixels = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int16]

FLASH = 0.1
"""Seconds for which the dot beside the clock lights up at each full second."""


@dataclass(frozen=True, slots=True)
class Sprite:
    """A small picture with transparency, as planes of limited-range BT.709; alpha runs from 0 to 128."""

    planes: tuple[Numbers, Numbers, Numbers]
    alphas: tuple[Numbers, Numbers, Numbers]

    @classmethod
    def of(cls, image: Any) -> Sprite:
        """From a Pillow image with alpha, both sides even."""
        rgba = np.asarray(image, dtype=np.uint8)
        alpha = (rgba[..., 3].astype(np.int16) * 128 + 127) // 255
        small = _halved(alpha)
        y, u, v = (plane.astype(np.int16) for plane in yuv_planes(rgba[..., :3]))
        return cls((y, u, v), (alpha, small, small))

    @property
    def width(self) -> int:
        return int(self.planes[0].shape[1])

    def draw(self, planes: list[Plane], left: int, top: int) -> None:
        """Blend it into ``planes``; whatever lies outside is cut off."""
        for index, plane in enumerate(planes):
            half = 1 if index == 0 else 2
            _blend(plane, self.planes[index], self.alphas[index], left // half, top // half)


def paint_wheel(pen: Any, scale: float, turned: float, spokes: int) -> None:
    """A wheel of radius ``scale``, turned by a part of the angle between two spokes."""
    dark, wood, edge = (52, 34, 36, 255), (136, 92, 60, 255), (96, 62, 46, 255)

    def at(angle: float, radius: float, aside: float = 0.0) -> tuple[float, float]:
        cos, sin = math.cos(angle), math.sin(angle)
        return (scale * (1 + radius * cos - aside * sin), scale * (1 + radius * sin + aside * cos))

    def box(radius: float) -> tuple[float, ...]:
        return (scale * (1 - radius), scale * (1 - radius), scale * (1 + radius), scale * (1 + radius))

    for spoke in range(spokes):
        angle = 2 * math.pi * (spoke + turned) / spokes
        pen.line((at(angle, 0), at(angle, 0.86)), fill=edge, width=max(2, round(scale * 0.045)))
        bucket = [at(angle, 0.8, -0.03), at(angle, 0.99, -0.07), at(angle, 0.99, 0.05), at(angle, 0.8, 0.02)]
        pen.polygon(bucket, fill=wood, outline=dark)
    for radius, colour, thick in ((0.88, wood, 0.075), (0.8, dark, 0.02), (0.5, edge, 0.04)):
        pen.ellipse(box(radius), outline=colour, width=max(2, round(scale * thick)))
    pen.ellipse(box(0.12), fill=dark)
    pen.ellipse(box(0.05), fill=wood)


class Clock:
    """Minutes, seconds, thousandths and the frame's number in the upper left corner."""

    _CHARACTERS = "0123456789:.# "

    def __init__(self, size: int) -> None:
        from PIL import Image, ImageDraw, ImageFont

        font: Any = ImageFont.load_default(size=size)
        self._cell = (math.ceil(max(font.getlength(c) for c in "0123456789")) + 1) & ~1
        self._rows = (size + size // 3) & ~1
        self._margin = max(2, size // 2) & ~1
        self._glyphs = {}
        for character in self._CHARACTERS:
            image = Image.new("L", (self._cell, self._rows))
            pen = ImageDraw.Draw(image)
            pen.text((self._cell / 2, self._rows * 0.52), character, fill=219, font=font, anchor="mm")
            self._glyphs[character] = np.asarray(image, dtype=np.uint8)

    def draw(self, planes: list[Plane], number: int, seconds: float) -> None:
        text = f"{int(seconds) // 60 % 100:02d}:{seconds % 60:06.3f} #{number % 1_000_000:06d}"
        columns = np.concatenate([self._glyphs[character] for character in text], axis=1)
        dot = np.zeros((self._rows, self._cell), np.uint8)
        if seconds % 1 < FLASH:
            dot[self._rows // 4 : self._rows * 3 // 4, self._cell // 4 :] = 219
        label = np.concatenate([columns, dot], axis=1)
        top = left = self._margin
        area = planes[0][top : top + self._rows, left : left + label.shape[1]]
        label = label[: area.shape[0], : area.shape[1]]
        # The ground behind the figures is darkened so that they can be read on any sky.
        np.maximum(area // 4 + 12, label, out=area)
        half = slice(top // 2, (top + area.shape[0]) // 2), slice(left // 2, (left + area.shape[1]) // 2)
        for plane in planes[1:]:
            plane[half] = 128


def yuv_planes(rgb: Pixels) -> tuple[Plane, Plane, Plane]:
    """uint8 H x W x 3 as 4:2:0 planes in BT.709, limited range (ITU-T H.273)."""
    kr, kb = LUMA_COEFFICIENTS["bt709"]
    red, green, blue = (rgb[..., index].astype(np.float32) / 255 for index in range(3))
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = ((blue - luma) / (2 * (1 - kb)), (red - luma) / (2 * (1 - kr)))
    small = [(128.5 + 224 * _halved(plane)).clip(16, 240).astype(np.uint8) for plane in chroma]
    return (16.5 + 219 * luma).astype(np.uint8), small[0], small[1]


def _halved(plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Mean of each 2 x 2 block; odd edges stand for themselves."""
    height, width = plane.shape
    padded = np.pad(plane, ((0, height % 2), (0, width % 2)), mode="edge")
    mean = padded.reshape(padded.shape[0] // 2, 2, padded.shape[1] // 2, 2).mean(axis=(1, 3))
    halved: npt.NDArray[Any] = mean.astype(plane.dtype)
    return halved


def _blend(plane: Plane, pixels: Numbers, alpha: Numbers, left: int, top: int) -> None:
    height, width = plane.shape
    rows, columns = pixels.shape
    cut = slice(max(0, -top), min(rows, height - top)), slice(max(0, -left), min(columns, width - left))
    if cut[0].start >= cut[0].stop or cut[1].start >= cut[1].stop:
        return
    area = plane[top + cut[0].start : top + cut[0].stop, left + cut[1].start : left + cut[1].stop]
    # 255 * 128 still fits 16 bits.
    change = pixels[cut] - area
    change *= alpha[cut]
    change >>= 7
    np.add(area, change, out=area, casting="unsafe")


def gradient(stops: tuple[tuple[float, tuple[int, int, int]], ...], rows: int) -> npt.NDArray[np.float32]:
    """Colours from top to bottom, rows x 3."""
    places = np.linspace(0, 1, rows)
    positions = [position for position, _ in stops]
    channels = [np.interp(places, positions, [colour[i] for _, colour in stops]) for i in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)

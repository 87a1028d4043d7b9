"""The picture of the test pattern: a water mill in evening light, with what shows faults of a video path.

Colour bars, gratings down to single pixels, slow gradients, soft and sharp moving edges, and a clock with
the frame's number. What stands still is drawn once; a frame of 640 x 360 then takes about a millisecond.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from stream.frames import Picture, Plane
from stream.pattern_parts import Clock, Pixels, Sprite, gradient, paint_wheel, yuv_planes

SMOOTH = 2
"""What stands still is drawn so many times larger and made smaller, for smooth edges."""
WHEEL_STEPS = 24
"""Pictures of the wheel within the angle after which it looks the same."""
SPOKES = 12
WHEEL_PERIOD = 12.0
"""Seconds of one turn."""

CLOUDS = ((0.022, 0.1, 0.02), (0.037, 0.47, 0.07), (0.015, 0.84, 0.11))
"""Speed, beginning and height of each."""

SKY = ((0.0, (24, 36, 84)), (0.45, (108, 82, 138)), (0.75, (226, 138, 116)), (1.0, (255, 206, 138)))
WATER = ((0.0, (236, 170, 132)), (0.35, (110, 92, 134)), (1.0, (22, 34, 66)))
BARS = (
    (235, 235, 235),
    (235, 235, 16),
    (16, 235, 235),
    (16, 235, 16),
    (235, 16, 235),
    (235, 16, 16),
    (16, 16, 235),
)


class Scene:
    """Draws the pattern at ``width`` x ``height``; building it takes a fraction of a second."""

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self.height = height
        self._unit = min(height, width * 3 // 4)
        self._horizon = int(height * 0.62) & ~1
        self._still = yuv_planes(self._draw_still())
        self._wheel = self._draw_wheel()
        self._balloon = self._draw_balloon()
        self._clouds = [self._draw_cloud(seed, size) for seed, size in ((3, 0.34), (8, 0.24), (14, 0.17))]
        self._clock = Clock(max(10, self._unit // 13))
        self._build_water()

    def draw(self, number: int, seconds: float) -> Picture:
        """Frame ``number``, of the moment ``seconds`` after the start."""
        planes = [plane.copy() for plane in self._still]
        self._flow(planes[0], seconds)
        for index, (cloud, speed, top) in enumerate(
            zip(self._clouds, (9, 15, 6), (0.05, 0.2, 0.31), strict=True)
        ):
            self._drift(cloud, planes, seconds, speed=speed, start=0.1 + 0.37 * index, top=top)
        bob = math.sin(seconds * 1.1) * 0.02
        self._drift(self._balloon, planes, seconds, speed=0.065, start=0.2, top=0.1 + bob)
        step = int(seconds / WHEEL_PERIOD * SPOKES * WHEEL_STEPS) % WHEEL_STEPS
        wheel = self._wheel[step]
        x, y = self._axle
        wheel.draw(planes, x - wheel.width // 2, y - wheel.width // 2)
        self._clock.draw(planes, number, seconds)
        return Picture("yuv420p", self.width, self.height, planes, matrix="bt709")

    def _drift(
        self, sprite: Sprite, planes: list[Plane], seconds: float, *, speed: float, start: float, top: float
    ) -> None:
        """To the right by ``speed`` of the picture's width a second, and in again on the left."""
        way = self.width + sprite.width
        position = (start * way + seconds * speed * self.width) % way - sprite.width
        sprite.draw(planes, int(position), int(top * self.height))

    # -- what stands still -----------------------------------------------------------------------------

    @property
    def _axle(self) -> tuple[int, int]:
        return (int(self.width * 0.62) & ~1, self._horizon - int(self._unit * 0.08) & ~1)

    def _draw_still(self) -> Pixels:
        """Sky, hills, mill, water and the test card's strip, as RGB."""
        from PIL import Image, ImageDraw

        width, height, horizon = self.width, self.height, self._horizon
        rows = np.concatenate([gradient(SKY, horizon), gradient(WATER, height - horizon)], dtype=np.float32)
        still = np.repeat(rows[:, None, :], width, axis=1)
        self._add_sun(still)
        canvas = Image.fromarray(still.clip(0, 255).astype(np.uint8)).resize(
            (width * SMOOTH, height * SMOOTH)
        )
        pen = ImageDraw.Draw(canvas)
        self._draw_hills(pen)
        self._draw_mill(pen)
        pixels = np.array(canvas.resize((width, height), Image.Resampling.BOX))
        self._draw_strip(pixels)
        return pixels

    def _add_sun(self, still: npt.NDArray[np.float32]) -> None:
        """A disc with its glow, and its light on the water."""
        y, x = np.mgrid[0 : self.height, 0 : self.width].astype(np.float32)
        sun_x, sun_y = self.width * 0.3, self._horizon - self._unit * 0.15
        distance = np.hypot(x - sun_x, y - sun_y) / self._unit
        glow = np.exp(-distance * 5)[..., None] * np.array([90, 70, 40], np.float32)
        disc = np.clip((0.075 - distance) * self._unit, 0, 1)[..., None]
        above = (y < self._horizon)[..., None]
        still += np.where(above, glow, 0)
        still += np.where(above, disc * (np.array([255, 244, 214], np.float32) - still), 0)
        path = np.exp(-np.abs(x - sun_x) / (self._unit * 0.07 + (y - self._horizon) * 0.35).clip(1))
        still += np.where(above, 0, path[..., None] * np.array([110, 80, 40], np.float32))

    def _draw_hills(self, pen: Any) -> None:
        ranges = (
            (0.105, 0.030, 1.3, 0.4, (112, 84, 122)),
            (0.060, 0.026, 2.1, 2.0, (72, 62, 98)),
            (0.022, 0.014, 3.4, 4.1, (40, 46, 70)),
        )
        right, foot = self.width * SMOOTH, self._horizon * SMOOTH
        for height, swing, waves, phase, colour in ranges:
            ridge = []
            for x in range(0, right + SMOOTH, SMOOTH):
                turn = x / right * waves * 2 * math.pi + phase
                wave = math.sin(turn) + 0.4 * math.sin(turn * 2.7)
                ridge.append((x, foot - (height + swing * wave) * self._unit * SMOOTH))
            pen.polygon([*ridge, (right, foot), (0, foot)], fill=colour)

    def _draw_mill(self, pen: Any) -> None:
        """The house behind the wheel, and the bank that it stands on."""
        unit, ground = self._unit * SMOOTH, self._horizon * SMOOTH
        left, wide = self._axle[0] * SMOOTH + unit * 0.02, unit * 0.34
        top, bottom = ground - unit * 0.26, ground + unit * 0.02
        bank = (left - unit * 0.04, ground - unit * 0.01, self.width * SMOOTH, ground + unit * 0.035)
        pen.rectangle(bank, fill=(34, 40, 44))
        pen.rectangle((left, top, left + wide, bottom), fill=(214, 178, 144))
        self._draw_bricks(pen, left, top, left + wide)
        eaves = unit * 0.04
        roof = ((left - eaves, top), (left + wide / 2, top - unit * 0.15), (left + wide + eaves, top))
        pen.polygon(roof, fill=(62, 44, 66))
        frame, light = (52, 34, 40), (255, 214, 120)
        for column, row in ((0.55, 0.15), (0.8, 0.15), (0.55, 0.55), (0.8, 0.55)):
            x, y = left + wide * column, top + (bottom - top) * row
            pen.rectangle(
                (x, y, x + unit * 0.045, y + unit * 0.06),
                fill=light,
                outline=frame,
                width=max(1, round(unit * 0.006)),
            )
            middle = x + unit * 0.0225
            pen.line((middle, y, middle, y + unit * 0.06), fill=frame, width=max(1, round(unit * 0.004)))

    def _draw_bricks(self, pen: Any, left: float, top: float, right: float) -> None:
        joint, thin = (182, 144, 116), max(1, round(self._unit * SMOOTH * 0.002))
        tall, wide = self._unit * SMOOTH * 0.0205, self._unit * SMOOTH * 0.048
        for row in range(13):
            y = top + row * tall
            pen.line((left, y, right, y), fill=joint, width=thin)
            for column in range(9):
                x = left + (column - 0.5 * (row % 2)) * wide
                if left <= x <= right:
                    pen.line((x, y, x, y + tall), fill=joint, width=thin)

    def _draw_strip(self, pixels: Pixels) -> None:
        """Colour bars, a grey ramp, and gratings of 4, 2 and 1 pixels along the bottom."""
        tall = max(8, self.height // 18)
        strip = pixels[-tall:]
        third = self.width // 3
        for index, colour in enumerate(BARS):
            strip[:, third * index // len(BARS) : third * (index + 1) // len(BARS)] = colour
        strip[:, third : 2 * third] = np.linspace(16, 235, third).astype(np.uint8)[None, :, None]
        x = np.arange(self.width - 2 * third)
        part = np.minimum(x * 3 // max(1, len(x)), 2)
        strip[:, 2 * third :] = np.where((x >> (2 - part)) % 2, 235, 16).astype(np.uint8)[None, :, None]

    # -- what moves ------------------------------------------------------------------------------------

    def _draw_wheel(self) -> list[Sprite]:
        """One turn of a spoke; what hangs in the water shimmers through."""
        from PIL import Image, ImageDraw

        size = max(16, int(self._unit * 0.46)) & ~1
        scale = size * SMOOTH // 2
        wet = size // 2 + int(self._unit * 0.14)
        under_water = Image.new("L", (size, size), 255)
        under_water.paste(70, (0, wet, size, size))
        sprites = []
        for step in range(WHEEL_STEPS):
            canvas = Image.new("RGBA", (size * SMOOTH, size * SMOOTH))
            paint_wheel(ImageDraw.Draw(canvas), scale, step / WHEEL_STEPS, SPOKES)
            wheel = canvas.resize((size, size), Image.Resampling.BOX)
            alpha = np.asarray(wheel.getchannel("A")).astype(np.uint16) * np.asarray(under_water) // 255
            wheel.putalpha(Image.fromarray(alpha.astype(np.uint8)))
            sprites.append(Sprite.of(wheel))
        return sprites

    def _draw_balloon(self) -> Sprite:
        from PIL import Image, ImageDraw

        height = max(16, int(self._unit * 0.24)) & ~1
        width = int(height * 0.72) & ~1
        w, h = width * SMOOTH, height * SMOOTH
        canvas = Image.new("RGBA", (w, h))
        pen = ImageDraw.Draw(canvas)
        for top, foot in ((0.08, 0.42), (0.92, 0.58)):
            rope = (w * top, w * 0.7, w * foot, h * 0.88)
            pen.line(rope, fill=(50, 40, 44, 255), width=max(1, w // 60))
        skirt = [(w * 0.1, w * 0.74), (w * 0.9, w * 0.74), (w * 0.58, h * 0.82), (w * 0.42, h * 0.82)]
        pen.polygon(skirt, fill=(196, 48, 56, 255))
        stripes = (
            (0.5, (216, 60, 58)),
            (0.36, (248, 196, 84)),
            (0.22, (46, 150, 150)),
            (0.08, (250, 238, 214)),
        )
        for half, colour in stripes:
            pen.ellipse((w * (0.5 - half), 0, w * (0.5 + half) - 1, w - 1), fill=(*colour, 255))
        pen.rounded_rectangle((w * 0.4, h * 0.88, w * 0.6, h - 1), radius=w * 0.03, fill=(98, 66, 46, 255))
        return Sprite.of(canvas.resize((width, height), Image.Resampling.BOX))

    def _draw_cloud(self, seed: int, size: float) -> Sprite:
        from PIL import Image, ImageDraw, ImageFilter

        random = np.random.default_rng(seed)
        width = max(16, int(self.width * size)) & ~1
        height = max(8, int(width * 0.28)) & ~1
        alpha = Image.new("L", (width, height))
        pen = ImageDraw.Draw(alpha)
        for _ in range(14):
            x, wide = random.uniform(0.3, 0.7) * width, random.uniform(0.1, 0.24) * width
            y, tall = height * random.uniform(0.42, 0.68), height * random.uniform(0.1, 0.24)
            pen.ellipse((x - wide, y - tall, x + wide, y + tall), fill=190)
        alpha = alpha.filter(ImageFilter.GaussianBlur(height * 0.07))
        shade = np.linspace(0, 1, height)[:, None, None]
        colour = (1 - shade) * np.array([250, 220, 214]) + shade * np.array([214, 150, 160])
        rgb = np.repeat(colour, width, axis=1).astype(np.uint8)
        return Sprite.of(Image.fromarray(np.dstack([rgb, np.asarray(alpha)])))

    def _build_water(self) -> None:
        """Two layers of ripples, periodic across the picture, narrow far away and wide near by."""
        top, bottom = self._horizon + int(self._unit * 0.035), self.height - max(8, self.height // 18)
        self._water = slice(top, bottom)
        rows, width = max(0, bottom - top), self.width
        depth = np.linspace(0, 1, max(rows, 1))[:rows, None]
        x = np.arange(width)[None, :] / width * 2 * np.pi
        random = np.random.default_rng(5)
        layers = []
        for _ in range(2):
            phase = np.cumsum(random.uniform(0.4, 1.4, (rows, 1)), axis=0)
            slow = np.round(9 - 5 * depth)
            waves = np.sin(x * slow + phase) + np.sin(x * (2 * slow + 3) + 1.7 * phase)
            layers.append((np.maximum(waves - 0.5, 0) * 12 * (0.4 + depth)).astype(np.uint8))
        self._ripples = layers

    def _flow(self, luma: Plane, seconds: float) -> None:
        area = luma[self._water]
        for ripples, speed in zip(self._ripples, (0.03, -0.018), strict=True):
            shift = int(seconds * speed * self.width) % self.width
            # Below white: the water is never brighter than 190 and two ripples add at most 45.
            area[:, : self.width - shift] += ripples[:, shift:]
            area[:, self.width - shift :] += ripples[:, :shift]

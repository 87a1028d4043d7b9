"""Levels of H.264: which one a stream needs, and how large a picture one allows (ITU-T H.264, table A-1)."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Level:
    """``idc`` is level_idc, ten times the level's number; frame sizes count macroblocks of 16 x 16, rates
    macroblocks a second, ``bitrate`` thousands of bits a second in the profiles below high."""

    idc: int
    rate: int
    frame: int
    bitrate: int

    @property
    def name(self) -> str:
        return f"{self.idc / 10:g}"


LEVELS = tuple(
    Level(*row)
    for row in (
        (10, 1_485, 99, 64),
        (11, 3_000, 396, 192),
        (12, 6_000, 396, 384),
        (13, 11_880, 396, 768),
        (20, 11_880, 396, 2_000),
        (21, 19_800, 792, 4_000),
        (22, 20_250, 1_620, 4_000),
        (30, 40_500, 1_620, 10_000),
        (31, 108_000, 3_600, 14_000),
        (32, 216_000, 5_120, 20_000),
        (40, 245_760, 8_192, 20_000),
        (41, 245_760, 8_192, 50_000),
        (42, 522_240, 8_704, 50_000),
        (50, 589_824, 22_080, 135_000),
        (51, 983_040, 36_864, 240_000),
        (52, 2_073_600, 36_864, 240_000),
        (60, 4_177_920, 139_264, 240_000),
        (61, 8_355_840, 139_264, 480_000),
        (62, 16_711_680, 139_264, 800_000),
    )
)


def level_for(width: int, height: int, framerate: float, bitrate: int, *, high: bool = False) -> Level | None:
    """The lowest level for pictures of that size, frames and bits a second; None where none allows them.

    ``high``: the high profile's bitrates, which are a quarter more.
    """
    columns, rows = -(-width // 16), -(-height // 16)
    for level in LEVELS:
        longest = math.isqrt(8 * level.frame)
        allowed = level.bitrate * (1250 if high else 1000)
        if (
            columns * rows <= level.frame
            and max(columns, rows) <= longest
            and columns * rows * framerate <= level.rate
            and bitrate <= allowed
        ):
            return level
    return None


def largest_size(idc: int, framerate: float = 30.0) -> tuple[int, int]:
    """The largest picture of 16:9 that a level allows at a frame rate, in whole macroblocks.

    A level_idc that is not in the table counts as the next lower one, one below all as the lowest.
    """
    level = next((level for level in reversed(LEVELS) if level.idc <= idc), LEVELS[0])
    blocks = min(level.frame, int(level.rate / framerate))
    columns = math.isqrt(blocks * 16 // 9)
    return columns * 16, blocks // columns * 16

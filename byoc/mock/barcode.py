"""A frame's number, burnt into its picture so that it survives cropping, scaling and encoding.

Six by six cells stand in the top left corner of the picture's central square, one cell from its edges; a
cell is a twentieth of that square. Row by row they carry a white mark, 22 bits of number, 12 bits of
checksum and a black mark. The marks give the reader its threshold, and swapped they tell an inverted
picture. Needs numpy alone, so that any process under test can load it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

GRID = 6
CELLS_PER_SIDE = 20
NUMBER_BITS = 22
CHECK_BITS = 12
CHECK_POLYNOMIAL = 0x80F
BLACK, WHITE = 40, 215
MIN_CONTRAST = 0.2
"""Least difference of the two marks, of full scale."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What stands in a picture."""

    number: int
    inverted: bool = False


def paint(luma: npt.NDArray[np.uint8], number: int) -> None:
    """Burn ``number`` into ``luma`` (H x W)."""
    height, width = luma.shape
    for (top, bottom, left, right), bit in zip(_cells(height, width, 0.0), _bits(number), strict=True):
        luma[top:bottom, left:right] = WHITE if bit else BLACK


def read(picture: npt.NDArray[Any]) -> Mark | None:
    """The number in ``picture`` (H x W or H x W x C, bytes or floats of 0..1); None if none is legible."""
    height, width = picture.shape[:2]
    scale = 255.0 if picture.dtype == np.uint8 else 1.0
    levels = np.array(
        [picture[top:bottom, left:right].mean() for top, bottom, left, right in _cells(height, width)]
    )
    levels /= scale
    contrast = levels[0] - levels[-1]
    if not abs(contrast) > MIN_CONTRAST:
        return None
    shares = (levels - levels[-1]) / contrast
    if np.any(np.abs(shares - 0.5) < 0.15):
        return None
    bits = (shares > 0.5).tolist()
    number = sum(bit << place for place, bit in enumerate(reversed(bits[1 : 1 + NUMBER_BITS])))
    return Mark(number, bool(contrast < 0)) if bits == _bits(number) else None


def read_number(picture: npt.NDArray[Any]) -> int | None:
    """The number alone, from an upright or inverted picture."""
    mark = read(picture)
    return None if mark is None else mark.number


def _cells(height: int, width: int, inset: float = 0.25) -> Iterator[tuple[int, int, int, int]]:
    """Top, bottom, left and right of each cell, less ``inset`` of a cell on each side."""
    cell = min(height, width) / CELLS_PER_SIDE
    top = (height - min(height, width)) / 2 + cell
    left = (width - min(height, width)) / 2 + cell
    for row in range(GRID):
        for column in range(GRID):
            yield (
                round(top + (row + inset) * cell),
                round(top + (row + 1 - inset) * cell),
                round(left + (column + inset) * cell),
                round(left + (column + 1 - inset) * cell),
            )


def _bits(number: int) -> list[bool]:
    if not 0 <= number < 1 << NUMBER_BITS:
        raise ValueError(f"a frame's number is below {1 << NUMBER_BITS}, not {number}")
    word = number << CHECK_BITS | _check(number)
    places = range(NUMBER_BITS + CHECK_BITS - 1, -1, -1)
    return [True, *(bool(word >> place & 1) for place in places), False]


def _check(number: int) -> int:
    """CRC-12 of the number's 22 bits."""
    rest = number << CHECK_BITS
    for place in range(NUMBER_BITS + CHECK_BITS - 1, CHECK_BITS - 1, -1):
        if rest >> place & 1:
            rest ^= (1 << CHECK_BITS | CHECK_POLYNOMIAL) << (place - CHECK_BITS)
    return rest

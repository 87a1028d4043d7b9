"""Samples of sound in memory: their formats, their layouts, and whether they are what a frame says. Pure.

The engine's host loads this module in foreign interpreters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

MAX_RATE = 768_000
SAMPLE_TYPES = {
    name + planar: np.dtype(kind)
    for name, kind in (
        ("u8", "u1"),
        ("s16", "<i2"),
        ("s32", "<i4"),
        ("s64", "<i8"),
        ("flt", "<f4"),
        ("dbl", "<f8"),
    )
    for planar in ("", "p")
}
"""What a sample is, by FFmpeg's names of formats; those that end with ``p`` are planar."""

_NAMED = {
    "mono": 1,
    "stereo": 2,
    "downmix": 2,
    "quad": 4,
    "hexagonal": 6,
    "octagonal": 8,
    "cube": 8,
    "hexadecagonal": 16,
}


def channels_of(layout: str) -> int:
    """How many channels a layout of FFmpeg's has (``5.1(side)``, ``7 channels``); `ValueError` for an
    unknown one."""
    if (known := _NAMED.get(layout)) is not None:
        return known
    base = layout.partition("(")[0].strip()
    parts = base.removesuffix(" channels").split(".")
    if base in _NAMED:
        return _NAMED[base]
    if not all(part.isascii() and part.isdigit() for part in parts) or (count := sum(map(int, parts))) < 1:
        raise ValueError(f"unknown channel layout {layout!r}")
    return count


def checked_samples(samples: object, format: str, layout: str, rate: object) -> npt.NDArray[Any]:  # noqa: A002
    """``samples`` without gaps and in the type of their format: planar ones channels x n, packed ones
    1 x (n * channels). Floats may have come in another width. Raises `ValueError` for anything else."""
    kind = SAMPLE_TYPES.get(format)
    if kind is None:
        raise ValueError(f"sample format {format!r}; known are {', '.join(SAMPLE_TYPES)}")
    if not isinstance(samples, np.ndarray):
        raise ValueError(f"samples of format {format} are an array of {kind}, not a {type(samples).__name__}")
    alike = samples.dtype == kind or samples.dtype.kind == kind.kind == "f"
    if samples.ndim != 2 or not alike:
        raise ValueError(f"samples of format {format} are 2-D {kind}, not {samples.dtype} {samples.shape}")
    channels = channels_of(layout)
    rows, columns = samples.shape
    fits = rows == channels if format.endswith("p") else rows == 1 and columns % channels == 0
    if not fits:
        expected = f"{channels} x n" if format.endswith("p") else f"1 x (n * {channels})"
        raise ValueError(f"samples of format {format}, {layout}, are {expected}, not {rows} x {columns}")
    if type(rate) is not int or not 0 < rate <= MAX_RATE:
        raise ValueError(f"a sample rate of {rate!r}")
    return np.ascontiguousarray(samples, dtype=kind)

"""Masks as they are answered with: JSON, COCO's run lengths, PNG files."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import numpy.typing as npt

from stream.errors import TooLarge

Logits = npt.NDArray[np.float32]
"""[masks, height, width]; above 0 is inside."""

MAX_NUMBERS = 16_000_000
"""Values that an answer in JSON may have."""
_DECIMALS = 4


def as_json(values: npt.NDArray[Any]) -> bytes:
    """Nested lists of numbers or of ``true`` and ``false``, without spaces.

    What was above 0 stays above 0, so that a client that cuts the logits there has the mask.

    Raises `TooLarge` for more values than `MAX_NUMBERS`.
    """
    check_numbers(values.size)
    if values.dtype == np.bool_:
        return json.dumps(values.tolist(), separators=(",", ":")).encode()
    # Four decimals of a logit are more than a model knows, and half the text.
    exact = np.nan_to_num(values.astype(np.float32)).astype(np.float64)
    rounded = np.round(exact, _DECIMALS)
    rounded[(exact > 0) & (rounded == 0)] = 10.0**-_DECIMALS
    return json.dumps(rounded.tolist(), separators=(",", ":")).encode()


def check_numbers(count: int) -> None:
    if count > MAX_NUMBERS:
        raise TooLarge(
            f"mask_format is 'json', and the masks have {count} values; {MAX_NUMBERS} are the limit: ask for "
            "'rle' or 'png'",
            field="mask_format",
        )


def run_lengths(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """One mask [height, width] as COCO's compressed run lengths: ``size`` [h, w] and ``counts``.

    Runs go down the columns and begin with one of zeros. From the third on a run is written as its
    difference to the one two before, in groups of five bits from the lowest, each a character from ``0`` on,
    bit six telling of more (github.com/cocodataset/cocoapi, maskApi.c, rleToString).
    """
    flat = mask.flatten(order="F").astype(np.int8)
    edges = np.flatnonzero(np.diff(flat, prepend=np.int8(0)))
    runs = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    out = bytearray()
    for number, run in enumerate(runs):
        value = run - runs[number - 2] if number > 2 else run
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != (-1 if bits & 0x10 else 0)
            out.append((bits | (0x20 if more else 0)) + 48)
    return {"size": [int(side) for side in mask.shape], "counts": out.decode("ascii")}


def as_png(mask: npt.NDArray[np.bool_]) -> bytes:
    """One mask as a PNG file of one bit a pixel: white is inside."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).convert("1").save(file, "PNG")
    return file.getvalue()

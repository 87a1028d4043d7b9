"""Pictures into a pipeline and out of it: sides that fit, the mark of random weights, answers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.batch.contract import Job, Result
from headrace.batch.pipelines.pictures import Pixels, png, read_picture
from stream.errors import InvalidInput, TooLarge

MAX_SIDE = 4096
"""Of a picture that a diffusion model works on."""
MARK = "RANDOM WEIGHTS"
_MARK_COLOUR = (255, 214, 0)


def uploaded(job: Job, field: str = "image") -> Pixels:
    """The picture that came with the request. Raises `InvalidInput` where there is none."""
    if field not in job.blobs:
        raise InvalidInput(f"{field} is missing; {job.pipeline} needs a picture", field=field)
    return read_picture(job.blobs[field], field)


def check_side(picture: Pixels, field: str = "image") -> None:
    height, width = picture.shape[:2]
    if max(height, width) > MAX_SIDE:
        raise TooLarge(
            f"{field} is {width} x {height}; a side may have {MAX_SIDE} pixels at most", field=field
        )


def padded(picture: Pixels, multiple: int) -> Pixels:
    """The picture with its right and lower edge repeated until both sides are multiples."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, -height % multiple), (0, -width % multiple), (0, 0)), mode="edge")


# -- random weights ------------------------------------------------------------------------------------


def mark(picture: Pixels) -> Pixels:
    """The picture with a band below that says that nothing in it was learned."""
    height, width = picture.shape[:2]
    band = _band(width, max(1, min(height, round(max(height, width) / 16), 48)))
    marked = picture.copy()
    marked[height - band.shape[0] :] = band
    return marked


@functools.lru_cache(maxsize=16)
def _band(width: int, height: int) -> Pixels:
    """[height, width, 3]: the words, as large as they fit, yellow on black."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(32)
    left, top, right, bottom = (round(side) for side in font.getbbox(MARK))
    words = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(words).text((-left, -top), MARK, fill=255, font=font)
    scale = min((width - 2) / words.width, (height - 2) / words.height)
    if scale > 0:
        size = (max(1, int(words.width * scale)), max(1, int(words.height * scale)))
        words = words.resize(size, Image.Resampling.BOX)
    band = Image.new("L", (width, height))
    band.paste(words, ((width - words.width) // 2, (height - words.height) // 2))
    cover = np.asarray(band, dtype=np.float64)[..., None] / 255
    coloured: Pixels = (cover * np.array(_MARK_COLOUR)).round().astype(np.uint8)
    coloured.flags.writeable = False
    return coloured


# -- answers -------------------------------------------------------------------------------------------


@dataclass
class Made:
    """What a model made for a request, when it has been given back.

    ``unsafe``: for each picture, whether the safety checker flagged it; ``safety`` tells whether one looked.
    """

    pictures: Sequence[Pixels]
    unsafe: Sequence[bool]
    safety: str
    weights: str


def answer(made: Made, *, seed: int, adjusted: Sequence[dict[str, Any]] = ()) -> Result:
    """PNG files in the form of ai-runner's answers; picture k was made with ``seed`` + k."""
    blobs: dict[str, bytes] = {}
    images = []
    for number, (picture, nsfw) in enumerate(zip(made.pictures, made.unsafe, strict=True)):
        name = f"{number}.png"
        blobs[name] = png(mark(picture) if made.weights == "random" else picture)
        images.append({"blob": name, "seed": seed + number, "nsfw": bool(nsfw)})
    body: dict[str, Any] = {"images": images, "weights": made.weights, "safety": made.safety}
    if adjusted:
        body["adjusted"] = list(adjusted)
    return Result(body, blobs)

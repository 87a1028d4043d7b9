"""Pictures four times as large by Stable Diffusion's x4 upscaler, large ones in overlapping tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.batch.contract import Job, Result
from headrace.batch.pipelines import diffusion
from headrace.batch.pipelines.diffusion import Checkpoint
from headrace.batch.pipelines.diffusion_run import call, generators, to_pixels, tuned
from headrace.batch.pipelines.images import Made, answer, padded, uploaded
from headrace.batch.pipelines.pictures import Pixels
from headrace.batch.pipelines.safety import checker
from headrace.batch.pipelines.text_to_image import seed_of
from headrace.models.cache import ModelCache
from headrace.models.store import Located
from stream.errors import InvalidInput, TooLarge

SCALE = 4
MULTIPLE = 8
"""The unet halves sides three times."""
TILE, OVERLAP = 256, 32
"""Pixels of the small picture. A tile becomes 1024 pixels wide, what a device for SDXL has memory for."""
MAX_PIXELS = 4_000_000
"""Of the small picture: 64 tiles, and a large one of 64 million."""
DEFAULTS = {"num_inference_steps": 75}


class DiffusionUpscale:
    """What `headrace.batch.pipelines.upscale.Upscale` gives models of diffusers to.

    The blob ``image``; inputs: ``prompt``, ``num_inference_steps``, ``seed``, ``safety_check``, ``withhold``.
    """

    def run(self, job: Job, models: ModelCache, found: Located) -> Result:
        inputs, adjusted = tuned(job, DEFAULTS)
        seed, picture = seed_of(inputs), uploaded(job)
        height, width = picture.shape[:2]
        if height * width > MAX_PIXELS:
            raise TooLarge(
                f"image is {width} x {height}; this model enlarges up to {MAX_PIXELS} pixels", field="image"
            )
        with diffusion.acquire(job, models, found) as lease, checker(job, models) as safety, job.turn():
            larger = _enlarge(job, lease.model, inputs, picture, seed)
            shown, unsafe = safety.look([larger])
            made = Made(shown, unsafe, safety.state, lease.weights)
        result = answer(made, seed=seed, adjusted=adjusted)
        result.body["scale"] = SCALE
        return result

    def warm(self, job: Job, models: ModelCache, found: Located) -> None:
        diffusion.acquire(job, models, found).release()


def _enlarge(job: Job, checkpoint: Checkpoint, inputs: dict[str, Any], picture: Pixels, seed: int) -> Pixels:
    import diffusers
    from PIL import Image

    if checkpoint.index != "StableDiffusionUpscalePipeline":
        raise InvalidInput(
            f"model {job.model} is a {checkpoint.index}, which does no {job.pipeline}", field="model_id"
        )
    steps = int(inputs["num_inference_steps"])

    def through(part: Pixels, number: int, of: int) -> Pixels:
        # A fresh view: a scheduler remembers the steps of its last tile.
        pipe = checkpoint.view(diffusers.StableDiffusionUpscalePipeline)
        arguments = {
            "prompt": str(inputs.get("prompt") or ""),
            "image": Image.fromarray(padded(part, MULTIPLE)),
            "num_inference_steps": steps,
            "generator": generators(seed, 1)[0],
        }

        def step(pipe: Any, done: int) -> None:
            count = len(pipe.scheduler.timesteps)
            job.progress(number * count + done + 1, of * count, "steps" if of == 1 else "steps of tiles")

        made = to_pixels(call(pipe, arguments, step).images[0])
        return made[: part.shape[0] * SCALE, : part.shape[1] * SCALE]

    return in_tiles(picture, through)


def in_tiles(picture: Pixels, through: Callable[[Pixels, int, int], Pixels]) -> Pixels:
    """``picture`` enlarged by ``through`` (part, number, how many), in tiles that fade into each other."""
    height, width = picture.shape[:2]
    tiles = [(top, bottom, left, right) for top, bottom in spans(height) for left, right in spans(width)]
    if len(tiles) == 1:
        return through(picture, 0, 1)
    total = np.zeros((height * SCALE, width * SCALE, 3), dtype=np.float32)
    share = np.zeros((height * SCALE, width * SCALE, 1), dtype=np.float32)
    for number, (top, bottom, left, right) in enumerate(tiles):
        made = through(picture[top:bottom, left:right], number, len(tiles))
        weight = np.outer(ramp(top, bottom, height), ramp(left, right, width))[..., None]
        place = np.s_[top * SCALE : bottom * SCALE, left * SCALE : right * SCALE]
        total[place] += made * weight
        share[place] += weight
    blended: Pixels = (total / share).round().clip(0, 255).astype(np.uint8)
    return blended


def spans(size: int) -> list[tuple[int, int]]:
    """Begins and ends of tiles of at most `TILE` that cover ``size`` and overlap by `OVERLAP` at least."""
    if size <= TILE:
        return [(0, size)]
    count = -(-(size - OVERLAP) // (TILE - OVERLAP))
    return [(begin := (size - TILE) * n // (count - 1), begin + TILE) for n in range(count)]


def ramp(begin: int, end: int, size: int) -> npt.NDArray[np.float32]:
    """How much each large pixel of a tile counts: less towards sides where there is a neighbour."""
    weight = np.ones((end - begin) * SCALE, dtype=np.float32)
    slope = (np.arange(OVERLAP * SCALE, dtype=np.float32) + 1) / (OVERLAP * SCALE + 1)
    if begin > 0:
        weight[: slope.size] *= slope
    if end < size:
        weight[-slope.size :] *= slope[::-1]
    return weight

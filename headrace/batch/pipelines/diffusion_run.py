"""Calls a diffusion pipeline for the pictures of one request: seeds, batches, progress, giving up."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from headrace.batch.contract import Job
from headrace.batch.defaults import adjust
from headrace.batch.pipelines.pictures import Pixels
from headrace.models import memory
from stream.errors import InvalidInput

MOST_AT_ONCE = 8
CPU_PIXELS = 1 << 20
"""Pixels of the pictures that a CPU makes at once."""
BYTES_A_PIXEL = 4096
"""Device memory that a pixel of the picture takes while it is made, generously."""


def tuned(job: Job, defaults: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The job's inputs with ``defaults`` for what is absent, within what the model can use.

    The second are the values that were not taken as they were asked for; see `headrace.batch.defaults`. The
    front does the same to what it sends, so then there are none.
    """
    asked = {name: value for name, value in job.inputs.items() if value is not None}
    inputs, told = adjust(job.model, {**defaults, **asked}, asked.keys())
    return inputs, [item.as_dict() for item in told]


def check_size(name: str, value: int, multiple: int) -> int:
    """Raise `InvalidInput` for a side that the model cannot make."""
    if value < multiple or value % multiple:
        raise InvalidInput(f"{name} is {value}; this model makes multiples of {multiple} pixels", field=name)
    return value


def multiple_of(pipe: Any) -> int:
    """Sides of pictures are multiples of this many pixels."""
    # Two by two latents become one token of a transformer.
    packs = getattr(getattr(pipe, "transformer", None), "config", None) is not None
    return int(pipe.vae_scale_factor) * (2 if packs else 1)


def generators(seed: int, count: int) -> list[torch.Generator]:
    """One for each picture, number k with ``seed`` + k. On the CPU, so that all devices draw the same."""
    return [torch.Generator("cpu").manual_seed(seed + number) for number in range(count)]


def at_once(device: str, pixels: int, count: int) -> int:
    """How many pictures of so many pixels are made together."""
    room = CPU_PIXELS
    if device.startswith("cuda"):
        room = torch.cuda.mem_get_info(device)[0] // 2 // BYTES_A_PIXEL
    return max(1, min(count, MOST_AT_ONCE, room // max(pixels, 1)))


def make_pictures(
    job: Job, pipe: Any, arguments: Mapping[str, Any], *, seed: int, count: int, pixels: int
) -> list[Pixels]:
    """``count`` pictures; those made together are what they would be one by one, but for rounding.

    ``arguments`` of the call that the pipeline does not take are left out. ``pixels``: of one picture. Where
    memory runs out the rest is made fewer at once.
    """
    together = at_once(job.device, pixels, count)
    made: list[Pixels] = []
    while len(made) < count:
        number = min(together, count - len(made))
        more = _try(job, pipe, arguments, seed, len(made), number, count)
        if more is None:
            together = max(1, number // 2)
            memory.trim(job.device)
            continue
        made += more
    return made


def _try(
    job: Job, pipe: Any, arguments: Mapping[str, Any], seed: int, begun: int, number: int, count: int
) -> list[Pixels] | None:
    """``number`` pictures; None where there was no memory for more than one of them."""
    given = dict(arguments)
    if "image" in given:
        # Each picture of the batch draws its own noise for it.
        given["image"] = [given["image"]] * number
    given |= {"num_images_per_prompt": number, "generator": generators(seed + begun, number)}
    try:
        made = call(pipe, given, on_step(job, begun, number, count))
    except Exception as error:  # told apart below; memory may run out in many ways
        if number == 1 or not memory.is_out_of_memory(error):
            raise
        return None
    return [to_pixels(picture) for picture in made.images]


def call(pipe: Any, arguments: Mapping[str, Any], step: Callable[[Any, int], None]) -> Any:
    """What ``pipe`` returns for those of ``arguments`` that it names; pictures as floats.

    Arguments in a ``**kwargs`` count as not taken: pipelines swallow what they do not know there.
    """
    takes = inspect.signature(type(pipe).__call__).parameters
    given = {name: value for name, value in arguments.items() if name in takes}

    def told(pipe: Any, number: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        step(pipe, number)
        return {}

    if "callback_on_step_end" in takes:
        given["callback_on_step_end"] = told
    elif "callback" in takes:
        given["callback"] = lambda number, timestep, latents: step(pipe, number)
    return pipe(**given, output_type="np")


def on_step(job: Job, begun: int, number: int, count: int) -> Callable[[Any, int], None]:
    """Tells the job of each step of ``number`` pictures made together, after ``begun`` of ``count``."""

    def step(pipe: Any, done: int) -> None:
        steps = len(pipe.scheduler.timesteps)
        steps = getattr(pipe, "num_timesteps", steps) or steps
        job.progress(begun * steps + (done + 1) * number, count * steps, "steps")

    return step


def to_pixels(picture: Any) -> Pixels:
    """Floats of 0 to 1 as bytes; what is no number becomes black."""
    scaled = np.multiply(picture, 255, dtype=np.float32)
    np.nan_to_num(scaled, copy=False, nan=0.0)
    np.rint(scaled, out=scaled)
    np.clip(scaled, 0, 255, out=scaled)
    pixels: Pixels = scaled.astype(np.uint8)
    return pixels

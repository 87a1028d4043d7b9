"""Calls a diffusion pipeline: what it is given, how much at once, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch

from headrace.batch.contract import Job
from headrace.batch.defaults import adjust
from headrace.batch.pipelines.pictures import Pixels
from headrace.models.loading import call_arguments_of
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


def call(pipe: Any, arguments: Mapping[str, Any], step: Callable[[Any, int], None]) -> Any:
    """What ``pipe`` returns for those of ``arguments`` that it names; pictures as floats.

    Arguments in a ``**kwargs`` count as not taken: pipelines swallow what they do not know there.
    """
    takes = call_arguments_of(cast(Any, type(pipe)))
    given = {name: value for name, value in arguments.items() if name in takes}

    def told(pipe: Any, number: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        step(pipe, number)
        return {}

    if "callback_on_step_end" in takes:
        given["callback_on_step_end"] = told
    elif "callback" in takes:
        given["callback"] = lambda number, timestep, latents: step(pipe, number)
    return pipe(**given, output_type="np")


def steps_of(pipe: Any) -> int:
    """Steps of the call under way."""
    steps = len(pipe.scheduler.timesteps)
    return int(getattr(pipe, "num_timesteps", steps) or steps)


def on_step(job: Job) -> Callable[[Any, int], None]:
    """Tells the job of each step of what is made at once."""

    def step(pipe: Any, done: int) -> None:
        job.progress(done + 1, steps_of(pipe), "steps")

    return step


def to_pixels(picture: Any) -> Pixels:
    """Floats of 0 to 1 as bytes; what is no number becomes black."""
    scaled = np.multiply(picture, 255, dtype=np.float32)
    np.nan_to_num(scaled, copy=False, nan=0.0)
    np.rint(scaled, out=scaled)
    np.clip(scaled, 0, 255, out=scaled)
    pixels: Pixels = scaled.astype(np.uint8)
    return pixels

"""When in the noise schedule a stream's steps lie, and the constants that follow from it.

The grid is that of latent consistency models (Luo et al. 2023, arXiv 2310.04378), which StreamDiffusion
(Kodaira et al. 2023, arXiv 2312.12491) runs all its models on: `num_inference_steps` points from 999 down, of
which a stream takes those that `t_index_list` names. Plain Python: the worker checks parameters with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stream.errors import InvalidInput

TRAIN_STEPS = 1000
MAX_STEPS = 100
MAX_ROWS = 4
"""Entries of ``t_index_list``: each is one row of the network's batch and one frame of delay."""

_SIGMA_DATA = 0.5
_TIME_SCALE = 10.0


@dataclass(frozen=True, slots=True)
class StepConstants:
    """The constants of one step at time ``t``.

    A latent with noise is ``signal * x0 + noise * z``. What the network's prediction eps makes of it is
    ``from_input * x + from_prediction * eps`` (the consistency model's skip and output factors are in there).
    """

    t: int
    signal: float
    noise: float
    from_input: float
    from_prediction: float

    @property
    def position(self) -> float:
        """How far along the schedule it lies: 0 is pure noise, towards 1 the clean picture."""
        return (TRAIN_STEPS - 1 - self.t) / TRAIN_STEPS


def grid(steps: int) -> tuple[int, ...]:
    """The times of ``steps`` inference steps, first to last; raises `InvalidInput` outside 1 to 100.

    Up to 50 steps they are chosen among 50 (as `LCMScheduler` does by default), beyond that among 100.
    """
    if not 1 <= steps <= MAX_STEPS:
        raise InvalidInput(f"num_inference_steps is {steps}; 1 to {MAX_STEPS}", field="num_inference_steps")
    of = 50 if steps <= 50 else 100
    stride = TRAIN_STEPS // of
    descending = [stride * (index + 1) - 1 for index in reversed(range(of))]
    return tuple(descending[index * of // steps] for index in range(steps))


def check_indices(t_index_list: Sequence[int], steps: int) -> tuple[int, ...]:
    """The indices when they fit a grid of ``steps``. Raises `InvalidInput` that names what does not."""
    name = "t_index_list"
    if not 1 <= len(t_index_list) <= MAX_ROWS:
        raise InvalidInput(f"{name} has {len(t_index_list)} entries; 1 to {MAX_ROWS}", field=name)
    for index in t_index_list:
        if not 0 <= index < steps:
            raise InvalidInput(f"{name} has {index}; 0 to {steps - 1} with {steps} steps", field=name)
    if list(t_index_list) != sorted(t_index_list):
        raise InvalidInput(f"{name} is {list(t_index_list)}; its values may not go down", field=name)
    return tuple(t_index_list)


def rescaled(t_index_list: Sequence[int], before: int, after: int) -> tuple[int, ...]:
    """The indices that lie at the same places of a grid of ``after`` steps as they did of ``before``."""
    if before <= 1:
        return tuple(0 for _ in t_index_list)
    return tuple(min(round(index * (after - 1) / (before - 1)), after - 1) for index in t_index_list)


def constants(
    t_index_list: Sequence[int], steps: int, alphas_cumprod: Sequence[float]
) -> tuple[StepConstants, ...]:
    """The constants of each step. ``alphas_cumprod`` is the model's own noise schedule, 1000 values."""
    times = grid(steps)
    return tuple(
        _at(times[index], alphas_cumprod[times[index]]) for index in check_indices(t_index_list, steps)
    )


def _at(t: int, alpha: float) -> StepConstants:
    signal, noise = math.sqrt(alpha), math.sqrt(1.0 - alpha)
    scaled = _TIME_SCALE * t
    skip = _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2)
    out = scaled / math.sqrt(scaled**2 + _SIGMA_DATA**2)
    return StepConstants(t, signal, noise, out / signal + skip, -out * noise / signal)

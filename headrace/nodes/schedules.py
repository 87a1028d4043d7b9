"""Noise levels of a model and the schedules that choose some of them, as ComfyUI's schedulers do.

A level is sigma, the deviation of the noise over that of the picture, from 0.03 to 14.6 for Stable Diffusion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

_BETA = 0.6
_RHO = 7.0
_LINEAR_SHARE = 0.025
"""Of the noise that the linear half of ``linear_quadratic`` takes away."""
_ALWAYS = 999_999_999.9
_LAST_ALPHA = 4.8973451890853435e-08
"""What is left of the picture where the last level should leave nothing."""


@dataclass(frozen=True)
class Levels:
    """The sigmas that a model was trained on, rising; one for each timestep."""

    sigmas: torch.Tensor
    logs: torch.Tensor

    @classmethod
    def of(cls, scheduler: Mapping[str, Any]) -> Levels:
        """From the configuration of a scheduler of diffusers with betas of ``scaled_linear``."""
        roots = [float(scheduler.get(name, other)) ** 0.5 for name, other in
                 (("beta_start", 0.00085), ("beta_end", 0.012))]  # fmt: skip
        steps = int(scheduler.get("num_train_timesteps", 1000))
        betas = torch.linspace(roots[0], roots[1], steps, dtype=torch.float64) ** 2
        kept = torch.cumprod(1 - betas, 0)
        if scheduler.get("rescale_betas_zero_snr"):
            kept = _to_zero(kept)
        sigmas = ((1 - kept) / kept) ** 0.5
        return cls(sigmas.float(), sigmas.log().float())

    @property
    def least(self) -> float:
        return float(self.sigmas[0])

    @property
    def most(self) -> float:
        return float(self.sigmas[-1])

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        """The number of the level that is nearest, by logarithm."""
        distance = (sigma.log().cpu() - self.logs).abs()
        return distance.argmin().to(sigma.device)

    def sigma(self, timestep: float) -> float:
        """Between two levels by logarithm."""
        place = torch.tensor(timestep, dtype=torch.float32).clamp(0, len(self.sigmas) - 1)
        low, high, share = place.floor().long(), place.ceil().long(), place.frac()
        return float(((1 - share) * self.logs[low] + share * self.logs[high]).exp())

    def at_percent(self, percent: float) -> float:
        """The level after so much of the way, 0 to 1, of the timesteps."""
        if percent <= 0:
            return _ALWAYS
        return 0.0 if percent >= 1 else self.sigma((1 - percent) * 999.0)


def _to_zero(kept: torch.Tensor) -> torch.Tensor:
    """Shifted and stretched so that the last level is noise alone (arXiv 2305.08891, algorithm 1)."""
    roots = kept.sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    moved = ((roots - last) * (first / (first - last))) ** 2
    moved[-1] = _LAST_ALPHA
    return moved


def _simple(levels: Levels, steps: int) -> list[float]:
    stride = len(levels.sigmas) / steps
    return [*(float(levels.sigmas[-1 - int(step * stride)]) for step in range(steps)), 0.0]


def _ddim_uniform(levels: Levels, steps: int) -> list[float]:
    stride = max(len(levels.sigmas) // steps, 1)
    return [*(float(sigma) for sigma in levels.sigmas[1::stride].flip(0)), 0.0]


def _even(levels: Levels, steps: int, *, to_the_end: bool) -> list[float]:
    last = len(levels.sigmas) - 1
    places = torch.linspace(last, 0, steps if to_the_end else steps + 1)[:steps]
    return [*(levels.sigma(float(place)) for place in places), 0.0]


def _karras(levels: Levels, steps: int) -> list[float]:
    """Karras et al., arXiv 2206.00364, equation 5."""
    high, low = levels.most ** (1 / _RHO), levels.least ** (1 / _RHO)
    return [*((high + torch.linspace(0, 1, steps) * (low - high)) ** _RHO).tolist(), 0.0]


def _exponential(levels: Levels, steps: int) -> list[float]:
    return [*torch.linspace(math.log(levels.most), math.log(levels.least), steps).exp().tolist(), 0.0]


def _beta(levels: Levels, steps: int) -> list[float]:
    """Timesteps by a beta distribution: more at both ends (arXiv 2407.12173)."""
    import numpy as np
    from scipy.special import betaincinv

    shares = betaincinv(_BETA, _BETA, 1 - np.linspace(0, 1, steps, endpoint=False))
    places = np.rint(shares * (len(levels.sigmas) - 1)).astype(int)
    kept = [int(place) for number, place in enumerate(places) if not number or place != places[number - 1]]
    return [*(float(levels.sigmas[place]) for place in kept), 0.0]


def _linear_quadratic(levels: Levels, steps: int) -> list[float]:
    """Evenly at first, ever faster after half of the steps, both parts meeting in value and slope."""
    if steps == 1:
        return [levels.most, 0.0]
    half = steps // 2
    slope, rest = _LINEAR_SHARE / half, steps - half
    curve = (1 - _LINEAR_SHARE - slope * rest) / rest**2
    done = [slope * step + curve * max(0, step - half) ** 2 for step in range(steps)]
    return [*((1 - share) * levels.most for share in done), 0.0]


def _kl_optimal(levels: Levels, steps: int) -> list[float]:
    """Evenly in the arc tangent of sigma (arXiv 2404.14507)."""
    share = torch.arange(steps, dtype=torch.float32) / max(1, steps - 1)
    return [*(share * math.atan(levels.least) + (1 - share) * math.atan(levels.most)).tan().tolist(), 0.0]


SCHEDULES: Mapping[str, Callable[[Levels, int], list[float]]] = {
    "simple": _simple,
    "sgm_uniform": lambda levels, steps: _even(levels, steps, to_the_end=False),
    "karras": _karras,
    "exponential": _exponential,
    "ddim_uniform": _ddim_uniform,
    "beta": _beta,
    "normal": lambda levels, steps: _even(levels, steps, to_the_end=True),
    "linear_quadratic": _linear_quadratic,
    "kl_optimal": _kl_optimal,
}

_ONE_MORE = ("dpm_2", "dpm_2_ancestral")
"""Samplers that ComfyUI gives a step more and then leaves out the last level before zero."""


def sigmas_for(levels: Levels, scheduler: str, sampler: str, steps: int, denoise: float) -> torch.Tensor:
    """The falling levels of a run of ``steps``; with ``denoise`` below 1 the last part of a longer one.

    Empty where nothing is to be done (``denoise`` of 0).
    """
    if denoise <= 0:
        return torch.zeros(0)
    whole = steps if denoise > 0.9999 else int(steps / denoise)
    sigmas = SCHEDULES[scheduler](levels, whole + (sampler in _ONE_MORE))
    if sampler in _ONE_MORE:
        sigmas.pop(-2)
    return torch.tensor(sigmas if denoise > 0.9999 else sigmas[-(steps + 1) :], dtype=torch.float32)

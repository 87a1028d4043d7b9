"""Mixtures of prompts and of seeds: weighted sums, and interpolation along the sphere for two.

Weights are plain numbers and stay on the host, so that no mixture waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from stream.errors import InvalidInput

Method = Literal["linear", "slerp"]


def shares(weights: Sequence[float], *, normalised: bool, field: str) -> tuple[float, ...]:
    """The weights, made to add up to 1 where asked. Raises `InvalidInput` where that cannot be."""
    if not weights:
        raise InvalidInput(f"{field} is empty; give at least one", field=field)
    total = sum(weights)
    if not normalised:
        return tuple(weights)
    if total <= 0:
        raise InvalidInput(f"the weights of {field} add up to {total:g}; more than 0 is needed", field=field)
    return tuple(weight / total for weight in weights)


def blend(parts: Sequence[torch.Tensor], weights: Sequence[float], method: Method) -> torch.Tensor:
    """One tensor of several of a shape. ``slerp`` is for two; of more, or fewer, the weighted sum is taken.

    Between two the second weight says how far to go from the first to the second.
    """
    if len(parts) == 1 and weights[0] == 1.0:
        return parts[0]
    if method == "slerp" and len(parts) == 2:
        return slerp(parts[0], parts[1], weights[1])
    return torch.stack([part * weight for part, weight in zip(parts, weights, strict=True)]).sum(0)


def slerp(first: torch.Tensor, second: torch.Tensor, share: float) -> torch.Tensor:
    """From ``first`` (0) to ``second`` (1) along the great circle of their directions.

    Nearly parallel ones are mixed linearly. No value is read back from the device.
    """
    a, b = first.double().flatten(), second.double().flatten()
    cosine = torch.dot(a, b) / (a.norm() * b.norm()).clamp_min(1e-12)
    angle = torch.acos(cosine.clamp(-1.0, 1.0))
    sine = torch.sin(angle)
    along = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / sine.clamp_min(1e-12)
    mixed = torch.where(sine < 1e-6, (1 - share) * a + share * b, along)
    return mixed.to(first.dtype).view_as(first)


def blend_noise(
    parts: Sequence[torch.Tensor], weights: Sequence[float], method: Method, *, normalised: bool
) -> torch.Tensor:
    """As `blend`; a weighted sum is brought back to the strength that its parts have, so it stays noise."""
    mixed = blend(parts, weights, method)
    if len(parts) == 1 or not normalised or (method == "slerp" and len(parts) == 2):
        return mixed
    strength = torch.stack([part.norm() for part in parts]).mean()
    scaled: torch.Tensor = mixed * (strength / mixed.norm().clamp_min(1e-12))
    return scaled

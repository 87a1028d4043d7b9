"""Samplers of diffusion models: from noise at a falling row of levels to a picture.

Each takes ``predict`` (the clean picture at a level), the noisy ``x`` (B x C x H x W), the levels ``sigmas``
(the last is mostly 0) and a source of ``noise``, and gives what is left at the last. Written from:
Karras et al. 2022 (arXiv 2206.00364: Euler, Heun); Lu et al. 2022 (2206.00927: DPM-Solver; 2211.01095:
DPM-Solver++); Ho et al. 2020 (2006.11239: DDPM); Song et al. 2020 (2010.02502: DDIM); Luo et al. 2023
(2310.04378: LCM); Zhang and Chen 2022 (2204.13902: iPNDM). With lambda = -log sigma, the steps of DPM-Solver
are the exact solution for the part that is linear in x, over h = lambda' - lambda.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(x, sigma) to the clean picture; ``sigma`` has no dimensions."""


def masked(predict: Predict, mask: torch.Tensor, image: torch.Tensor, noise: torch.Tensor | None) -> Predict:
    """``predict`` where ``mask`` [B or 1, 1, H, W, of any size] is 1. Where it is 0 the ``image`` stays; the
    prediction sees it under its own ``noise``."""
    size = image.shape[-2:]
    change = torch.nn.functional.interpolate(mask.to(image), size=size, mode="bilinear")
    change = change.repeat(-(-len(image) // len(change)), 1, 1, 1)[: len(image)]
    under = torch.zeros_like(image) if noise is None else noise.to(image)

    def within(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        seen = x * change + (image + under * sigma) * (1 - change)
        return predict(seen, sigma) * change + image * (1 - change)

    return within


class Noise(Protocol):
    """Where a sampler's fresh noise comes from."""

    def fresh(self, like: torch.Tensor) -> torch.Tensor:
        """The next of a row of independent normal tensors."""
        ...

    def between(self, like: torch.Tensor, high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        """The increment of one Brownian path from ``high`` to ``low``, scaled to a deviation of 1."""
        ...


class SeededNoise:
    """Of one seed. ``span``: the greatest level and the least above zero."""

    def __init__(self, seed: int, span: tuple[torch.Tensor, torch.Tensor]) -> None:
        self._seed = seed
        self._span = span
        self._generator: torch.Generator | None = None
        self._tree: Any = None

    def fresh(self, like: torch.Tensor) -> torch.Tensor:
        if self._generator is None:
            self._generator = torch.Generator(like.device).manual_seed(self._seed)
        return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=self._generator)

    def between(self, like: torch.Tensor, high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        high, low = high.cpu().float(), low.cpu().float()
        if self._tree is None:
            import torchsde

            most, least = (end.cpu() for end in self._span)
            start = torch.zeros(like.shape, dtype=like.dtype)
            self._tree = torchsde.BrownianTree(least, start, most, entropy=self._seed)
        # Down the path, so against its direction.
        path: torch.Tensor = self._tree(low, high) / (high - low).sqrt()
        return -path.to(like)


def euler(predict: Predict, x: torch.Tensor, sigmas: torch.Tensor, noise: Noise) -> torch.Tensor:
    for sigma, below in _pairs(sigmas):
        x = x + _slope(x, sigma, predict(x, sigma)) * (below - sigma)
    return x


def euler_ancestral(predict: Predict, x: torch.Tensor, sigmas: torch.Tensor, noise: Noise) -> torch.Tensor:
    for sigma, below in _pairs(sigmas):
        clean = predict(x, sigma)
        down, up = _ancestral(sigma, below)
        if down == 0:
            x = clean
            continue
        x = x + _slope(x, sigma, clean) * (down - sigma) + noise.fresh(x) * up
    return x


def heun(predict: Predict, x: torch.Tensor, sigmas: torch.Tensor, noise: Noise) -> torch.Tensor:
    for sigma, below in _pairs(sigmas):
        slope = _slope(x, sigma, predict(x, sigma))
        if below > 0:
            ahead = x + slope * (below - sigma)
            slope = (slope + _slope(ahead, below, predict(ahead, below))) / 2
        x = x + slope * (below - sigma)
    return x


def dpm_2(predict: Predict, x: torch.Tensor, sigmas: torch.Tensor, noise: Noise) -> torch.Tensor:
    for sigma, below in _pairs(sigmas):
        x = _midpoint(predict, x, sigma, below, predict(x, sigma))
    return x


def dpm_2_ancestral(predict: Predict, x: torch.Tensor, sigmas: torch.Tensor, noise: Noise) -> torch.Tensor:
    for sigma, below in _pairs(sigmas):
        down, up = _ancestral(sigma, below)
        x = _midpoint(predict, x, sigma, down, predict(x, sigma))
        if down > 0:
            x = x + noise.fresh(x) * up
    return x


def _midpoint(
    predict: Predict, x: torch.Tensor, sigma: torch.Tensor, below: torch.Tensor, clean: torch.Tensor
) -> torch.Tensor:
    """A step by the slope half way down in lambda; a plain one to zero."""
    slope = _slope(x, sigma, clean)
    if below > 0:
        middle = (sigma * below).sqrt()
        half_way = x + slope * (middle - sigma)
        slope = _slope(half_way, middle, predict(half_way, middle))
    return x + slope * (below - sigma)


def lms(predict: Predict, x: torch.Tensor, sigmas: torch.Tensor, noise: Noise) -> torch.Tensor:
    """The slope is integrated as the polynomial through the last four."""
    levels = sigmas.double().cpu().numpy()
    slopes: list[torch.Tensor] = []
    for number, (sigma, below) in enumerate(_pairs(sigmas)):
        clean = predict(x, sigma)
        slopes = [_slope(x, sigma, clean), *slopes[:3]]
        if below == 0:
            x = clean
            continue
        known = levels[number - len(slopes) + 1 : number + 1][::-1]
        for place, slope in enumerate(slopes):
            x = x + slope * _share(known, place, levels[number], levels[number + 1])
    return x


def _share(known: Any, place: int, start: float, end: float) -> float:
    """The integral of the polynomial that is 1 at one of ``known`` and 0 at the others."""
    others = np.delete(known, place)
    basis = np.poly1d(np.poly(others) / np.prod(known[place] - others)) if len(others) else np.poly1d([1.0])
    whole = basis.integ()
    return float(whole(end) - whole(start))


def ipndm(predict: Predict, x: torch.Tensor, sigmas: torch.Tensor, noise: Noise) -> torch.Tensor:
    """Adams and Bashforth's weights, as if the levels were even."""
    slopes: list[torch.Tensor] = []
    for sigma, below in _pairs(sigmas):
        clean = predict(x, sigma)
        slopes = [_slope(x, sigma, clean), *slopes[:3]]
        shares = _ADAMS[len(slopes) - 1]
        step = sum((slope * share for slope, share in zip(slopes, shares, strict=True)), torch.zeros_like(x))
        x = x + step * (below - sigma) if below > 0 else clean
    return x


_ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def dpmpp_2m(predict: Predict, x: torch.Tensor, sigmas: torch.Tensor, noise: Noise) -> torch.Tensor:
    before: torch.Tensor | None = None
    last = 0.0
    for sigma, below in _pairs(sigmas):
        clean = predict(x, sigma)
        if below == 0:
            return clean
        h = (sigma / below).log()
        ahead = clean if before is None else clean + (clean - before) * (h / (2 * last))
        x = (below / sigma) * x - torch.expm1(-h) * ahead
        before, last = clean, float(h)
    return x


def dpmpp_2s_ancestral(predict: Predict, x: torch.Tensor, sigmas: torch.Tensor, noise: Noise) -> torch.Tensor:
    for sigma, below in _pairs(sigmas):
        clean = predict(x, sigma)
        down, up = _ancestral(sigma, below)
        if down == 0:
            x = clean
            continue
        h = (sigma / down).log()
        middle = (sigma * down).sqrt()
        half_way = (middle / sigma) * x - torch.expm1(-h / 2) * clean
        x = (down / sigma) * x - torch.expm1(-h) * predict(half_way, middle)
        x = x + noise.fresh(x) * up
    return x


def dpmpp_sde(predict: Predict, x: torch.Tensor, sigmas: torch.Tensor, noise: Noise) -> torch.Tensor:
    for sigma, below in _pairs(sigmas):
        clean = predict(x, sigma)
        if below == 0:
            return clean
        middle = (sigma * below).sqrt()
        half_way = _down_and_up(x, clean, sigma, middle, noise)
        x = _down_and_up(x, predict(half_way, middle), sigma, below, noise)
    return x


def _down_and_up(
    x: torch.Tensor, clean: torch.Tensor, sigma: torch.Tensor, below: torch.Tensor, noise: Noise
) -> torch.Tensor:
    """Solve with one clean picture below the wanted level, and come up to it by noise."""
    down, up = _ancestral(sigma, below)
    return torch.lerp(clean, x, down / sigma) + noise.between(x, sigma, below) * up


def dpmpp_2m_sde(predict: Predict, x: torch.Tensor, sigmas: torch.Tensor, noise: Noise) -> torch.Tensor:
    before: torch.Tensor | None = None
    last = 0.0
    for sigma, below in _pairs(sigmas):
        clean = predict(x, sigma)
        if below == 0:
            return clean
        h = float((sigma / below).log())
        pull = -math.expm1(-2 * h)
        step = (below / sigma) * math.exp(-h) * x + pull * clean
        if before is not None:
            step = step + 0.5 * pull * (h / last) * (clean - before)
        x = step + noise.between(x, sigma, below) * below * pull**0.5
        before, last = clean, h
    return x


def dpmpp_3m_sde(predict: Predict, x: torch.Tensor, sigmas: torch.Tensor, noise: Noise) -> torch.Tensor:
    cleans: list[torch.Tensor] = []
    widths: list[float] = []
    for sigma, below in _pairs(sigmas):
        clean = predict(x, sigma)
        if below == 0:
            return clean
        h = float((sigma / below).log())
        pull = -math.expm1(-2 * h)
        step = (below / sigma) * math.exp(-h) * x + pull * clean
        second = 1 - pull / (2 * h)
        if cleans:
            slope = (clean - cleans[0]) * (h / widths[0])
            if len(cleans) > 1:
                r, r_before = widths[0] / h, widths[1] / h
                earlier = (cleans[0] - cleans[1]) / r_before
                bend = (slope - earlier) / (r + r_before)
                slope = slope + bend * r
                step = step - (second / (2 * h) - 0.5) * bend
            step = step + second * slope
        x = step + noise.between(x, sigma, below) * below * pull**0.5
        cleans, widths = [clean, *cleans[:1]], [h, *widths[:1]]
    return x


def ddpm(predict: Predict, x: torch.Tensor, sigmas: torch.Tensor, noise: Noise) -> torch.Tensor:
    """The posterior of one step, on the scale on which picture and noise together have a deviation of 1."""
    for sigma, below in _pairs(sigmas):
        eps = _slope(x, sigma, predict(x, sigma))
        kept, kept_below = 1 / (sigma**2 + 1), 1 / (below**2 + 1)
        alpha = kept / kept_below
        x = (x * kept.sqrt() - (1 - alpha) * eps / (1 - kept).sqrt()) / alpha.sqrt()
        if below > 0:
            x = x + ((1 - alpha) * (1 - kept_below) / (1 - kept)).sqrt() * noise.fresh(x)
            x = x / kept_below.sqrt()
    return x


def lcm(predict: Predict, x: torch.Tensor, sigmas: torch.Tensor, noise: Noise) -> torch.Tensor:
    for sigma, below in _pairs(sigmas):
        x = predict(x, sigma)
        if below > 0:
            x = x + noise.fresh(x) * below
    return x


SAMPLERS: Mapping[str, Callable[[Predict, torch.Tensor, torch.Tensor, Noise], torch.Tensor]] = {
    "euler": euler,
    "ddim": euler,  # the same without fresh noise
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpm_2": dpm_2,
    "dpm_2_ancestral": dpm_2_ancestral,
    "lms": lms,
    "ipndm": ipndm,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_sde": dpmpp_sde,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "ddpm": ddpm,
    "lcm": lcm,
}


def _pairs(sigmas: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(sigmas[number], sigmas[number + 1]) for number in range(len(sigmas) - 1)]


def _slope(x: torch.Tensor, sigma: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """The derivative of x by sigma, which is the noise."""
    return (x - clean) / sigma


def _ancestral(sigma: torch.Tensor, below: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A level to go down to, and the noise that leads up from it to ``below``: the reverse process."""
    up = torch.minimum(below, (below**2 * (sigma**2 - below**2) / sigma**2).sqrt())
    return (below**2 - up**2).sqrt(), up

"""From a frame to the picture that a ControlNet looks at; all on the frame's device, none reads a value back.

A preprocessor takes and gives 1 x H x W x 3, float32, 0..1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from headrace.diffusion.parameters import ControlParams
from workflows.nodes.canny import Canny

Preprocessor = Callable[[torch.Tensor], torch.Tensor]

_CELL = 64
"""Pixels along the side of a field of one colour."""


def preprocessor_of(params: ControlParams) -> Preprocessor:
    """What ``params`` name, with its own parameters, which are checked already."""
    make = _MAKERS[params.preprocessor]
    return make(dict(params.preprocessor_params.items()))


def _canny(params: Mapping[str, Any]) -> Preprocessor:
    """White edges; the two thresholds are in 0..1, or in 0..255 as OpenCV has them."""
    low, high = (
        value / 255 if value > 1 else value
        for value in (
            float(params.get("low_threshold", 100)),
            float(params.get("high_threshold", 200)),
        )
    )
    node = Canny()
    return lambda picture: node.detect_edge(picture, low, high)[0]


def _soft_edge(params: Mapping[str, Any]) -> Preprocessor:
    """How fast brightness changes (Sobel), brightest where it does so most."""

    def edges(picture: torch.Tensor) -> torch.Tensor:
        grey = picture.mean(-1).unsqueeze(1)
        across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=picture.device)
        kernels = torch.stack([across, across.T]).unsqueeze(1)
        padded = torch.nn.functional.pad(grey, (1, 1, 1, 1), mode="replicate")
        strength = torch.nn.functional.conv2d(padded, kernels).square().sum(1).sqrt()
        return (strength / strength.amax().clamp_min(1e-6)).unsqueeze(-1).expand(-1, -1, -1, 3)

    return edges


def _colour(params: Mapping[str, Any]) -> Preprocessor:
    """Fields of one colour, each the mean of what is there."""

    def fields(picture: torch.Tensor) -> torch.Tensor:
        height, width = picture.shape[1:3]
        cells = (max(1, height // _CELL), max(1, width // _CELL))
        small = torch.nn.functional.interpolate(picture.permute(0, 3, 1, 2), cells, mode="area")
        return torch.nn.functional.interpolate(small, (height, width), mode="nearest").permute(0, 2, 3, 1)

    return fields


def _as_it_is(params: Mapping[str, Any]) -> Preprocessor:
    return lambda picture: picture


_MAKERS: Mapping[str, Callable[[Mapping[str, Any]], Preprocessor]] = {
    "passthrough": _as_it_is,
    "tile": _as_it_is,
    "color": _colour,
    "canny": _canny,
    "soft_edge": _soft_edge,
}

"""`Canny`: edges of a picture, by the steps that kornia's ``canny`` takes (which ComfyUI's node calls).

Grey, Gaussian blur (5 x 5, sigma 1, mirrored at the edges), Sobel (not normalised, edge pixels repeated),
thinning to ridges across eight directions, two thresholds on the gradient's magnitude, and of what lies
between them all that hangs together with something above the higher one.

Only the first steps look at every pixel; from the lower threshold on, the few pixels above it are worked on
as a list. Connecting them takes a number of rounds that grows with the logarithm of the longest line.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from workflows.nodes.stream import InputTypes

if TYPE_CHECKING:
    import torch

_EPSILON = 1e-6
_TAN_22_5 = math.tan(math.pi / 8)


class Canny:
    """White lines on black where brightness changes.

    A low threshold above the high one counts as equal to it (kornia refuses that), because a person who moves
    the two sliders passes through such values.
    """

    CATEGORY = "image/preprocessors"
    DESCRIPTION = "Finds edges."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "detect_edge"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        threshold = {"min": 0.01, "max": 0.99, "step": 0.01}
        return {
            "required": {
                "image": ("IMAGE",),
                "low_threshold": ("FLOAT", {"default": 0.4, **threshold}),
                "high_threshold": ("FLOAT", {"default": 0.8, **threshold}),
            }
        }

    def detect_edge(
        self, image: torch.Tensor, low_threshold: float, high_threshold: float
    ) -> tuple[torch.Tensor]:
        import torch

        low = min(low_threshold, high_threshold)
        edges = torch.stack([_edges(picture, low, high_threshold) for picture in image])
        return (edges.unsqueeze(-1).repeat(1, 1, 1, 3),)


def _edges(picture: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Edges of one picture H x W x C as H x W of 0 and 1."""
    import torch

    gx, gy = _gradients(_blur(_grey(picture)))
    # One pixel more on each side, where there is no gradient, so that every pixel has eight neighbours.
    height, width = gx.shape
    magnitude = gx.new_full((height + 2, width + 2), math.sqrt(_EPSILON))
    inner = magnitude[1:-1, 1:-1]
    torch.mul(gx, gx, out=inner)
    inner.addcmul_(gy, gy).add_(_EPSILON).sqrt_()
    stride = width + 2
    flat = magnitude.view(-1)
    places = (flat > low).nonzero().view(-1)
    rows, columns = places // stride - 1, places % stride - 1
    ridge = on_ridge(flat, places, stride, gx[rows, columns], gy[rows, columns])
    places = places[ridge]
    kept = places[connected(places, flat[places] > high, flat.numel(), stride)]
    edges = torch.zeros_like(flat)
    edges[kept] = 1
    return edges.view(height + 2, stride)[1:-1, 1:-1]


def _grey(picture: torch.Tensor) -> torch.Tensor:
    import torch

    if picture.shape[-1] == 1:
        return picture[..., 0].to(torch.float32)
    weights = torch.tensor((0.299, 0.587, 0.114), device=picture.device)
    return picture[..., :3].to(torch.float32) @ weights


def _blur(grey: torch.Tensor) -> torch.Tensor:
    import torch
    import torch.nn.functional as F  # noqa: N812

    if min(grey.shape) < 3:
        raise ValueError(f"a picture of {grey.shape[1]} x {grey.shape[0]} is too small for Canny")
    near, far = math.exp(-0.5), math.exp(-2.0)
    total = 1 + 2 * near + 2 * far
    padded = F.pad(grey[None, None], (2, 2, 2, 2), mode="reflect")[0, 0]
    for axis, size in enumerate(grey.shape):
        taps = [padded.narrow(axis, offset, size) for offset in range(5)]
        padded = torch.add(taps[1], taps[3]).mul_(near / total)
        padded.add_(taps[2], alpha=1 / total).add_(taps[0], alpha=far / total).add_(
            taps[4], alpha=far / total
        )
    return padded


def _gradients(grey: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    import torch
    import torch.nn.functional as F  # noqa: N812

    padded = F.pad(grey[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    down = torch.add(padded[:-2], padded[2:]).add_(padded[1:-1], alpha=2)
    across = torch.add(padded[:, :-2], padded[:, 2:]).add_(padded[:, 1:-1], alpha=2)
    return down[:, 2:] - down[:, :-2], across[2:] - across[:-2]


def on_ridge(
    flat: torch.Tensor, places: torch.Tensor, stride: int, gx: torch.Tensor, gy: torch.Tensor
) -> torch.Tensor:
    """Which ``places`` are larger than both neighbours along the gradient, to the nearest 45 degrees.

    Of two equal ones side by side across a step the left or upper counts as the larger, as in OpenCV.
    """
    import torch

    ax, ay = gx.abs(), gy.abs()
    level, steep = ay <= ax * _TAN_22_5, ax <= ay * _TAN_22_5
    diagonal = torch.where((gx > 0) == (gy > 0), stride + 1, stride - 1)
    forward = torch.where(level, 1, torch.where(steep, stride, diagonal))
    here, ahead, behind = flat[places], flat[places + forward], flat[places - forward]
    return (here > behind) & ((here > ahead) | ((level | steep) & (here == ahead)))


def connected(places: torch.Tensor, strong: torch.Tensor, size: int, stride: int) -> torch.Tensor:
    """Which ``places`` hang together, over any of eight neighbours, with one that is ``strong``.

    Every place points to the smallest number that it can reach; pointers are followed two at a time, so a
    line of n pixels is gathered in about log n rounds.
    """
    import torch

    count = places.numel()
    numbers = torch.arange(count, device=places.device)
    number_at = torch.full((size,), -1, dtype=torch.int64, device=places.device)
    number_at[places] = numbers
    starts, ends = [], []
    for offset in (1, stride - 1, stride, stride + 1):
        neighbour = number_at[(places + offset).clamp_(max=size - 1)]
        there = (neighbour >= 0).nonzero().view(-1)
        starts.append(there)
        ends.append(neighbour[there])
    start, end = torch.cat(starts), torch.cat(ends)
    parent = numbers
    while True:
        a, b = parent[start], parent[end]
        if torch.equal(a, b):
            break
        low = torch.minimum(a, b)
        parent = parent.scatter_reduce(0, a, low, "amin").scatter_reduce_(0, b, low, "amin")
        parent = parent[parent]
        parent = parent[parent]
    reached = torch.zeros(count, dtype=torch.bool, device=places.device)
    reached[parent[strong]] = True
    return reached[parent]


NODE_CLASS_MAPPINGS: dict[str, Any] = {"Canny": Canny}

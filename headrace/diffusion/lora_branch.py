"""What a LoRA adds to one layer, as a module that can be made again elsewhere, with other weights.

Of torch alone: it is part of what is compiled (`headrace.diffusion.pieces`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import conv2d, linear

from headrace.diffusion.attention import Given

LORA_SCALES = "lora_scales"
"""In what is given to a view with LoRAs: the weight of each, R x LoRAs, float32."""
_RECIPE = f"{__name__}:blank"


class LoraBranch(nn.Module):
    """``up`` of ``down`` of what goes into a layer, for each row by its own weight.

    ``down``: rank x inputs, for a convolution rank x inputs x its kernel; ``up``: outputs x rank (x 1 x 1).
    ``number``: which of the stream's LoRAs; ``kernel``: stride, padding and dilation of a convolution.
    """

    def __init__(
        self, down: torch.Tensor, up: torch.Tensor, number: int, kernel: Mapping[str, Any] | None
    ) -> None:
        super().__init__()
        self.down, self.up = (nn.Parameter(weight.contiguous(), requires_grad=False) for weight in (down, up))
        self.number = number
        self.kernel: dict[str, Any] | None = (
            None if kernel is None else {name: tuple(value) for name, value in kernel.items()}
        )

    @property
    def recipe(self) -> tuple[str, dict[str, Any]]:
        """See `headrace.diffusion.view`."""
        return _RECIPE, {
            "down": list(self.down.shape),
            "up": list(self.up.shape),
            "number": self.number,
            "kernel": self.kernel,
        }

    def forward(self, x: torch.Tensor, given: Given) -> torch.Tensor:
        if self.kernel is None:
            found = linear(linear(x, self.down), self.up)
        else:
            found = conv2d(conv2d(x, self.down, **self.kernel), self.up)
        scale = given[LORA_SCALES][:, self.number]
        return found * scale.view(-1, *[1] * (found.ndim - 1)).to(found.dtype)


def blank(
    down: Sequence[int], up: Sequence[int], number: int, kernel: Mapping[str, Any] | None
) -> LoraBranch:
    """One of these shapes, with random weights."""
    inputs = max(1, int(torch.Size(down[1:]).numel()))
    weights = torch.randn(*down) * inputs**-0.5, torch.randn(*up) * 0.2
    return LoraBranch(*weights, number, kernel)

"""Picture tensors as bytes, for what Pillow does better than torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch


def to_bytes(image: torch.Tensor) -> npt.NDArray[np.uint8]:
    """B x H x W x C in 0..1 as uint8, cut off (not rounded), as ComfyUI's nodes do it; clamped."""
    import torch

    scaled = image.detach().to(torch.float32).mul(255).clamp_(0, 255)
    array: npt.NDArray[np.uint8] = scaled.to(torch.uint8).cpu().contiguous().numpy()
    return array

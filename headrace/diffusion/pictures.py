"""Frames as the networks take them: sizes in whole latents, and thumbnails for the similarity filter."""

from __future__ import annotations

import numpy as np
import torch

from headrace.diffusion.networks import LATENT_RATIO
from headrace.diffusion.similarity import Thumbnail

_THUMBNAIL = 32


def thumbnail(picture: torch.Tensor) -> Thumbnail:
    """Small, -1..1, on the host; of 1 x H x W x 3 in 0..1."""
    small = torch.nn.functional.interpolate(
        picture.permute(0, 3, 1, 2), (_THUMBNAIL, _THUMBNAIL), mode="area"
    )
    return np.asarray((small * 2 - 1).cpu().numpy(), dtype=np.float32)


def fitting(picture: torch.Tensor) -> torch.Tensor:
    """The picture at a size that the autoencoder can halve three times."""
    sides = [max(LATENT_RATIO, round(side / LATENT_RATIO) * LATENT_RATIO) for side in picture.shape[1:3]]
    return resized(picture, *sides)


def resized(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """1 x ``height`` x ``width`` x C; the picture itself where it has that size."""
    if picture.shape[1:3] == (height, width):
        return picture
    made = torch.nn.functional.interpolate(
        picture.permute(0, 3, 1, 2), (height, width), mode="bilinear", align_corners=False, antialias=True
    )
    return made.permute(0, 2, 3, 1).contiguous()

"""Frames as the networks take them: sizes in whole latents, and thumbnails for the similarity filter."""

from __future__ import annotations

import numpy as np
import torch

from headrace.diffusion.networks import LATENT_RATIO
from headrace.diffusion.similarity import Thumbnail
from stream.frames import VideoFrame

_THUMBNAIL = 32


def thumbnail(picture: torch.Tensor) -> Thumbnail:
    """Small, -1..1, on the host; of 1 x H x W x 3 in 0..1. Waits for the device that the picture is on."""
    return np.asarray((_small(picture.permute(0, 3, 1, 2)) * 2 - 1).cpu().numpy(), dtype=np.float32)


def thumbnail_of(frame: VideoFrame) -> Thumbnail:
    """The same of a frame: of its planes, luma and chroma, where these are on the host, so that no device is
    waited for."""
    if not frame.has_picture:
        return thumbnail(frame.tensor)
    planes = [torch.from_numpy(np.array(plane)).float() for plane in frame.picture.planes]
    if len(planes) == 1:
        planes = list(planes[0].view(frame.height, frame.width, 3).unbind(-1))
    small = torch.cat([_small(plane[None, None]) for plane in planes], dim=1)
    return np.asarray((small / 127.5 - 1).numpy(), dtype=np.float32)


def _small(planes: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.interpolate(planes, (_THUMBNAIL, _THUMBNAIL), mode="area")


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

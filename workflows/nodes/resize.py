"""Scaling of picture tensors, as ComfyUI's nodes do it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")
CROPS = ("disabled", "center")


def resize(image: torch.Tensor, width: int, height: int, method: str, crop: str) -> torch.Tensor:
    """B x H x W x C at another size; ``crop`` "center" first cuts to the target's aspect ratio."""
    import torch.nn.functional as F  # noqa: N812

    if crop == "center":
        image = crop_to_aspect(image, width, height)
    if image.shape[1:3] == (height, width) and method != "lanczos":
        return image
    if method == "lanczos":
        return _lanczos(image, width, height)
    planes = image.movedim(-1, 1)
    if method == "bicubic":
        # On a CPU torch's bicubic kernel takes two thirds of the time on planes that lie apart.
        planes = planes.contiguous()
    return F.interpolate(planes, size=(height, width), mode=method).movedim(1, -1).contiguous()


def crop_to_aspect(image: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """The largest centred part with the aspect ratio of ``width`` to ``height``; a view."""
    old_height, old_width = image.shape[1], image.shape[2]
    old_aspect, new_aspect = old_width / old_height, width / height
    x = y = 0
    if old_aspect > new_aspect:
        x = round((old_width - old_width * (new_aspect / old_aspect)) / 2)
    elif old_aspect < new_aspect:
        y = round((old_height - old_height * (old_aspect / new_aspect)) / 2)
    return image[:, y : old_height - y, x : old_width - x]


def _lanczos(image: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Through eight bits and Pillow, like ComfyUI."""
    import torch
    from PIL import Image

    from workflows.nodes.pixels import to_bytes

    pictures = []
    for pixels in to_bytes(image):
        squeezed = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        scaled = Image.fromarray(squeezed).resize((width, height), Image.Resampling.LANCZOS)
        pictures.append(np.asarray(scaled).reshape(height, width, -1))
    stacked = torch.from_numpy(np.stack(pictures)).to(image.device)
    return stacked.to(torch.float32).mul_(1 / 255)

"""Painting in part of a picture: latents with a mask of where a sampler may change them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from headrace.nodes.latents import VAEEncode, cut
from headrace.nodes.sampling import Latent
from workflows.nodes.stream import InputTypes

if TYPE_CHECKING:
    import torch

    from headrace.nodes.handles import Vae

_MOST = 64


class SetLatentNoiseMask:
    """A latent of which samplers change what is bright in ``mask``."""

    CATEGORY = "latent/inpaint"
    DESCRIPTION = "Says which part of a latent is to be painted anew."
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "set_mask"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": {"samples": ("LATENT",), "mask": ("MASK",)}}

    def set_mask(self, samples: Latent, mask: torch.Tensor) -> tuple[Latent]:
        return ({**samples, "noise_mask": _planes(mask)},)


class VAEEncodeForInpaint:
    """The latent of a picture that is grey where ``mask`` is bright, with that mask, grown by so many
    pixels."""

    CATEGORY = "latent/inpaint"
    DESCRIPTION = "Turns a picture into a latent of which a part is to be painted anew."
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "encode"
    PACKAGES = ("diffusers",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        grow = ("INT", {"default": 6, "min": 0, "max": _MOST, "step": 1})
        return {"required": {"pixels": ("IMAGE",), "vae": ("VAE",), "mask": ("MASK",), "grow_mask_by": grow}}

    def encode(
        self, pixels: torch.Tensor, vae: Vae, mask: torch.Tensor, grow_mask_by: int = 6
    ) -> tuple[Latent]:
        import torch.nn.functional as F  # noqa: N812

        size = tuple(pixels.shape[1:3])
        whole = F.interpolate(_planes(mask).to(pixels.device), size=size, mode="bilinear").movedim(1, -1)
        picture, wanted = cut(pixels[..., :3], vae.ratio), cut(whole, vae.ratio).round()
        grey = (picture - 0.5) * (1 - wanted) + 0.5
        (latent,) = VAEEncode().encode(vae, grey)
        return ({**latent, "noise_mask": _grown(wanted.movedim(-1, 1), grow_mask_by)},)


def _planes(mask: torch.Tensor) -> torch.Tensor:
    """B x 1 x H x W, as samplers want it."""
    return mask.reshape(-1, 1, *mask.shape[-2:])


def _grown(mask: torch.Tensor, by: int) -> torch.Tensor:
    """A mask of 0 and 1, bright within a square of ``by`` pixels around what is bright."""
    import torch.nn.functional as F  # noqa: N812

    if not by:
        return mask
    height, width = mask.shape[-2:]
    grown: torch.Tensor = F.max_pool2d(F.pad(mask, [math.ceil((by - 1) / 2)] * 4), by, 1)
    return grown[:, :, :height, :width]


NODE_CLASS_MAPPINGS: dict[str, Any] = {
    node_class.__name__: node_class for node_class in (SetLatentNoiseMask, VAEEncodeForInpaint)
}

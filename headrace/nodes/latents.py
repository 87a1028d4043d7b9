"""Latents: empty ones, to and from pictures, and their size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.nodes.sampling import Latent
from workflows.nodes.image import checked_size
from workflows.nodes.resize import CROPS, resize
from workflows.nodes.stream import InputTypes

if TYPE_CHECKING:
    import torch

    from headrace.nodes.handles import Vae

_SIDE = 16384
_LEAST = 64


class EmptyLatentImage:
    """A latent of zeros, which a sampler fills with noise."""

    CATEGORY = "latent"
    DESCRIPTION = "The canvas for a picture from a text alone."
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "generate"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        side = ("INT", {"default": 512, "min": 16, "max": _SIDE, "step": 8})
        count = ("INT", {"default": 1, "min": 1, "max": 4096})
        return {"required": {"width": side, "height": side, "batch_size": count}}

    def generate(self, width: int, height: int, batch_size: int = 1) -> tuple[Latent]:
        import torch

        checked_size(height, width, batch_size)
        return ({"samples": torch.zeros(batch_size, 4, height // 8, width // 8)},)


class VAEEncode:
    """The latent of a picture, whose sides are cut to multiples of eight: the mean, nothing is drawn."""

    CATEGORY = "latent"
    DESCRIPTION = "Turns a picture into a latent."
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "encode"
    PACKAGES = ("diffusers",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": {"pixels": ("IMAGE",), "vae": ("VAE",)}}

    def encode(self, vae: Vae, pixels: torch.Tensor) -> tuple[Latent]:
        import torch

        module = vae.module
        planes = cut(pixels[..., :3], vae.ratio).movedim(-1, 1).to(module.device, module.dtype) * 2 - 1
        made = []
        for plane in torch.split(planes, 1):
            out = module.encode(plane)
            # The tiny one has no spread to take the middle of.
            made.append(out.latents if hasattr(out, "latents") else out.latent_dist.mode())
        return ({"samples": torch.cat(made).float() / vae.scale},)


class VAEDecode:
    """The picture of a latent."""

    CATEGORY = "latent"
    DESCRIPTION = "Turns a latent into a picture."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "decode"
    PACKAGES = ("diffusers",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": {"samples": ("LATENT",), "vae": ("VAE",)}}

    def decode(self, vae: Vae, samples: Latent) -> tuple[torch.Tensor]:
        import torch

        module = vae.module
        latents = samples["samples"].to(module.device, module.dtype) * vae.scale
        made = torch.cat([module.decode(latent, return_dict=False)[0] for latent in torch.split(latents, 1)])
        return ((made.float() / 2 + 0.5).clamp_(0, 1).movedim(1, -1).contiguous(),)


def cut(pixels: torch.Tensor, ratio: int) -> torch.Tensor:
    """The middle of B x H x W x C, with sides that are multiples of ``ratio``."""
    height, width = (side // ratio * ratio for side in pixels.shape[1:3])
    if not height or not width:
        raise ValueError(f"the picture is smaller than {ratio} x {ratio} pixels")
    top, left = (pixels.shape[1] % ratio) // 2, (pixels.shape[2] % ratio) // 2
    return pixels[:, top : top + height, left : left + width]


class LatentUpscale:
    """A latent at another size, in pixels of the picture; 0 keeps the aspect ratio."""

    CATEGORY = "latent"
    DESCRIPTION = "Scales a latent."
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "upscale"
    METHODS = ("nearest-exact", "bilinear", "area", "bicubic")

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        side = ("INT", {"default": 512, "min": 0, "max": _SIDE, "step": 8})
        return {
            "required": {
                "samples": ("LATENT",),
                "upscale_method": (list(cls.METHODS),),
                "width": side,
                "height": side,
                "crop": (list(CROPS),),
            }
        }

    def upscale(
        self, samples: Latent, upscale_method: str, width: int, height: int, crop: str
    ) -> tuple[Latent]:
        if not width and not height:
            return (samples,)
        latent = samples["samples"]
        rows, columns = latent.shape[-2:]
        width = max(_LEAST, width or round(columns * max(_LEAST, height) / rows))
        height = max(_LEAST, height or round(rows * width / columns))
        checked_size(height, width, latent.shape[0])
        scaled = resize(latent.movedim(1, -1), width // 8, height // 8, upscale_method, crop)
        return ({**samples, "samples": scaled.movedim(-1, 1).contiguous()},)


NODE_CLASS_MAPPINGS: dict[str, Any] = {
    node_class.__name__: node_class for node_class in (EmptyLatentImage, VAEEncode, VAEDecode, LatentUpscale)
}

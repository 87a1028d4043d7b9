"""Nodes that change a picture: names, inputs and results of ComfyUI's nodes of the same name.

An IMAGE is a float tensor B x H x W x C, 0..1. Torch is imported when a node runs, not when it is declared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workflows.nodes.resize import CROPS, METHODS, resize
from workflows.nodes.stream import InputTypes

if TYPE_CHECKING:
    import torch

MAX_SIDE = 16_384
MAX_PIXELS = 36 * 1024 * 1024
"""A little more than 8K video."""

Pictures = tuple["torch.Tensor"]


def checked_size(height: int, width: int, count: int = 1) -> tuple[int, int]:
    """``height`` and ``width``. Raises `ValueError` when ``count`` such pictures have over `MAX_PIXELS`."""
    if count * height * width > MAX_PIXELS:
        size = f"{width} x {height}" if count == 1 else f"{count} times {width} x {height}"
        raise ValueError(f"{size} is over the limit of {MAX_PIXELS} pixels")
    return height, width


class ImageInvert:
    """1 - image."""

    CATEGORY = "image"
    DESCRIPTION = "Inverts the colours."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "invert"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": {"image": ("IMAGE",)}}

    def invert(self, image: torch.Tensor) -> Pictures:
        return (1.0 - image,)


class ImageScale:
    """Another size. A side of 0 follows from the other and the aspect ratio; both 0 change nothing."""

    CATEGORY = "image/upscaling"
    DESCRIPTION = "Scales the picture. A width or height of 0 keeps the aspect ratio."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "upscale"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        side = {"default": 512, "min": 0, "max": MAX_SIDE, "step": 1}
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (list(METHODS),),
                "width": ("INT", dict(side)),
                "height": ("INT", dict(side)),
                "crop": (list(CROPS),),
            }
        }

    def upscale(
        self, image: torch.Tensor, upscale_method: str, width: int, height: int, crop: str
    ) -> Pictures:
        if width == 0 and height == 0:
            return (image,)
        old_height, old_width = image.shape[1], image.shape[2]
        width = width or max(1, round(old_width * height / old_height))
        height = height or max(1, round(old_height * width / old_width))
        checked_size(height, width)
        return (resize(image, width, height, upscale_method, crop),)


class ImageScaleBy:
    """Another size, as a multiple of the present one; at least one pixel."""

    CATEGORY = "image/upscaling"
    DESCRIPTION = "Scales the picture by a factor."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "upscale"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (list(METHODS),),
                "scale_by": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 8.0, "step": 0.01}),
            }
        }

    def upscale(self, image: torch.Tensor, upscale_method: str, scale_by: float) -> Pictures:
        height, width = (max(1, round(side * scale_by)) for side in image.shape[1:3])
        checked_size(height, width)
        return (resize(image, width, height, upscale_method, "disabled"),)


class ImageBlend:
    """Mixes image1 with what ``blend_mode`` makes of both; image2 is scaled to the size of image1."""

    CATEGORY = "image/postprocessing"
    DESCRIPTION = "Blends two pictures."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "blend_images"
    MODES = ("normal", "multiply", "screen", "overlay", "soft_light", "difference")

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {
            "required": {
                "image1": ("IMAGE",),
                "image2": ("IMAGE",),
                "blend_factor": ("FLOAT", {"default": 0.5, "min": 0.0, "max": 1.0, "step": 0.01}),
                "blend_mode": (list(cls.MODES),),
            }
        }

    def blend_images(
        self, image1: torch.Tensor, image2: torch.Tensor, blend_factor: float, blend_mode: str
    ) -> Pictures:
        import torch

        image2 = match_channels(image2.to(image1.device), image1.shape[-1])
        if image1.shape[1:3] != image2.shape[1:3]:
            image2 = resize(image2, image1.shape[2], image1.shape[1], "bicubic", "center")
        blended = _blend(image1, image2, blend_mode)
        if blend_factor != 1:
            blended = torch.lerp(image1, blended, blend_factor)
        elif blended is image2:
            return (image2.clamp(0, 1),)
        return (blended.clamp_(0, 1),)


def _blend(image1: torch.Tensor, image2: torch.Tensor, mode: str) -> torch.Tensor:
    import torch

    if mode == "normal":
        return image2
    if mode == "multiply":
        return image1 * image2
    if mode == "screen":
        return 1 - (1 - image1) * (1 - image2)
    if mode == "overlay":
        return torch.where(image1 <= 0.5, 2 * image1 * image2, 1 - 2 * (1 - image1) * (1 - image2))
    if mode == "soft_light":
        darker = image1 - (1 - 2 * image2) * image1 * (1 - image1)
        curve = torch.where(image1 <= 0.25, ((16 * image1 - 12) * image1 + 4) * image1, image1.sqrt())
        return torch.where(image2 <= 0.5, darker, image1 + (2 * image2 - 1) * (curve - image1))
    if mode == "difference":
        return image1 - image2
    raise ValueError(f"blend_mode {mode!r} is none of {', '.join(ImageBlend.MODES)}")


def match_channels(image: torch.Tensor, channels: int) -> torch.Tensor:
    """Drop the alpha that the other picture lacks, or add an opaque one."""
    import torch

    have = image.shape[-1]
    if have >= channels:
        return image[..., :channels]
    opaque = torch.ones((*image.shape[:-1], channels - have), dtype=image.dtype, device=image.device)
    return torch.cat((image, opaque), dim=-1)


class ImageBlur:
    """Gaussian blur; ``sigma`` is in units of the radius, as in ComfyUI."""

    CATEGORY = "image/postprocessing"
    DESCRIPTION = "Blurs the picture."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "blur"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {
            "required": {
                "image": ("IMAGE",),
                "blur_radius": ("INT", {"default": 1, "min": 1, "max": 31, "step": 1}),
                "sigma": ("FLOAT", {"default": 1.0, "min": 0.1, "max": 10.0, "step": 0.1}),
            }
        }

    def blur(self, image: torch.Tensor, blur_radius: int, sigma: float) -> Pictures:
        return (image if blur_radius == 0 else _gaussian_blur(image, blur_radius, sigma),)


class ImageSharpen:
    """Adds ten times ``alpha`` of what a blur would take away."""

    CATEGORY = "image/postprocessing"
    DESCRIPTION = "Sharpens the picture."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "sharpen"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {
            "required": {
                "image": ("IMAGE",),
                "sharpen_radius": ("INT", {"default": 1, "min": 1, "max": 31, "step": 1}),
                "sigma": ("FLOAT", {"default": 1.0, "min": 0.1, "max": 10.0, "step": 0.01}),
                "alpha": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 5.0, "step": 0.01}),
            }
        }

    def sharpen(self, image: torch.Tensor, sharpen_radius: int, sigma: float, alpha: float) -> Pictures:
        if sharpen_radius == 0:
            return (image,)
        # ComfyUI's one kernel, -10 alpha gauss + (1 + 10 alpha) at its centre, taken apart.
        blurred = _gaussian_blur(image, sharpen_radius, sigma)
        return (blurred.mul_(-10 * alpha).add_(image, alpha=1 + 10 * alpha).clamp_(0, 1),)


def _gaussian_blur(image: torch.Tensor, radius: int, sigma: float) -> torch.Tensor:
    """With the picture mirrored at its edges. The square kernel is separable, so two passes of a line do."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    height, width, channels = image.shape[1:]
    if radius >= min(height, width):
        raise ValueError(f"a radius of {radius} is too large for a picture of {width} x {height}")
    line = torch.linspace(-1, 1, 2 * radius + 1, device=image.device, dtype=image.dtype)
    line = torch.exp(line.square().mul_(-1 / (2 * sigma * sigma)))
    line /= line.sum()
    kernel = line.expand(channels, 1, 1, -1)
    # In this order of axes torch's depthwise convolution finds the channels together in memory and is fast.
    planes = F.pad(image.permute(0, 3, 1, 2), (radius, radius, radius, radius), mode="reflect")
    planes = F.conv2d(planes, kernel.transpose(2, 3), groups=channels)
    planes = F.conv2d(planes, kernel, groups=channels)
    return planes.permute(0, 2, 3, 1)


NODE_CLASS_MAPPINGS: dict[str, Any] = {
    node_class.__name__: node_class
    for node_class in (ImageInvert, ImageScale, ImageScaleBy, ImageBlend, ImageBlur, ImageSharpen)
}

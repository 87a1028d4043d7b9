"""Nodes that give a picture other edges, put one onto another, or make an empty one; as in ComfyUI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workflows.nodes.image import MAX_SIDE, Pictures, checked_size, match_channels
from workflows.nodes.stream import InputTypes

if TYPE_CHECKING:
    import torch

_SIDE = {"default": 512, "min": 1, "max": MAX_SIDE, "step": 1}
_PLACE = {"default": 0, "min": 0, "max": MAX_SIDE, "step": 1}


class ImageCrop:
    """The part that begins at x, y; smaller than asked where the picture ends."""

    CATEGORY = "image/transform"
    DESCRIPTION = "Cuts a rectangle out of the picture."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "crop"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {
            "required": {
                "image": ("IMAGE",),
                "width": ("INT", dict(_SIDE)),
                "height": ("INT", dict(_SIDE)),
                "x": ("INT", dict(_PLACE)),
                "y": ("INT", dict(_PLACE)),
            }
        }

    def crop(self, image: torch.Tensor, width: int, height: int, x: int, y: int) -> Pictures:
        top, left = min(y, image.shape[1] - 1), min(x, image.shape[2] - 1)
        return (image[:, top : top + height, left : left + width],)


class ImagePadForOutpaint:
    """Grey around the picture, and a MASK that is 1 there and fades out inside over ``feathering`` pixels."""

    CATEGORY = "image"
    DESCRIPTION = "Adds edges to the picture and masks them."
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "expand_image"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        edge = {"default": 0, "min": 0, "max": MAX_SIDE, "step": 8}
        return {
            "required": {
                "image": ("IMAGE",),
                "left": ("INT", dict(edge)),
                "top": ("INT", dict(edge)),
                "right": ("INT", dict(edge)),
                "bottom": ("INT", dict(edge)),
                "feathering": ("INT", {"default": 40, "min": 0, "max": MAX_SIDE, "step": 1}),
            }
        }

    def expand_image(
        self, image: torch.Tensor, left: int, top: int, right: int, bottom: int, feathering: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        batch, height, width, channels = image.shape
        new_height, new_width = checked_size(height + top + bottom, width + left + right)
        padded = image.new_full((batch, new_height, new_width, channels), 0.5)
        padded[:, top : top + height, left : left + width] = image
        mask = image.new_ones((1, new_height, new_width))
        inside = mask[0, top : top + height, left : left + width]
        if feathering > 0 and 2 * feathering < min(height, width):
            rows = _distances(inside, height, top > 0, bottom > 0)
            columns = _distances(inside, width, left > 0, right > 0)
            nearest = rows[:, None].minimum(columns)
            inside.copy_((1 - nearest / feathering).clamp_(min=0).square_())
        else:
            inside.zero_()
        return padded, mask


def _distances(like: torch.Tensor, size: int, before: bool, after: bool) -> torch.Tensor:
    """Of each of ``size`` pixels in a line, how far the nearest new edge is; ``size`` without one."""
    import torch

    place = torch.arange(size, dtype=like.dtype, device=like.device)
    far = torch.full_like(place, size)
    # Counted as in ComfyUI: 0 for the first pixel, 1 for the last.
    return torch.minimum(place if before else far, size - place if after else far)


class ImageCompositeMasked:
    """``source`` put onto ``destination`` at x, y, where ``mask`` (scaled to the source) is 1.

    ``resize_source`` scales the source to the destination. Of batches the destination's size counts; the
    others repeat or are cut.
    """

    CATEGORY = "image"
    DESCRIPTION = "Puts one picture onto another, through a mask."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "composite"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {
            "required": {
                "destination": ("IMAGE",),
                "source": ("IMAGE",),
                "x": ("INT", dict(_PLACE)),
                "y": ("INT", dict(_PLACE)),
                "resize_source": ("BOOLEAN", {"default": False}),
            },
            "optional": {"mask": ("MASK",)},
        }

    def composite(
        self,
        destination: torch.Tensor,
        source: torch.Tensor,
        x: int,
        y: int,
        resize_source: bool,
        mask: torch.Tensor | None = None,
    ) -> Pictures:
        import torch

        batch, height, width, channels = destination.shape
        source = match_channels(source.to(destination), channels)
        if resize_source:
            source = _scaled(source, height, width)
        source = _batch_of(source, batch)
        rows, columns = max(0, min(source.shape[1], height - y)), max(0, min(source.shape[2], width - x))
        result = destination.clone()
        there = result[:, y : y + rows, x : x + columns]
        if mask is None:
            there.copy_(source[:, :rows, :columns])
            return (result,)
        weights = mask.to(destination).reshape(-1, *mask.shape[-2:], 1)
        weights = _batch_of(_scaled(weights, *source.shape[1:3]), batch)
        # A weight for each value: torch is four times as fast as with one for each pixel.
        weights = weights[:, :rows, :columns].expand_as(there).contiguous()
        torch.lerp(there, source[:, :rows, :columns], weights, out=there)
        return (result,)


def _scaled(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """B x H x W x C at another size, bilinear."""
    import torch.nn.functional as F  # noqa: N812

    if image.shape[1:3] == (height, width):
        return image
    return F.interpolate(image.movedim(-1, 1), size=(height, width), mode="bilinear").movedim(1, -1)


def _batch_of(image: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` pictures: the first of them, or all of them over and over."""
    have = image.shape[0]
    if have >= count:
        return image[:count]
    if have == 1:
        return image.expand(count, *image.shape[1:])
    return image.repeat(-(-count // have), *(1 for _ in image.shape[1:]))[:count]


class EmptyImage:
    """Pictures of one colour, given as 0xRRGGBB."""

    CATEGORY = "image"
    DESCRIPTION = "A picture of one colour."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "generate"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {
            "required": {
                "width": ("INT", dict(_SIDE)),
                "height": ("INT", dict(_SIDE)),
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096}),
                "color": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFF, "step": 1, "display": "color"}),
            }
        }

    def generate(self, width: int, height: int, batch_size: int = 1, color: int = 0) -> Pictures:
        import torch

        checked_size(height, width, batch_size)
        rgb = torch.tensor([color >> 16 & 0xFF, color >> 8 & 0xFF, color & 0xFF]) / 0xFF
        return (rgb.expand(batch_size, height, width, 3).contiguous(),)


NODE_CLASS_MAPPINGS: dict[str, Any] = {
    node_class.__name__: node_class
    for node_class in (ImageCrop, ImagePadForOutpaint, ImageCompositeMasked, EmptyImage)
}

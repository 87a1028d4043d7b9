"""Nodes that make and change masks, as in ComfyUI.

A MASK is a float tensor B x H x W, 0..1; foreign nodes also give H x W.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workflows.nodes.image import MAX_SIDE, Pictures
from workflows.nodes.morphology import dilate_cross, dilate_square
from workflows.nodes.stream import InputTypes

if TYPE_CHECKING:
    import torch

CHANNELS = ("red", "green", "blue", "alpha")

Masks = tuple["torch.Tensor"]


class ImageToMask:
    """One channel of a picture."""

    CATEGORY = "mask"
    DESCRIPTION = "Makes a mask of one colour channel."
    RETURN_TYPES = ("MASK",)
    FUNCTION = "image_to_mask"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": {"image": ("IMAGE",), "channel": (list(CHANNELS),)}}

    def image_to_mask(self, image: torch.Tensor, channel: str) -> Masks:
        index = CHANNELS.index(channel)
        if index >= image.shape[-1]:
            raise ValueError(f"the picture has {image.shape[-1]} channels, so there is no {channel} one")
        return (image[..., index],)


class MaskToImage:
    """A grey picture."""

    CATEGORY = "mask"
    DESCRIPTION = "Makes a grey picture of a mask."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "mask_to_image"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": {"mask": ("MASK",)}}

    def mask_to_image(self, mask: torch.Tensor) -> Pictures:
        return (_pictures(mask).unsqueeze(-1).expand(-1, -1, -1, 3),)


class InvertMask:
    """1 - mask."""

    CATEGORY = "mask"
    DESCRIPTION = "Swaps what is masked and what is not."
    RETURN_TYPES = ("MASK",)
    FUNCTION = "invert"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": {"mask": ("MASK",)}}

    def invert(self, mask: torch.Tensor) -> Masks:
        return (1.0 - mask,)


class ThresholdMask:
    """1 above ``value``, else 0."""

    CATEGORY = "mask"
    DESCRIPTION = "Makes a mask hard."
    RETURN_TYPES = ("MASK",)
    FUNCTION = "image_to_mask"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        value = {"default": 0.5, "min": 0.0, "max": 1.0, "step": 0.01}
        return {"required": {"mask": ("MASK",), "value": ("FLOAT", value)}}

    def image_to_mask(self, mask: torch.Tensor, value: float) -> Masks:
        import torch

        return ((mask > value).to(torch.float32),)


class GrowMask:
    """Grows the bright parts by ``expand`` pixels, or shrinks them by as many below 0.

    Corners stay square, or become slanted with ``tapered_corners``: then a step goes to the four neighbours
    of a pixel, else to the eight.
    """

    CATEGORY = "mask"
    DESCRIPTION = "Grows or shrinks a mask."
    RETURN_TYPES = ("MASK",)
    FUNCTION = "expand_mask"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {
            "required": {
                "mask": ("MASK",),
                "expand": ("INT", {"default": 0, "min": -MAX_SIDE, "max": MAX_SIDE, "step": 1}),
                "tapered_corners": ("BOOLEAN", {"default": True}),
            }
        }

    def expand_mask(self, mask: torch.Tensor, expand: int, tapered_corners: bool) -> Masks:
        masks = _pictures(mask)
        dilate = dilate_cross if tapered_corners else dilate_square
        if expand < 0:
            return (dilate(-masks, -expand).neg_(),)
        return (dilate(masks, expand),)


def _pictures(mask: torch.Tensor) -> torch.Tensor:
    """B x H x W, whatever number of axes came."""
    return mask.reshape(-1, *mask.shape[-2:])


NODE_CLASS_MAPPINGS: dict[str, Any] = {
    node_class.__name__: node_class
    for node_class in (ImageToMask, MaskToImage, InvertMask, ThresholdMask, GrowMask)
}

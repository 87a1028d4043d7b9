"""Nodes about the number and the size of pictures, as in ComfyUI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workflows.nodes.image import Pictures, checked_size
from workflows.nodes.stream import InputTypes

if TYPE_CHECKING:
    import torch


class RepeatImageBatch:
    """The pictures of a batch, ``amount`` times one after the other."""

    CATEGORY = "image/batch"
    DESCRIPTION = "Repeats the picture."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "repeat"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": {"image": ("IMAGE",), "amount": ("INT", {"default": 1, "min": 1, "max": 4096})}}

    def repeat(self, image: torch.Tensor, amount: int) -> Pictures:
        checked_size(image.shape[1], image.shape[2], image.shape[0] * amount)
        return (image.repeat(amount, 1, 1, 1),)


class ImageFromBatch:
    """``length`` pictures from number ``batch_index`` on; what lies beyond the end counts as the last."""

    CATEGORY = "image/batch"
    DESCRIPTION = "Takes pictures out of a batch."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "frombatch"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {
            "required": {
                "image": ("IMAGE",),
                "batch_index": ("INT", {"default": 0, "min": 0, "max": 4095}),
                "length": ("INT", {"default": 1, "min": 1, "max": 4096}),
            }
        }

    def frombatch(self, image: torch.Tensor, batch_index: int, length: int) -> Pictures:
        first = min(image.shape[0] - 1, batch_index)
        return (image[first : first + length].clone(),)


class GetImageSize:
    """Width and height in pixels, and how many pictures there are."""

    CATEGORY = "image"
    DESCRIPTION = "The size of the picture, for the inputs of other nodes."
    RETURN_TYPES = ("INT", "INT", "INT")
    RETURN_NAMES = ("width", "height", "batch_size")
    FUNCTION = "get_size"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {"required": {"image": ("IMAGE",)}}

    def get_size(self, image: torch.Tensor) -> tuple[int, int, int]:
        batch, height, width = image.shape[:3]
        return width, height, batch


NODE_CLASS_MAPPINGS: dict[str, Any] = {
    node_class.__name__: node_class for node_class in (RepeatImageBatch, ImageFromBatch, GetImageSize)
}

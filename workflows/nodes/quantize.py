"""`ImageQuantize`: a picture in few colours, with the results of ComfyUI's node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from workflows.nodes.pixels import to_bytes
from workflows.nodes.stream import InputTypes

if TYPE_CHECKING:
    import torch
    from PIL import Image

DITHERS = ("none", "floyd-steinberg", "bayer-2", "bayer-4", "bayer-8", "bayer-16")


class ImageQuantize:
    """At most ``colors`` colours, chosen for each picture by median cut."""

    CATEGORY = "image/postprocessing"
    DESCRIPTION = "Reduces the picture to a few colours."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "quantize"

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {
            "required": {
                "image": ("IMAGE",),
                "colors": ("INT", {"default": 256, "min": 1, "max": 256, "step": 1}),
                "dither": (list(DITHERS),),
            }
        }

    def quantize(self, image: torch.Tensor, colors: int, dither: str) -> tuple[torch.Tensor]:
        import torch
        from PIL import Image

        pictures = []
        for pixels in to_bytes(image[..., :3]):
            picture = Image.fromarray(pixels)
            palette = picture.quantize(colors=colors)
            if dither.startswith("bayer-"):
                picture = Image.fromarray(_add_pattern(pixels, int(dither[6:]), _palette_size(palette)))
            method = Image.Dither.FLOYDSTEINBERG if dither == "floyd-steinberg" else Image.Dither.NONE
            reduced = picture.quantize(colors=colors, palette=palette, dither=method)
            pictures.append(np.asarray(reduced.convert("RGB")))
        stacked = torch.from_numpy(np.stack(pictures)).to(image.device)
        return (stacked.to(torch.float32).mul_(1 / 255),)


def _palette_size(palette: Image.Image) -> int:
    return len(palette.getpalette() or ()) // 3


def _add_pattern(pixels: npt.NDArray[np.uint8], order: int, colors: int) -> npt.NDArray[np.uint8]:
    """Shift each pixel by its place in a Bayer matrix, spread over the steps of the palette."""
    spread = 2 * 256 / colors
    matrix = spread * bayer_matrix(order) + 0.5
    height, width = pixels.shape[:2]
    tiled = np.tile(matrix, (-(-height // order), -(-width // order)))[:height, :width, None]
    shifted: npt.NDArray[np.uint8] = (pixels + tiled).clip(0, 255).astype(np.uint8)
    return shifted


def bayer_matrix(order: int) -> npt.NDArray[np.float32]:
    """Bayer's ordered-dither matrix, around zero and less than one wide; ``order`` is a power of two.

    Each doubling puts four copies, refined by the four ranks of the 2 x 2 matrix, beside each other.
    """
    matrix: npt.NDArray[np.float32] = np.zeros((1, 1), np.float32)
    size = 1
    while size < order:
        size *= 2
        whole = size * size * matrix
        doubled = np.block([[whole - 1.5, whole + 0.5], [whole + 1.5, whole - 0.5]]) / (size * size)
        matrix = doubled.astype(np.float32)
    return matrix


NODE_CLASS_MAPPINGS: dict[str, Any] = {"ImageQuantize": ImageQuantize}

"""Eight-bit pixels and what is needed to read them. For foreign interpreters: standard library and numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

PixelFormat = Literal["yuv420p", "rgb24"]
Matrix = Literal["bt601", "bt709", "bt2020"]
Plane = npt.NDArray[np.uint8]

# Kr and Kb of each matrix (ITU-T H.273, table 4).
LUMA_COEFFICIENTS: Mapping[Matrix, tuple[float, float]] = {
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
}


class Picture:
    """Eight-bit pixels of one picture, not to be written to once made.

    ``planes`` are 2-D uint8 arrays whose rows may be longer than the picture (strides are kept):
    for ``rgb24`` one of H x 3W, for ``yuv420p`` H x W, then twice ceil(H/2) x ceil(W/2).
    ``matrix`` and ``full_range`` say how luma and chroma were made; they mean nothing for ``rgb24``.
    """

    __slots__ = ("format", "full_range", "height", "matrix", "planes", "width")

    def __init__(
        self,
        format: PixelFormat,  # noqa: A002 (the field's own word)
        width: int,
        height: int,
        planes: Sequence[Plane],
        matrix: Matrix = "bt601",
        full_range: bool = False,
    ) -> None:
        self.format: PixelFormat = format
        self.width = width
        self.height = height
        self.planes = tuple(planes)
        self.matrix: Matrix = matrix
        self.full_range = full_range
        expected = plane_shapes(format, width, height)
        found = tuple(plane.shape for plane in self.planes)
        if found != expected:
            raise ValueError(f"a {format} picture of {width}x{height} has planes {expected}, not {found}")

    @classmethod
    def from_rgb(cls, rgb: npt.NDArray[np.uint8]) -> Picture:
        """A picture over an H x W x 3 array; shares its memory when the rows are contiguous."""
        height, width, channels = rgb.shape
        if channels != 3 or rgb.dtype != np.uint8:
            raise ValueError(f"expected uint8 H x W x 3, not {rgb.dtype} {rgb.shape}")
        return cls("rgb24", width, height, (np.ascontiguousarray(rgb).reshape(height, width * 3),))

    def rgb(self) -> npt.NDArray[np.uint8]:
        """The pixels as uint8 H x W x 3. Shared for ``rgb24``, computed for anything else."""
        if self.format == "rgb24":
            plane = self.planes[0]
            return np.lib.stride_tricks.as_strided(
                plane, (self.height, self.width, 3), (plane.strides[0], 3, 1), writeable=False
            )
        return _yuv420p_to_rgb(self)


def plane_shapes(format: PixelFormat, width: int, height: int) -> tuple[tuple[int, int], ...]:  # noqa: A002
    """Rows and bytes in a row of each plane of a picture of that size."""
    if format == "rgb24":
        return ((height, width * 3),)
    chroma = ((height + 1) // 2, (width + 1) // 2)
    return ((height, width), chroma, chroma)


def _yuv420p_to_rgb(picture: Picture) -> npt.NDArray[np.uint8]:
    """ITU-T H.273 in numpy: the slow, exact way for interpreters that have no swscale."""
    kr, kb = LUMA_COEFFICIENTS[picture.matrix]
    offset, luma, chroma = (0, 255, 255) if picture.full_range else (16, 219, 224)
    y8, u8, v8 = picture.planes
    y = (y8.astype(np.float32) - offset) / luma
    u = (u8.astype(np.float32) - 128) / chroma
    v = (v8.astype(np.float32) - 128) / chroma
    rows, columns = picture.height, picture.width
    u = u.repeat(2, 0).repeat(2, 1)[:rows, :columns]
    v = v.repeat(2, 0).repeat(2, 1)[:rows, :columns]
    red = y + 2 * (1 - kr) * v
    blue = y + 2 * (1 - kb) * u
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    rgb = np.stack((red, green, blue), axis=-1)
    return np.asarray((rgb * 255 + 0.5).clip(0, 255), dtype=np.uint8)

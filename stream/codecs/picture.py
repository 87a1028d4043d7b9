"""Pictures over FFmpeg's frames: no copy on the way from a decoder to whoever reads the planes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from fractions import Fraction
from typing import cast

import av
import numpy as np
import numpy.typing as npt
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

from stream.frames import Matrix, Picture, Plane

# AVColorSpace and AVColorRange, as frames and codec contexts carry them (ITU-T H.273, table 4).
COLORSPACES: dict[Matrix, int] = {"bt601": 6, "bt709": 1, "bt2020": 9}
LIMITED, FULL = 1, 2

_YUV_FORMATS = ("yuv420p", "yuvj420p")


class AvPicture(Picture):
    """A picture over an `av.VideoFrame` of ``yuv420p``, ``yuvj420p`` or ``rgb24``, which is kept as ``av``.

    The frame may be a reference picture of its decoder, so the planes are read-only views. ``av`` is shared
    with everybody who holds the picture: neither its pixels nor its times are to be set, but by `as_input`.
    """

    __slots__ = ("_input", "av")

    def __init__(self, frame: av.VideoFrame, matrix: Matrix = "bt601", full_range: bool = False) -> None:
        self.av = frame
        self._input = threading.Lock()
        name = frame.format.name
        if name in _YUV_FORMATS:
            frame.colorspace = COLORSPACES[matrix]
            frame.color_range = FULL if full_range else LIMITED
            planes = tuple(plane_view(plane) for plane in frame.planes)
            super().__init__("yuv420p", frame.width, frame.height, planes, matrix, full_range)
        elif name == "rgb24":
            row = plane_view(frame.planes[0], frame.width * 3)
            super().__init__("rgb24", frame.width, frame.height, (row,), matrix, full_range)
        else:
            raise ValueError(f"no picture over a {name} frame")

    @contextlib.contextmanager
    def as_input(self, pts: int, time_base: Fraction, key: bool) -> Iterator[av.VideoFrame]:
        """The frame with the time and type that an encoder is to read, for the length of its call.

        One at a time: others wait.
        """
        frame = self.av
        with self._input:
            # A frame without a time base cannot be given None again.
            before = frame.pts, frame.time_base or time_base, frame.pict_type
            frame.pts, frame.time_base = pts, time_base
            frame.pict_type = PictureType.I if key else PictureType.NONE
            try:
                yield frame
            finally:
                frame.pts, frame.time_base, frame.pict_type = before

    def rgb(self) -> npt.NDArray[np.uint8]:
        """The pixels as uint8 H x W x 3; for YUV converted by swscale with the picture's matrix and range.

        swscale's fast way stays within 3 of exact arithmetic (ITU-T H.273), on average 1 below it for
        limited range; the exact way takes ten times as long.
        """
        if self.format == "rgb24":
            return super().rgb()
        # A reformatter of its own: setting one up for a mere conversion takes microseconds.
        frame = VideoReformatter().reformat(self.av, format="rgb24", dst_color_range=FULL, threads=1)
        return _rgb_view(frame)


def plane_view(plane: av.video.plane.VideoPlane, width: int | None = None) -> Plane:
    """A read-only view of one plane of 8-bit samples; ``width`` in bytes where samples are not single."""
    rows = np.frombuffer(cast("memoryview", plane), np.uint8).reshape(plane.height, plane.line_size)
    view = rows[:, : plane.width if width is None else width]
    view.flags.writeable = False
    return view


def _rgb_view(frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
    """H x W x 3 over a fresh ``rgb24`` frame, which stays alive as long as the view."""
    plane = frame.planes[0]
    rows = np.frombuffer(cast("memoryview", plane), np.uint8).reshape(frame.height, plane.line_size)
    return np.lib.stride_tricks.as_strided(rows, (frame.height, frame.width, 3), (plane.line_size, 3, 1))


def to_av(picture: Picture) -> av.VideoFrame:
    """The picture as FFmpeg's frame with its colour tags; the one it lies in, where there is one.

    RGB in contiguous rows is shared too. YUV planes from elsewhere are copied.
    """
    if isinstance(picture, AvPicture):
        return picture.av
    if picture.format == "rgb24":
        rgb = np.ascontiguousarray(picture.rgb())
        return av.VideoFrame.from_numpy_buffer(rgb, format="rgb24")
    return copied(picture, picture.width, picture.height)


def copied(picture: Picture, width: int, height: int, left: int = 0, top: int = 0) -> av.VideoFrame:
    """A fresh ``yuv420p`` frame with a part of a YUV picture; ``left`` and ``top`` are even."""
    frame = av.VideoFrame(width, height, "yuv420p")
    frame.colorspace = COLORSPACES[picture.matrix]
    frame.color_range = FULL if picture.full_range else LIMITED
    for index, (plane, source) in enumerate(zip(frame.planes, picture.planes, strict=True)):
        y, x = (top // 2, left // 2) if index else (top, left)
        target = np.frombuffer(cast("memoryview", plane), np.uint8).reshape(plane.height, plane.line_size)
        np.copyto(target[:, : plane.width], source[y : y + plane.height, x : x + plane.width])
    return frame

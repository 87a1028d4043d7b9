"""Sizes, pixel formats, colours and orientation of pictures, by swscale in one thread.

Measured with PyAV 17 and 18: swscale follows a frame's own ``colorspace`` and ``color_range`` tags, in both
directions, for BT.601, BT.709 and BT.2020; it reads ``yuvj*`` frames as full range whatever their tag, and
grey ones as full range too, which is wrong for H.264. PyAV's ``*_colorspace`` arguments are not used, because
17 does not know BT.2020 there.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import cast

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from stream.codecs.picture import COLORSPACES, FULL, LIMITED, AvPicture, copied, plane_view, to_av
from stream.frames import Matrix, Picture, Plane

# AVColorSpace to the matrix that is the same or the nearest one; 7 is SMPTE 240M, 4 FCC, 5 BT.470 BG.
_MATRICES: dict[int, Matrix] = {
    1: "bt709",
    4: "bt601",
    5: "bt601",
    6: "bt601",
    7: "bt709",
    9: "bt2020",
    10: "bt2020",
}


_UPRIGHT = (0, False)
# Signs of a display matrix's a, b, c, d: quarter turns counter-clockwise, and whether mirrored before.
_ORIENTATIONS: dict[tuple[int, ...], tuple[int, bool]] = {
    (1, 0, 0, 1): _UPRIGHT,
    (0, -1, 1, 0): (1, False),
    (-1, 0, 0, -1): (2, False),
    (0, 1, -1, 0): (3, False),
    (-1, 0, 0, 1): (0, True),
    (0, 1, 1, 0): (1, True),
    (1, 0, 0, -1): (2, True),
    (0, -1, -1, 0): (3, True),
}


def default_matrix(width: int, height: int) -> Matrix:
    """The matrix of a picture that names none: BT.709 from 720 rows or 1280 columns on, else BT.601.

    Broadcast practice, and what browsers and players guess.
    """
    return "bt709" if height >= 720 or width >= 1280 else "bt601"


def square_width(width: int, aspect: Fraction | None) -> int:
    """The width in square pixels of a picture whose own are ``aspect`` times as wide as high.

    What no camera or disc has (over 4:1 or under 1:4) counts as a mistake and changes nothing.
    """
    if aspect is None or aspect == 1 or not Fraction(1, 4) <= aspect <= 4:
        return width
    return max(2, _even(width * aspect))


class Converter:
    """Converts pictures for one thread at a time; keeps swscale's contexts from call to call.

    Nothing is written to the pictures that go in; what needs no change comes out as the same object.
    """

    def __init__(self) -> None:
        self._scaler = VideoReformatter()
        self._formatter = VideoReformatter()
        self._to_yuv = VideoReformatter()
        self._orientation = _UPRIGHT
        self._rotation: int | None = None

    def scale(self, picture: Picture, width: int, height: int, *, crop: bool = True) -> Picture:
        """The picture in another size, its proportions kept, in its own format, matrix and range.

        ``crop`` cuts what stands over equally on both sides; without it the whole picture is shown between
        black bars.
        """
        if (picture.width, picture.height) == (width, height):
            return picture
        if crop:
            return self._resize(*_centre(picture, width, height), width, height)
        ratio = min(width / picture.width, height / picture.height)
        inner = (
            min(width, max(2, _even(picture.width * ratio))),
            min(height, max(2, _even(picture.height * ratio))),
        )
        scaled = self._resize(picture, 0, 0, picture.width, picture.height, *inner)
        return scaled if inner == (width, height) else _framed(scaled, width, height)

    def _resize(
        self,
        picture: Picture,
        left: int,
        top: int,
        columns: int,
        rows: int,
        width: int,
        height: int,
    ) -> Picture:
        """A part of the picture in that size."""
        if (columns, rows) == (width, height):
            return _part(picture, left, top, columns, rows)
        if (columns, rows) != (picture.width, picture.height):
            part = _part(picture, left, top, columns, rows)
        else:
            part = picture
        frame = self._scaler.reformat(
            to_av(part), width=width, height=height, interpolation=Interpolation.BILINEAR, threads=1
        )
        return AvPicture(frame, picture.matrix, picture.full_range)

    def to_yuv420p(self, picture: Picture, matrix: Matrix, full_range: bool) -> Picture:
        """The picture as YUV 4:2:0 in that matrix and range (ITU-T H.273)."""
        if picture.format == "yuv420p":
            if picture.matrix == matrix and picture.full_range == full_range:
                return picture
            if picture.matrix == matrix:
                frame = self._to_yuv.reformat(
                    _plain_yuv(picture),
                    format="yuv420p",
                    dst_color_range=FULL if full_range else LIMITED,
                    threads=1,
                )
                return AvPicture(frame, matrix, full_range)
            picture = Picture.from_rgb(picture.rgb())
        frame = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(picture.rgb()), format="rgb24")
        # The result takes its matrix from the source's tag, which means nothing else for RGB.
        frame.colorspace = COLORSPACES[matrix]
        frame.color_range = FULL
        result = self._to_yuv.reformat(
            frame, format="yuv420p", dst_color_range=FULL if full_range else LIMITED, threads=1
        )
        return AvPicture(result, matrix, full_range)

    def from_av(self, frame: av.VideoFrame, aspect: Fraction | None = None) -> Picture:
        """A decoded frame as a picture: 8-bit 4:2:0, matrix and range as it says, turned upright, and of
        `square_width` where its pixels have another ``aspect``.

        Without a matrix `default_matrix` holds, without a range the limited one (full for ``yuvj``).
        A display matrix holds until the next key frame, as in H.264. HDR transfer curves are left as they
        are. Raises `av.error.FFmpegError` for a pixel format that swscale does not know.
        """
        name = frame.format.name
        matrix = _MATRICES.get(int(frame.colorspace)) or default_matrix(frame.width, frame.height)
        full_range = int(frame.color_range) == FULL or name.startswith("yuvj")
        if name.startswith("gray"):
            picture: Picture = self._from_grey(frame, matrix, full_range)
        elif name in ("yuv420p", "yuvj420p"):
            picture = AvPicture(frame, matrix, full_range)
        else:
            is_rgb = frame.format.is_rgb
            full_range = full_range and not is_rgb
            frame.colorspace = COLORSPACES[matrix]
            frame.color_range = FULL if full_range or is_rgb else LIMITED
            wanted = FULL if full_range else LIMITED
            converted = self._formatter.reformat(frame, format="yuv420p", dst_color_range=wanted, threads=1)
            picture = AvPicture(converted, matrix, full_range)
        width = square_width(picture.width, aspect)
        if width != picture.width:
            picture = self._resize(picture, 0, 0, picture.width, picture.height, width, picture.height)
        self._follow_orientation(frame)
        return _oriented(picture, *self._orientation)

    def _follow_orientation(self, frame: av.VideoFrame) -> None:
        """The orientation that holds from this frame on; one that a key frame does not repeat has ended.

        `av.VideoFrame.side_data` ties the frame into a reference cycle, which keeps its pixels until the
        garbage collector comes by (100 MB of them at 512 x 512). So it is read only where the rotation,
        which costs nothing, has changed; a mirroring that begins in mid-stream goes unnoticed.
        """
        rotation = int(frame.rotation)
        if rotation != self._rotation:
            orientation = _orientation_of(frame)
            if orientation is not None or frame.key_frame:
                self._orientation = orientation or _UPRIGHT
        elif frame.key_frame and not rotation and self._orientation[0] % 2:
            self._orientation = _UPRIGHT
        self._rotation = rotation

    def _from_grey(self, frame: av.VideoFrame, matrix: Matrix, full_range: bool) -> Picture:
        if frame.format.name != "gray":
            frame.color_range = FULL
            frame = self._formatter.reformat(frame, format="gray", dst_color_range=FULL, threads=1)
        neutral = np.full(((frame.height + 1) // 2, (frame.width + 1) // 2), 128, np.uint8)
        planes = (plane_view(frame.planes[0]), neutral, neutral)
        return Picture("yuv420p", frame.width, frame.height, planes, matrix, full_range)


def rotate(picture: Picture, degrees: int) -> Picture:
    """The picture turned counter-clockwise by a multiple of 90 degrees.

    Raises `ValueError` for another angle.
    """
    turns, odd = divmod(degrees % 360, 90)
    if odd:
        raise ValueError(f"pictures turn by multiples of 90 degrees, not {degrees}")
    return _oriented(picture, turns, False)


def _oriented(picture: Picture, turns: int, mirrored: bool) -> Picture:
    """Mirrored left to right first, where asked for, then turned counter-clockwise."""
    if not turns and not mirrored:
        return picture
    width, height = (picture.height, picture.width) if turns % 2 else (picture.width, picture.height)
    if picture.format == "rgb24":
        rgb = picture.rgb()
        return Picture.from_rgb(np.ascontiguousarray(np.rot90(rgb[:, ::-1] if mirrored else rgb, turns)))
    planes = [
        np.ascontiguousarray(np.rot90(plane[:, ::-1] if mirrored else plane, turns))
        for plane in picture.planes
    ]
    return Picture("yuv420p", width, height, planes, picture.matrix, picture.full_range)


def _orientation_of(frame: av.VideoFrame) -> tuple[int, bool] | None:
    """Quarter turns and mirroring of the display matrix that came with the frame, None where none did.

    Any other angle is left to whoever shows the picture.
    """
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return None
    matrix = np.frombuffer(cast("memoryview", side_data), np.int32)
    if matrix.size != 9:
        return None
    # A row vector (x, y) times ((a, b), (c, d)) is where a pixel is shown; y runs downwards.
    signs = tuple(int(np.sign(value)) if abs(int(value)) > 32768 else 0 for value in matrix[[0, 1, 3, 4]])
    return _ORIENTATIONS.get(signs, _UPRIGHT)


def _centre(picture: Picture, width: int, height: int) -> tuple[Picture, int, int, int, int]:
    """The largest part in the middle with those proportions: left, top, columns, rows."""
    columns = min(picture.width, max(2, _even(picture.height * width / height)))
    rows = min(picture.height, max(2, _even(picture.width * height / width)))
    left = (picture.width - columns) // 4 * 2
    top = (picture.height - rows) // 4 * 2
    return picture, left, top, columns, rows


def _even(length: float | Fraction) -> int:
    return math.floor(length / 2 + 0.5) * 2


def _part(picture: Picture, left: int, top: int, columns: int, rows: int) -> Picture:
    """A part of the picture over the same memory; ``left`` and ``top`` are even."""
    if (columns, rows) == (picture.width, picture.height):
        return picture
    if picture.format == "rgb24":
        planes = [picture.planes[0][top : top + rows, left * 3 : (left + columns) * 3]]
    else:
        x, y, half_columns, half_rows = left // 2, top // 2, (columns + 1) // 2, (rows + 1) // 2
        planes = [picture.planes[0][top : top + rows, left : left + columns]]
        planes += [plane[y : y + half_rows, x : x + half_columns] for plane in picture.planes[1:]]
    return Picture(picture.format, columns, rows, planes, picture.matrix, picture.full_range)


def _plain_yuv(picture: Picture) -> av.VideoFrame:
    """As a frame whose format leaves the range to the tag, which ``yuvj420p`` does not."""
    if isinstance(picture, AvPicture) and picture.av.format.name == "yuv420p":
        return picture.av
    return copied(picture, picture.width, picture.height)


def _framed(picture: Picture, width: int, height: int) -> Picture:
    """In the middle of a black picture of that size."""
    left, top = (width - picture.width) // 4 * 2, (height - picture.height) // 4 * 2
    if picture.format == "rgb24":
        canvas = np.zeros((height, width, 3), np.uint8)
        canvas[top : top + picture.height, left : left + picture.width] = picture.rgb()
        return Picture.from_rgb(canvas)
    planes: list[Plane] = []
    for index, plane in enumerate(picture.planes):
        divisor = 2 if index else 1
        shape = ((height + divisor - 1) // divisor, (width + divisor - 1) // divisor)
        black = 128 if index else 0 if picture.full_range else 16
        target = np.full(shape, black, np.uint8)
        rows, columns = plane.shape
        y, x = top // divisor, left // divisor
        target[y : y + rows, x : x + columns] = plane
        planes.append(target)
    return Picture("yuv420p", width, height, planes, picture.matrix, picture.full_range)

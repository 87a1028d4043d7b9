from __future__ import annotations

import av
import numpy as np
import numpy.typing as npt
import pytest
from codec_media import gradient, h273_yuv, pattern_frame, solid

from stream.codecs.convert import Converter, default_matrix, rotate
from stream.codecs.picture import AvPicture, to_av
from stream.frames import Matrix, Picture

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 30, 90)]
MATRICES: list[Matrix] = ["bt601", "bt709", "bt2020"]
TAGS = {"bt601": 6, "bt709": 1, "bt2020": 9}


def middle(picture: Picture) -> npt.NDArray[np.float64]:
    if picture.format == "rgb24":
        return picture.rgb()[picture.height // 2, picture.width // 2].astype(float)
    return np.array([float(plane[plane.shape[0] // 2, plane.shape[1] // 2]) for plane in picture.planes])


def numpy_yuv(seed: int, width: int, height: int, **tags: object) -> Picture:
    """A picture whose planes are plain arrays."""
    view = AvPicture(pattern_frame(seed, width, height))
    return Picture("yuv420p", width, height, [plane.copy() for plane in view.planes], **tags)  # type: ignore[arg-type]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("colour", COLOURS)
def test_rgb_becomes_yuv_by_the_equations(colour: tuple[int, ...], matrix: Matrix, full: bool) -> None:
    rgb = Picture.from_rgb(np.full((32, 48, 3), colour, np.uint8))
    picture = Converter().to_yuv420p(rgb, matrix, full)
    assert (picture.format, picture.matrix, picture.full_range) == ("yuv420p", matrix, full)
    assert np.abs(middle(picture) - h273_yuv(colour, matrix, full).clip(0, 255)).max() <= 1.5
    frame = to_av(picture)
    assert (int(frame.colorspace), int(frame.color_range)) == (TAGS[matrix], 2 if full else 1)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("colour", COLOURS)
def test_yuv_becomes_rgb_by_the_equations(colour: tuple[int, ...], matrix: Matrix, full: bool) -> None:
    y, u, v = (int(value) for value in h273_yuv(colour, matrix, full).clip(0, 255).round())
    picture = AvPicture(solid(y, u, v), matrix, full)
    # swscale's fast way: within 3, its mean a little below.
    assert np.abs(picture.rgb()[24, 32].astype(int) - colour).max() <= 3
    plain = Picture("yuv420p", 64, 48, [plane.copy() for plane in picture.planes], matrix, full)
    assert np.abs(plain.rgb()[24, 32].astype(int) - picture.rgb()[24, 32]).max() <= 3


def test_matrix_and_range_matter() -> None:
    """What the tests above would let pass if tags were ignored: the readings lie far apart."""
    readings = {
        (m, f): AvPicture(solid(120, 90, 170), m, f).rgb()[24, 32] for m in MATRICES for f in (False, True)
    }
    values = [value.astype(int) for value in readings.values()]
    assert min(np.abs(a - b).max() for i, a in enumerate(values) for b in values[:i]) >= 3


@pytest.mark.parametrize("source", [("bt601", False), ("bt709", True), ("bt2020", False)])
@pytest.mark.parametrize("target", [("bt601", True), ("bt709", False), ("bt2020", True)])
def test_yuv_changes_matrix_and_range(source: tuple[Matrix, bool], target: tuple[Matrix, bool]) -> None:
    colour = (190, 80, 60)
    y, u, v = (int(value) for value in h273_yuv(colour, *source).round())
    picture = Converter().to_yuv420p(AvPicture(solid(y, u, v), *source), *target)
    assert np.abs(middle(picture) - h273_yuv(colour, *target)).max() <= 3


def test_yuv_that_is_right_already_is_the_same_object() -> None:
    picture = AvPicture(solid(120, 90, 170), "bt709", False)
    converter = Converter()
    assert converter.to_yuv420p(picture, "bt709", False) is picture
    assert converter.scale(picture, 64, 48) is picture
    assert to_av(picture) is picture.av


def test_full_range_yuvj_is_read_as_full_whatever_its_tag() -> None:
    frame = solid(200, 100, 140, fmt="yuvj420p")
    picture = Converter().from_av(frame)
    assert picture.full_range
    assert list(middle(picture)) == [200, 100, 140]
    limited = Converter().to_yuv420p(picture, picture.matrix, False)
    assert abs(middle(limited)[0] - (200 * 219 / 255 + 16)) <= 1


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    "fmt", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuvj444p", "yuv440p", "nv12", "gray", "yuva420p"]
)
def test_eight_bit_formats_keep_their_values(fmt: str, full: bool) -> None:
    frame = solid(70, 100, 180, fmt=fmt)
    if fmt == "nv12":
        frame.planes[1].update(bytes((100, 180)) * (frame.planes[1].buffer_size // 2))
    frame.colorspace, frame.color_range = 1, 2 if full or fmt.startswith("yuvj") else 1
    picture = Converter().from_av(frame)
    assert (picture.format, picture.matrix) == ("yuv420p", "bt709")
    assert picture.full_range == (full or fmt.startswith("yuvj"))
    expected = [70, 128, 128] if fmt == "gray" else [70, 100, 180]
    assert np.abs(middle(picture) - expected).max() <= 1


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("fmt", ["yuv420p10le", "yuv422p10le", "yuv444p10le", "p010le", "gray10le"])
def test_ten_bits_become_eight(fmt: str, full: bool) -> None:
    frame = av.VideoFrame(64, 48, fmt)
    for plane, value in zip(frame.planes, (70, 100, 180), strict=False):
        samples = np.full(plane.buffer_size // 2, value << (8 if fmt == "p010le" else 2), np.uint16)
        if fmt == "p010le" and value == 100:
            samples[1::2] = 180 << 8
        plane.update(samples.tobytes())
    frame.colorspace, frame.color_range = 9, 2 if full else 1
    picture = Converter().from_av(frame)
    assert (picture.matrix, picture.full_range) == ("bt2020", full)
    expected = [70, 128, 128] if fmt == "gray10le" else [70, 100, 180]
    assert np.abs(middle(picture) - expected).max() <= 1


def test_coded_rgb_becomes_yuv() -> None:
    frame = solid(30, 90, 200, fmt="gbrp")
    picture = Converter().from_av(frame)
    assert np.abs(middle(picture) - h273_yuv((200, 30, 90), picture.matrix, False)).max() <= 1.5


@pytest.mark.parametrize(
    ("size", "matrix"),
    [
        ((640, 480), "bt601"),
        ((1024, 576), "bt601"),
        ((1280, 720), "bt709"),
        ((720, 1280), "bt709"),
        ((1280, 544), "bt709"),
    ],
)
def test_a_missing_matrix_follows_the_size(size: tuple[int, int], matrix: Matrix) -> None:
    assert default_matrix(*size) == matrix
    frame = av.VideoFrame(*size, "yuv420p")
    assert Converter().from_av(frame).matrix == matrix
    assert not Converter().from_av(frame).full_range


@pytest.mark.parametrize("fmt", ["yuv420p", "rgb24"])
@pytest.mark.parametrize(
    ("source", "target"),
    [((640, 360), (128, 128)), ((360, 640), (96, 128)), ((101, 75), (64, 64)), ((64, 64), (127, 93))],
)
def test_scaling_keeps_proportions_and_cuts_both_sides_alike(
    source: tuple[int, int], target: tuple[int, int], fmt: str
) -> None:
    # A disc in the middle: it stays round and in the middle.
    width, height = source
    y, x = np.mgrid[0:height, 0:width]
    radius = min(source) * 0.3
    disc = np.hypot(x + 0.5 - width / 2, y + 0.5 - height / 2) < radius
    picture = Picture.from_rgb(np.where(disc[..., None], 255, 0).repeat(3, -1).astype(np.uint8))
    converter = Converter()
    if fmt == "yuv420p":
        picture = converter.to_yuv420p(picture, "bt601", True)
    result = converter.scale(picture, *target)
    assert (result.width, result.height, result.format) == (*target, fmt)
    seen = result.rgb()[..., 1] > 127
    rows, columns = np.nonzero(seen)
    scale = max(target[0] / width, target[1] / height)
    assert abs(columns.mean() + 0.5 - target[0] / 2) <= 1.5 * max(1, scale)
    assert abs(rows.mean() + 0.5 - target[1] / 2) <= 1.5 * max(1, scale)
    for extent in (np.ptp(columns), np.ptp(rows)):
        assert abs(extent + 1 - 2 * radius * scale) <= 3


@pytest.mark.parametrize("fmt", ["yuv420p", "rgb24"])
def test_without_crop_the_whole_picture_lies_between_black_bars(fmt: str) -> None:
    picture = Picture.from_rgb(np.full((90, 160, 3), 255, np.uint8))
    if fmt == "yuv420p":
        picture = Converter().to_yuv420p(picture, "bt709", False)
    result = Converter().scale(picture, 128, 128, crop=False)
    rgb = result.rgb().astype(int)
    assert (result.width, result.height) == (128, 128)
    assert rgb[64].min() >= 250
    assert rgb[:26].max() <= 3
    assert rgb[-26:].max() <= 3
    assert 70 <= (rgb[:, 64, 0] > 127).sum() <= 74


def test_scaling_keeps_colour_tags_and_values() -> None:
    picture = AvPicture(solid(180, 90, 160, 320, 180), "bt2020", True)
    result = Converter().scale(picture, 96, 96)
    assert (result.matrix, result.full_range) == ("bt2020", True)
    assert list(middle(result)) == [180, 90, 160]


def test_cutting_alone_copies_nothing() -> None:
    picture = numpy_yuv(1, 160, 96)
    result = Converter().scale(picture, 96, 96)
    assert np.shares_memory(result.planes[0], picture.planes[0])
    np.testing.assert_array_equal(result.planes[0], picture.planes[0][:, 32:128])
    np.testing.assert_array_equal(result.planes[1], picture.planes[1][:, 16:64])


def test_plain_arrays_and_frames_scale_alike() -> None:
    picture = AvPicture(pattern_frame(2, 160, 96))
    plain = Picture("yuv420p", 160, 96, [np.pad(plane, ((0, 0), (0, 7)))[:, :-7] for plane in picture.planes])
    first, second = Converter().scale(picture, 72, 50), Converter().scale(plain, 72, 50)
    for a, b in zip(first.planes, second.planes, strict=True):
        np.testing.assert_array_equal(a, b)


def test_pictures_that_go_in_stay_as_they_are() -> None:
    source = numpy_yuv(3, 160, 96)
    before = [plane.copy() for plane in source.planes]
    converter = Converter()
    converter.scale(source, 64, 64)
    converter.scale(source, 64, 64, crop=False)
    converter.to_yuv420p(source, "bt2020", True)
    rotate(source, 90)
    for plane, copy in zip(source.planes, before, strict=True):
        np.testing.assert_array_equal(plane, copy)


def test_planes_of_a_decoded_frame_cannot_be_written_to() -> None:
    picture = AvPicture(solid(1, 2, 3))
    with pytest.raises(ValueError, match="read-only"):
        picture.planes[0][0, 0] = 9
    # An RGB copy is the reader's own.
    picture.rgb()[0, 0] = 9


@pytest.mark.parametrize("degrees", [0, 90, 180, 270, -90, 450])
def test_turning_is_counter_clockwise(degrees: int) -> None:
    rgb = gradient(0, 40, 24)
    turned = rotate(Picture.from_rgb(rgb), degrees)
    np.testing.assert_array_equal(turned.rgb(), np.rot90(rgb, degrees // 90 % 4))
    yuv = numpy_yuv(4, 41, 23)
    result = rotate(yuv, degrees)
    assert (result.width, result.height) == ((23, 41) if degrees % 180 else (41, 23))
    np.testing.assert_array_equal(result.planes[2], np.rot90(yuv.planes[2], degrees // 90 % 4))
    assert result.planes[0].flags.c_contiguous


def test_other_angles_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 90"):
        rotate(Picture.from_rgb(gradient(0, 8, 8)), 45)


def test_frames_of_other_formats_make_no_picture() -> None:
    with pytest.raises(ValueError, match="nv12"):
        AvPicture(av.VideoFrame(16, 16, "nv12"))


def test_rgb_frames_share_their_memory_both_ways() -> None:
    rgb = gradient(1, 48, 32)
    frame = to_av(Picture.from_rgb(rgb))
    assert frame.planes[0].buffer_ptr == rgb.ctypes.data
    np.testing.assert_array_equal(AvPicture(frame).rgb(), rgb)

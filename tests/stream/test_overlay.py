import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.frames import Picture, plane_shapes
from stream.overlay import Notice, OverlayPainter


def grey(width: int, height: int, luma: int = 200) -> Picture:
    shapes = plane_shapes("yuv420p", width, height)
    levels = (luma, 128, 128)
    return Picture(
        "yuv420p", width, height, [np.full(s, v, np.uint8) for s, v in zip(shapes, levels, strict=True)]
    )


def test_a_notice_dims_the_last_picture_and_writes_on_it():
    base = grey(320, 240)
    painted = OverlayPainter().paint(base, 0, 0, Notice("Loading", 0.5))
    luma = painted.planes[0]
    assert (painted.width, painted.height) == (320, 240)
    assert luma[:60].max() < 100
    assert luma[100:140].max() == 235
    assert base.planes[0].min() == 200


def test_the_bar_grows_with_progress():
    painter = OverlayPainter()

    def blue(progress: float) -> int:
        return int((painter.paint(None, 320, 240, Notice("x", progress)).planes[1] > 150).sum())

    assert blue(0.0) == 0
    assert 0 < blue(0.3) < blue(0.9)


def test_other_words_replace_those_before():
    painter = OverlayPainter()
    first = painter.paint(None, 320, 240, Notice("Starting", 0.0)).planes[0]
    second = painter.paint(None, 320, 240, Notice("Ready in a moment", 0.0)).planes[0]
    third = painter.paint(None, 320, 240, Notice("Starting", 0.0)).planes[0]
    assert not np.array_equal(first, second)
    assert np.array_equal(first, third)


@given(
    st.integers(16, 200), st.integers(16, 200), st.text(max_size=200), st.none() | st.floats(allow_nan=False)
)
def test_any_size_words_and_progress_can_be_painted(width, height, message, progress):
    painted = OverlayPainter().paint(grey(width, height), 0, 0, Notice(message, progress))
    assert (painted.width, painted.height) == (width, height)


@pytest.mark.parametrize("full_range", [False, True])
def test_matrix_and_range_are_kept(full_range):
    base = grey(64, 64)
    base.full_range, base.matrix = full_range, "bt709"
    painted = OverlayPainter().paint(base, 0, 0, Notice("x"))
    assert (painted.matrix, painted.full_range) == ("bt709", full_range)

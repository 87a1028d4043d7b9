"""`Canny` against a slow, plain implementation of kornia's algorithm in double precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from workflows.nodes.canny import Canny, connected, on_ridge  # noqa: E402

Array = npt.NDArray[np.float64]
AROUND = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))


def correlate(image: Array, kernel: Array, mode: Any) -> Array:
    radius = len(kernel) // 2
    padded = np.pad(image, radius, mode=mode)
    result = np.zeros_like(image)
    for row, column in np.ndindex(kernel.shape):
        result += kernel[row, column] * padded[row : row + image.shape[0], column : column + image.shape[1]]
    return result


def plain_canny(rgb: Array, low: float, high: float) -> Array:
    line = np.exp(-(np.arange(-2, 3) ** 2) / 2)
    grey = correlate(rgb @ np.array([0.299, 0.587, 0.114]), np.outer(line, line) / line.sum() ** 2, "reflect")
    sobel = np.array([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    gx, gy = correlate(grey, sobel, "edge"), correlate(grey, sobel.T, "edge")
    magnitude = np.pad(np.sqrt(gx**2 + gy**2 + 1e-6), 1, constant_values=1e-3)
    height, width = grey.shape
    state = np.zeros((height + 2, width + 2))
    for row, column in np.ndindex(height, width):
        direction = round(math.atan2(gy[row, column], gx[row, column]) / (math.pi / 4)) % 8
        here = magnitude[row + 1, column + 1]
        wins = True
        for towards in (direction, (direction + 4) % 8):
            step = AROUND[towards]
            other = magnitude[row + 1 + step[0], column + 1 + step[1]]
            wins &= here > other or (towards in (0, 2) and here == other)
        state[row + 1, column + 1] = int(wins) * (int(here > low) + int(here > high))
    pending = [tuple(place) for place in np.argwhere(state == 2)]
    while pending:
        row, column = pending.pop()
        for down, right in AROUND:
            if state[row + down, column + right] == 1:
                state[row + down, column + right] = 2
                pending.append((row + down, column + right))
    return np.asarray(state[1:-1, 1:-1] == 2, np.float64)


def scene(seed: int, height: int = 45, width: int = 52) -> Any:
    """Soft shapes with some noise, as a camera gives them."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / random.uniform(3, 9) + y / random.uniform(-9, 9) + channel) for channel in range(3)]
    disc = np.hypot(x - width * random.random(), y - height * random.random()) < 14
    rgb = np.stack(waves, -1) * 0.2 + 0.3 + disc[..., None] * random.uniform(0.4, 0.6, 3)
    return (rgb + random.normal(0, 0.02, rgb.shape)).clip(0, 1).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("low", "high"), [(0.4, 0.8), (0.1, 0.3), (0.05, 0.9), (0.6, 0.6)])
def test_edges_are_those_of_the_plain_algorithm(seed: int, low: float, high: float) -> None:
    rgb = scene(seed)
    (result,) = Canny().detect_edge(torch.from_numpy(rgb)[None], low, high)
    expected = plain_canny(rgb.astype(np.float64), low, high)
    assert result.shape == (1, *rgb.shape)
    assert expected.sum() > 20
    assert np.abs(result.numpy()[0, ..., 0] - expected).sum() <= 1
    assert np.array_equal(result[..., 0], result[..., 2])


@pytest.mark.parametrize(
    ("gradient", "equal_place", "kept"),
    [
        ((1.0, 0.0), (1, 2), True),
        ((1.0, 0.0), (1, 0), False),
        ((0.0, 1.0), (2, 1), True),
        ((0.0, 1.0), (0, 1), False),
        ((1.0, 1.0), (2, 2), False),
        ((1.0, 1.0), (0, 0), False),
        ((1.0, -1.0), (0, 2), False),
        ((-1.0, 1.0), (2, 0), False),
        ((1.0, 1.0), (1, 2), True),
    ],
)
def test_of_two_equal_neighbours_the_left_or_upper_is_kept_and_on_a_diagonal_none(
    gradient: tuple[float, float], equal_place: tuple[int, int], kept: bool
) -> None:
    magnitude = torch.zeros(3, 3)
    magnitude[1, 1] = magnitude[equal_place] = 1
    gx, gy = (torch.tensor([part]) for part in gradient)
    assert on_ridge(magnitude.view(-1), torch.tensor([4]), 3, gx, gy).tolist() == [kept]


def test_each_picture_of_a_batch_is_taken_by_itself() -> None:
    pictures = torch.from_numpy(np.stack([scene(seed) for seed in range(3)]))
    (together,) = Canny().detect_edge(pictures, 0.2, 0.5)
    alone = [Canny().detect_edge(picture[None], 0.2, 0.5)[0] for picture in pictures]
    assert torch.equal(together, torch.cat(alone))


def test_a_hard_step_gives_one_line_and_a_flat_picture_none() -> None:
    step = torch.zeros(1, 40, 40, 3)
    step[:, :, 20:] = 1
    (result,) = Canny().detect_edge(step, 0.4, 0.8)
    assert result[0, :, :, 0].sum(1).tolist() == [1.0] * 40
    assert set(result[0, :, :, 0].argmax(1).tolist()) == {19}
    assert Canny().detect_edge(torch.full((1, 30, 30, 3), 0.7), 0.01, 0.01)[0].sum() == 0


def test_thresholds_in_the_wrong_order_count_as_equal() -> None:
    rgb = torch.from_numpy(scene(1))[None]
    assert torch.equal(Canny().detect_edge(rgb, 0.9, 0.3)[0], Canny().detect_edge(rgb, 0.3, 0.3)[0])


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_pictures_and_alpha_are_understood(channels: int) -> None:
    rgb = torch.from_numpy(scene(2))[None]
    grey = rgb @ torch.tensor([0.299, 0.587, 0.114])
    image = grey[..., None] if channels == 1 else torch.cat((rgb, torch.rand(rgb.shape[:3])[..., None]), -1)
    assert torch.equal(Canny().detect_edge(image, 0.2, 0.5)[0], Canny().detect_edge(rgb, 0.2, 0.5)[0])


def test_a_picture_that_is_too_small_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="a picture of 2 x 9 is too small for Canny"):
        Canny().detect_edge(torch.rand(1, 9, 2, 3), 0.4, 0.8)


def flood(mask: npt.NDArray[np.int64]) -> set[tuple[int, int]]:
    """Places above 0 that hang together with a 2."""
    pending = [(int(row), int(column)) for row, column in np.argwhere(mask == 2)]
    found = set(pending)
    while pending:
        row, column = pending.pop()
        for down, right in AROUND:
            place = (row + down, column + right)
            if mask[place] and place not in found:
                found.add(place)
                pending.append(place)
    return found


def hang_together(mask: npt.NDArray[np.int64]) -> set[tuple[int, int]]:
    flat = torch.from_numpy(mask).view(-1)
    places = flat.nonzero().view(-1)
    kept = places[connected(places, flat[places] == 2, flat.numel(), mask.shape[1])]
    return {divmod(int(place), mask.shape[1]) for place in kept}


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.6), st.integers(3, 14), st.integers(3, 14))
def test_hanging_together_is_what_a_flood_reaches(seed: int, density: float, height: int, width: int) -> None:
    random = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.int64)
    inner = mask[1:-1, 1:-1]
    inner[:] = (random.random(inner.shape) < density) * (1 + (random.random(inner.shape) < 0.1))
    assert hang_together(mask) == flood(mask)


def test_a_very_long_line_is_followed_to_its_end() -> None:
    mask = np.zeros((203, 203), np.int64)
    mask[1:-1:2, 1:-1] = 1
    mask[2:-1:4, -2] = 1
    mask[4:-1:4, 1] = 1
    mask[-2, -2] = 2
    assert hang_together(mask) == flood(mask)
    assert len(flood(mask)) == mask.astype(bool).sum() > 20_000

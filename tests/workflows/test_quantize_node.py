from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("PIL")

from workflows.nodes.quantize import DITHERS, ImageQuantize, bayer_matrix  # noqa: E402


def gradient(height: int = 48, width: int = 64) -> Any:
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([x / width, y / height, (x + y) / (width + height)], -1).astype(np.float32)
    return torch.from_numpy(rgb)[None]


def colors_of(picture: Any) -> set[tuple[int, ...]]:
    pixels = (picture * 255).round().to(torch.int64).reshape(-1, 3)
    return {tuple(pixel) for pixel in pixels.unique(dim=0).tolist()}


@pytest.mark.parametrize("dither", DITHERS)
@pytest.mark.parametrize("colors", [1, 2, 7, 32, 256])
def test_no_more_colours_than_asked_for(dither: str, colors: int) -> None:
    (result,) = ImageQuantize().quantize(gradient(), colors, dither)
    assert result.shape == (1, 48, 64, 3)
    assert result.dtype == torch.float32
    assert 1 <= len(colors_of(result)) <= colors


def test_few_colours_are_kept_as_they_are() -> None:
    palette = torch.tensor([[0, 0, 0], [255, 0, 0], [10, 200, 30], [255, 255, 255]]) / 255
    image = palette[torch.from_numpy(np.random.default_rng(1).integers(0, 4, (1, 20, 20)))]
    (result,) = ImageQuantize().quantize(image, 4, "none")
    assert torch.allclose(result, image, atol=1e-6)


def test_dithering_keeps_the_mean_where_plain_quantising_does_not() -> None:
    """A flat area between two palette colours: only dithered does it have the right brightness from afar."""
    image = gradient()
    blocks = torch.nn.functional.avg_pool2d
    error = {}
    for dither in ("none", "floyd-steinberg", "bayer-4"):
        (result,) = ImageQuantize().quantize(image, 6, dither)
        error[dither] = (blocks((result - image).permute(0, 3, 1, 2), 8).abs()).mean().item()
    assert error["floyd-steinberg"] < error["none"] * 0.75
    assert error["bayer-4"] < error["none"]


def test_each_picture_of_a_batch_has_its_own_palette() -> None:
    red, blue = torch.zeros(1, 8, 8, 3), torch.zeros(1, 8, 8, 3)
    red[..., 0], blue[..., 2] = 1, 1
    (result,) = ImageQuantize().quantize(torch.cat((red, blue)), 1, "none")
    assert torch.equal(result, torch.cat((red, blue)))


def test_values_outside_the_range_do_not_wrap() -> None:
    (result,) = ImageQuantize().quantize(torch.full((1, 4, 4, 3), 1.2), 2, "none")
    assert torch.allclose(result, torch.ones(1, 4, 4, 3))


def test_the_bayer_matrix_is_the_classic_one_around_zero() -> None:
    ranks = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]])
    assert np.allclose(bayer_matrix(4), (ranks - 7.5) / 16)
    assert np.allclose(bayer_matrix(2), np.array([[-1.5, 0.5], [1.5, -0.5]]) / 4)
    for order in (8, 16):
        matrix = bayer_matrix(order)
        assert matrix.shape == (order, order)
        assert len(np.unique(matrix)) == order * order
        assert abs(matrix.mean()) < 1e-6

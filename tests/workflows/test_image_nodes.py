"""The image nodes against slow, plain implementations of what ComfyUI's nodes of the same name compute."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch")

from workflows.nodes.image import ImageBlend, ImageBlur, ImageInvert, ImageScale, ImageSharpen  # noqa: E402
from workflows.nodes.resize import crop_to_aspect  # noqa: E402

Array = npt.NDArray[np.float64]


def picture(height: int, width: int, seed: int = 0, batch: int = 1, channels: int = 3) -> Any:
    return torch.from_numpy(np.random.default_rng(seed).random((batch, height, width, channels), np.float32))


def as_array(tensor: Any) -> Array:
    return np.asarray(tensor.numpy(), np.float64)


def test_invert() -> None:
    image = picture(5, 6)
    (result,) = ImageInvert().invert(image)
    assert np.allclose(as_array(result), 1 - as_array(image))


def gauss_kernel(radius: int, sigma: float) -> Array:
    axis = np.linspace(-1, 1, 2 * radius + 1)
    kernel = np.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * sigma**2))
    return np.asarray(kernel / kernel.sum())


def convolve(image: Array, kernel: Array) -> Array:
    radius = len(kernel) // 2
    padded = np.pad(image, ((0, 0), (radius, radius), (radius, radius), (0, 0)), mode="reflect")
    height, width = image.shape[1:3]
    result = np.zeros_like(image)
    for row, column in np.ndindex(kernel.shape):
        result += kernel[row, column] * padded[:, row : row + height, column : column + width]
    return result


@pytest.mark.parametrize(("radius", "sigma"), [(1, 1.0), (2, 0.3), (5, 10.0), (11, 0.7)])
@pytest.mark.parametrize("shape", [(12, 17), (40, 23)])
def test_blur_is_a_gaussian_with_sigma_in_units_of_the_radius(
    radius: int, sigma: float, shape: tuple[int, int]
) -> None:
    image = picture(*shape, batch=2)
    (result,) = ImageBlur().blur(image, radius, sigma)
    assert result.shape == image.shape
    assert np.abs(as_array(result) - convolve(as_array(image), gauss_kernel(radius, sigma))).max() < 1e-6


@pytest.mark.parametrize(
    ("radius", "sigma", "alpha"), [(1, 1.0, 1.0), (3, 0.5, 0.2), (2, 2.0, 5.0), (1, 1.0, 0.0)]
)
def test_sharpen_subtracts_a_blur_and_clamps(radius: int, sigma: float, alpha: float) -> None:
    image = picture(15, 14)
    kernel = -10 * alpha * gauss_kernel(radius, sigma)
    kernel[radius, radius] += 1 - kernel.sum()
    (result,) = ImageSharpen().sharpen(image, radius, sigma, alpha)
    assert np.abs(as_array(result) - convolve(as_array(image), kernel).clip(0, 1)).max() < 2e-5


def test_a_radius_that_does_not_fit_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="a radius of 9 is too large for a picture of 20 x 8"):
        ImageBlur().blur(picture(8, 20), 9, 1.0)


def soft_light(a: float, b: float) -> float:
    if b <= 0.5:
        return a - (1 - 2 * b) * a * (1 - a)
    curve = ((16 * a - 12) * a + 4) * a if a <= 0.25 else math.sqrt(a)
    return a + (2 * b - 1) * (curve - a)


MODES = {
    "normal": lambda a, b: b,
    "multiply": lambda a, b: a * b,
    "screen": lambda a, b: 1 - (1 - a) * (1 - b),
    "overlay": lambda a, b: 2 * a * b if a <= 0.5 else 1 - 2 * (1 - a) * (1 - b),
    "soft_light": soft_light,
    "difference": lambda a, b: a - b,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0])
def test_blend_modes(mode: str, factor: float) -> None:
    one, two = picture(6, 7, 1), picture(6, 7, 2)
    before = one.clone(), two.clone()
    (result,) = ImageBlend().blend_images(one, two, factor, mode)
    blended = np.vectorize(MODES[mode])(as_array(one), as_array(two))
    expected = (as_array(one) * (1 - factor) + blended * factor).clip(0, 1)
    assert np.abs(as_array(result) - expected).max() < 1e-6
    assert torch.equal(one, before[0])
    assert torch.equal(two, before[1])


def test_every_declared_blend_mode_is_tested() -> None:
    assert set(MODES) == set(ImageBlend.MODES) == set(ImageBlend.INPUT_TYPES()["required"]["blend_mode"][0])


def test_blend_scales_the_second_picture_and_drops_or_adds_alpha() -> None:
    one, two = picture(8, 12, 1), torch.full((1, 4, 4, 4), 0.25)
    (result,) = ImageBlend().blend_images(one, two, 1.0, "normal")
    assert result.shape == one.shape
    assert np.allclose(as_array(result), 0.25)
    (result,) = ImageBlend().blend_images(two, one, 1.0, "normal")
    assert result.shape == two.shape
    assert np.allclose(as_array(result)[..., 3], 1)


def weights_linear(position: float, size: int) -> dict[int, float]:
    position = max(position, 0.0)
    low = int(position)
    return _sum([(min(low, size - 1), 1 - (position - low)), (min(low + 1, size - 1), position - low)])


def weights_cubic(position: float, size: int) -> dict[int, float]:
    low, fraction = math.floor(position), position - math.floor(position)
    a = -0.75

    def near(x: float) -> float:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: float) -> float:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    taps = [far(fraction + 1), near(fraction), near(1 - fraction), far(2 - fraction)]
    return _sum([(min(max(low - 1 + index, 0), size - 1), tap) for index, tap in enumerate(taps)])


def _sum(pairs: list[tuple[int, float]]) -> dict[int, float]:
    weights: dict[int, float] = {}
    for index, weight in pairs:
        weights[index] = weights.get(index, 0.0) + weight
    return weights


def matrix(old: int, new: int, method: str) -> Array:
    """Row i: the weights of the old pixels in new pixel i."""
    result = np.zeros((new, old))
    for index in range(new):
        centre = (index + 0.5) * old / new - 0.5
        if method == "nearest-exact":
            weights = {min(int((index + 0.5) * old / new), old - 1): 1.0}
        elif method == "area":
            first, last = index * old // new, -(-(index + 1) * old // new)
            weights = dict.fromkeys(range(first, last), 1 / (last - first))
        else:
            weights = (weights_linear if method == "bilinear" else weights_cubic)(centre, old)
        for source, weight in weights.items():
            result[index, source] = weight
    return result


@pytest.mark.parametrize("method", ["nearest-exact", "bilinear", "area", "bicubic"])
@pytest.mark.parametrize("size", [(10, 6), (23, 31), (9, 9)])
def test_scaling_without_crop(method: str, size: tuple[int, int]) -> None:
    image = picture(13, 11, batch=2)
    width, height = size
    (result,) = ImageScale().upscale(image, method, width, height, "disabled")
    rows, columns = matrix(13, height, method), matrix(11, width, method)
    expected = np.einsum("yh,xw,bhwc->byxc", rows, columns, as_array(image))
    assert result.shape == (2, height, width, 3)
    assert np.abs(as_array(result) - expected).max() < 1e-5


def test_lanczos_goes_through_eight_bits_like_pillow() -> None:
    from PIL import Image

    image = picture(20, 30)
    (result,) = ImageScale().upscale(image, "lanczos", 15, 10, "disabled")
    pixels = (image[0].numpy() * 255).astype(np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((15, 10), Image.Resampling.LANCZOS))
    assert np.abs(as_array(result)[0] * 255 - expected).max() < 1e-3
    (grey,) = ImageScale().upscale(picture(20, 30, channels=1), "lanczos", 15, 10, "disabled")
    assert grey.shape == (1, 10, 15, 1)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ((20, 10), (10, 10), (slice(0, 10), slice(5, 15))),
        ((10, 20), (10, 10), (slice(5, 15), slice(0, 10))),
        ((20, 10), (40, 20), (slice(0, 10), slice(0, 20))),
        ((21, 10), (10, 10), (slice(0, 10), slice(6, 15))),
    ],
)
def test_centre_crop(old: tuple[int, int], new: tuple[int, int], expected: tuple[slice, slice]) -> None:
    image = picture(old[1], old[0])
    assert torch.equal(crop_to_aspect(image, *new), image[:, expected[0], expected[1]])


def test_a_side_of_zero_follows_from_the_other() -> None:
    image = picture(30, 40)
    assert ImageScale().upscale(image, "area", 0, 15, "disabled")[0].shape == (1, 15, 20, 3)
    assert ImageScale().upscale(image, "area", 20, 0, "center")[0].shape == (1, 15, 20, 3)
    assert ImageScale().upscale(image, "area", 0, 0, "disabled")[0] is image
    assert ImageScale().upscale(picture(3, 400), "bilinear", 4, 0, "disabled")[0].shape == (1, 1, 4, 3)


def test_a_size_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="over the limit of"):
        ImageScale().upscale(picture(4, 4), "bilinear", 16384, 16384, "disabled")

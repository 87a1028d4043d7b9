"""Crop, pad, composite, batch and size nodes against slow, plain versions of what ComfyUI's compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from stream.frames import VideoFrame  # noqa: E402
from workflows.nodes.batch import GetImageSize, ImageFromBatch, RepeatImageBatch  # noqa: E402
from workflows.nodes.canvas import EmptyImage, ImageCompositeMasked, ImageCrop, ImagePadForOutpaint  # noqa: E402
from workflows.nodes.image import ImageScale, ImageScaleBy  # noqa: E402
from workflows.processor import WorkflowProcessor  # noqa: E402

Array = npt.NDArray[np.float64]


def picture(height: int, width: int, seed: int = 0, batch: int = 1, channels: int = 3) -> Any:
    return torch.from_numpy(np.random.default_rng(seed).random((batch, height, width, channels), np.float32))


def as_array(tensor: Any) -> Array:
    return np.asarray(tensor.numpy(), np.float64)


# -- sizes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "size"), [(0.5, (10, 6)), (2.0, (40, 26)), (1.31, (26, 17)), (0.01, (1, 1))]
)
def test_scaling_by_a_factor_is_scaling_to_the_rounded_size(factor: float, size: tuple[int, int]) -> None:
    image = picture(20, 13)
    for method in ("bilinear", "area", "lanczos"):
        (result,) = ImageScaleBy().upscale(image, method, factor)
        (expected,) = ImageScale().upscale(image, method, size[1], size[0], "disabled")
        assert result.shape[1:3] == size
        assert torch.equal(result, expected)


def test_scaling_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="12000 x 12000 is over the limit"):
        ImageScaleBy().upscale(torch.zeros(1, 1500, 1500, 1), "bilinear", 8.0)


def test_the_size_of_a_picture() -> None:
    assert GetImageSize().get_size(picture(5, 9, batch=2)) == (9, 5, 2)
    assert GetImageSize.RETURN_NAMES == ("width", "height", "batch_size")


async def test_a_size_goes_into_the_inputs_of_another_node() -> None:
    workflow = {
        "1": {"class_type": "LoadTensor", "inputs": {}},
        "2": {"class_type": "GetImageSize", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "EmptyImage", "inputs": {"width": ["2", 1], "height": ["2", 0], "batch_size": 1}},
        "4": {"class_type": "SaveTensor", "inputs": {"images": ["3", 0]}},
    }
    workflow["3"]["inputs"]["color"] = 0xFF0000
    processor = WorkflowProcessor(workflow)
    await processor.load_model()
    result = await processor.process_video_async(VideoFrame.from_tensor(picture(4, 10)))
    assert isinstance(result, VideoFrame)
    assert result.tensor.shape == (1, 10, 4, 3)
    assert result.tensor[0, 0, 0].tolist() == [1, 0, 0]


# -- crop ----------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 12), st.integers(0, 12))
def test_a_crop_ends_where_the_picture_ends(width: int, height: int, x: int, y: int) -> None:
    image = picture(7, 9, batch=2)
    (result,) = ImageCrop().crop(image, width, height, x, y)
    x, y = min(x, 8), min(y, 6)
    rows = [
        [image[:, row, column] for column in range(x, min(x + width, 9))]
        for row in range(y, min(y + height, 7))
    ]
    assert torch.equal(result, torch.stack([torch.stack(row, 1) for row in rows], 1))


# -- pad -----------------------------------------------------------------------------------------------


def plain_padding(
    image: Array, left: int, top: int, right: int, bottom: int, feathering: int
) -> tuple[Array, Array]:
    batch, height, width, channels = image.shape
    padded = np.full((batch, height + top + bottom, width + left + right, channels), 0.5)
    padded[:, top : top + height, left : left + width] = image
    mask = np.ones(padded.shape[1:3])
    for row in range(height):
        for column in range(width):
            distances = [height, width]
            distances += [row] if top else []
            distances += [height - row] if bottom else []
            distances += [column] if left else []
            distances += [width - column] if right else []
            value = 0.0
            if feathering > 0 and feathering * 2 < min(height, width) and min(distances) < feathering:
                value = ((feathering - min(distances)) / feathering) ** 2
            mask[top + row, left + column] = value
    return padded, mask


@pytest.mark.parametrize(
    "edges", [(0, 0, 0, 0), (8, 0, 0, 0), (0, 8, 0, 16), (3, 5, 7, 2), (0, 0, 16, 0), (1, 1, 1, 1)]
)
@pytest.mark.parametrize("feathering", [0, 1, 4, 8, 9, 40])
def test_padding_is_grey_and_its_mask_fades_out_inside(
    edges: tuple[int, int, int, int], feathering: int
) -> None:
    image = picture(18, 25, batch=2)
    padded, mask = ImagePadForOutpaint().expand_image(image, *edges, feathering)
    expected_picture, expected_mask = plain_padding(as_array(image), *edges, feathering)
    assert np.array_equal(as_array(padded), expected_picture.astype(np.float32))
    assert mask.shape == (1, *expected_mask.shape)
    assert np.abs(as_array(mask)[0] - expected_mask).max() < 1e-6


def test_padding_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="over the limit of"):
        ImagePadForOutpaint().expand_image(picture(4, 4), 16384, 16384, 0, 0, 0)


# -- composite -----------------------------------------------------------------------------------------


def plain_composite(destination: Array, source: Array, x: int, y: int, mask: Array | None) -> Array:
    """Pixel by pixel; ``mask`` is as large as the source."""
    result = destination.copy()
    for index in range(len(destination)):
        for row in range(source.shape[1]):
            for column in range(source.shape[2]):
                if y + row < destination.shape[1] and x + column < destination.shape[2]:
                    weight = 1.0 if mask is None else mask[index % len(mask), row, column]
                    there = result[index, y + row, x + column]
                    result[index, y + row, x + column] = (
                        weight * source[index % len(source), row, column] + (1 - weight) * there
                    )
    return result


@pytest.mark.parametrize("place", [(0, 0), (3, 2), (9, 1), (2, 6), (11, 7), (40, 40)])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("batches", [(1, 1, 1), (3, 1, 1), (3, 2, 2), (2, 5, 4)])
def test_a_source_is_put_onto_the_destination(
    place: tuple[int, int], masked: bool, batches: tuple[int, int, int]
) -> None:
    destination, source = picture(8, 11, 1, batches[0]), picture(5, 6, 2, batches[1])
    mask = picture(5, 6, 3, batches[2])[..., 0] if masked else None
    before = destination.clone()
    (result,) = ImageCompositeMasked().composite(destination, source, *place, False, mask)
    expected = plain_composite(
        as_array(destination), as_array(source), *place, None if mask is None else as_array(mask)
    )
    assert np.abs(as_array(result) - expected).max() < 1e-6
    assert torch.equal(destination, before)


def test_the_mask_is_scaled_to_the_source_and_the_source_to_the_destination() -> None:
    destination, source = picture(8, 12, 1), picture(4, 6, 2)
    mask = torch.zeros(2, 2)
    mask[:, 1] = 1
    (result,) = ImageCompositeMasked().composite(destination, source, 0, 0, True, mask)
    (scaled,) = ImageScale().upscale(source, "bilinear", 12, 8, "disabled")
    # Half-pixel centres: the two columns of the mask reach from pixel 0 to 3 and from 9 to the end.
    assert torch.equal(result[:, :, :3], destination[:, :, :3])
    assert torch.allclose(result[:, :, 9:], scaled[:, :, 9:])
    between = (result - destination)[:, :, 3:9] / (scaled - destination)[:, :, 3:9]
    expected = torch.tensor([1, 3, 5, 7, 9, 11]) / 12
    assert torch.allclose(between.median(dim=1).values[0, :, 0], expected, atol=1e-4)


def test_a_composite_keeps_the_channels_of_the_destination() -> None:
    (result,) = ImageCompositeMasked().composite(picture(4, 4), picture(4, 4, channels=4), 0, 0, False)
    assert result.shape[-1] == 3
    (result,) = ImageCompositeMasked().composite(picture(4, 4, channels=4), picture(2, 2), 0, 0, False)
    assert result[0, :2, :2, 3].min() == 1


# -- batches -------------------------------------------------------------------------------------------


def test_an_empty_image_has_one_colour() -> None:
    (image,) = EmptyImage().generate(4, 3, 2, 0x33CC00)
    assert image.shape == (2, 3, 4, 3)
    assert image.dtype == torch.float32
    assert torch.allclose(image, torch.tensor([0.2, 0.8, 0.0]).expand(2, 3, 4, 3))
    image[0, 0, 0, 0] = 1  # memory of its own for every pixel
    assert image[1].max() < 0.9
    with pytest.raises(ValueError, match="4096 times 16384 x 16384 is over the limit"):
        EmptyImage().generate(16384, 16384, 4096)


def test_a_batch_is_repeated_as_a_whole() -> None:
    image = picture(2, 3, batch=2)
    (result,) = RepeatImageBatch().repeat(image, 3)
    assert torch.equal(result, torch.cat([image, image, image]))
    with pytest.raises(ValueError, match="over the limit"):
        RepeatImageBatch().repeat(torch.zeros(1, 512, 512, 3), 4096)


@pytest.mark.parametrize(
    ("first", "length", "expected"),
    [(0, 1, [0]), (1, 2, [1, 2]), (3, 9, [3, 4]), (90, 1, [4]), (4, 4096, [4])],
)
def test_pictures_are_taken_out_of_a_batch(first: int, length: int, expected: list[int]) -> None:
    image = picture(2, 3, batch=5)
    (result,) = ImageFromBatch().frombatch(image, first, length)
    assert torch.equal(result, image[expected])

"""The mask nodes against slow, plain implementations of what ComfyUI's compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from stream.frames import VideoFrame  # noqa: E402
from workflows.nodes.mask import GrowMask, ImageToMask, InvertMask, MaskToImage, ThresholdMask  # noqa: E402
from workflows.processor import WorkflowProcessor  # noqa: E402

Array = npt.NDArray[np.float32]


def masks(height: int, width: int, seed: int = 0, batch: int = 1) -> Any:
    return torch.from_numpy(np.random.default_rng(seed).random((batch, height, width), np.float32))


def test_a_channel_becomes_a_mask() -> None:
    image = torch.arange(2 * 2 * 3 * 4).reshape(2, 2, 3, 4).float()
    for index, channel in enumerate(("red", "green", "blue", "alpha")):
        assert torch.equal(ImageToMask().image_to_mask(image, channel)[0], image[..., index])
    with pytest.raises(ValueError, match="3 channels, so there is no alpha one"):
        ImageToMask().image_to_mask(image[..., :3], "alpha")


def test_a_mask_becomes_a_grey_picture_whatever_its_axes() -> None:
    mask = masks(4, 5, batch=2)
    for given_mask in (mask, mask[:, None], mask[0]):
        (image,) = MaskToImage().mask_to_image(given_mask)
        expected = given_mask.reshape(-1, 4, 5)
        assert image.shape == (len(expected), 4, 5, 3)
        assert all(torch.equal(image[..., channel], expected) for channel in range(3))


def test_inversion_and_threshold() -> None:
    mask = torch.tensor([[[0.0, 0.3, 0.5, 1.0]]])
    assert torch.allclose(InvertMask().invert(mask)[0], torch.tensor([[[1.0, 0.7, 0.5, 0.0]]]))
    assert ThresholdMask().image_to_mask(mask, 0.3)[0].tolist() == [[[0, 0, 1, 1]]]
    assert ThresholdMask().image_to_mask(mask, 0.3)[0].dtype == torch.float32


def plain_growth(mask: Array, steps: int, tapered: bool) -> Array:
    """One step after the other, pixel by pixel."""
    best = max if steps > 0 else min
    neighbours = [(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)]
    if not tapered:
        neighbours += [(1, 1), (1, -1), (-1, 1), (-1, -1)]
    height, width = mask.shape
    for _ in range(abs(steps)):
        grown = mask.copy()
        for row, column in np.ndindex(height, width):
            places = [(row + down, column + right) for down, right in neighbours]
            grown[row, column] = best(mask[y, x] for y, x in places if 0 <= y < height and 0 <= x < width)
        mask = grown
    return mask


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    steps=st.integers(-12, 12),
    tapered=st.booleans(),
    seed=st.integers(0, 99),
)
def test_growing_is_so_many_steps_to_the_neighbours(
    height: int, width: int, steps: int, tapered: bool, seed: int
) -> None:
    mask = masks(height, width, seed, batch=2)
    before = mask.clone()
    (result,) = GrowMask().expand_mask(mask, steps, tapered)
    expected = np.stack([plain_growth(plane, steps, tapered) for plane in mask.numpy()])
    assert np.array_equal(result.numpy(), expected)
    assert torch.equal(mask, before)


def test_growing_without_end_fills_the_mask_and_takes_no_time() -> None:
    mask = torch.zeros(1, 40, 60)
    mask[0, 0, 0] = 1
    for tapered in (True, False):
        assert GrowMask().expand_mask(mask, 16384, tapered)[0].min() == 1
        assert GrowMask().expand_mask(mask, -16384, tapered)[0].max() == 0
    (corner,) = GrowMask().expand_mask(mask, 12, True)
    assert corner.sum() == sum(range(1, 14))
    assert GrowMask().expand_mask(mask, 12, False)[0].sum() == 13 * 13


async def test_a_mask_made_into_a_picture_can_go_out() -> None:
    workflow = {
        "1": {"class_type": "LoadTensor", "inputs": {}},
        "2": {"class_type": "ImageToMask", "inputs": {"image": ["1", 0], "channel": "green"}},
        "3": {"class_type": "MaskToImage", "inputs": {"mask": ["2", 0]}},
        "4": {"class_type": "SaveTensor", "inputs": {"images": ["3", 0]}},
    }
    processor = WorkflowProcessor(workflow)
    await processor.load_model()
    image = torch.zeros(1, 4, 4, 3)
    image[..., 1] = 0.6
    result = await processor.process_video_async(VideoFrame.from_tensor(image))
    assert isinstance(result, VideoFrame)
    assert result.picture.rgb()[0, 0].tolist() == [153, 153, 153]

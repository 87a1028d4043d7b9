"""Pictures made of tensors where the tensors are; run on the CPU here."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stream.codecs.convert import Converter
from stream.errors import InvalidInput, ProcessorError
from stream.frames import Picture
from stream.tensors import device_of, picture_from, tensor_from

CPU = torch.device("cpu")


@given(width=st.integers(2, 33), height=st.integers(2, 33), seed=st.integers(0, 1000))
def test_a_picture_of_flat_blocks_comes_back_as_it_was(width, height, seed):
    """Two by two pixels of one colour lose nothing to 4:2:0, whatever the size."""
    blocks = np.random.default_rng(seed).integers(20, 236, ((height + 1) // 2, (width + 1) // 2, 3))
    rgb = blocks.repeat(2, 0).repeat(2, 1)[:height, :width].astype(np.uint8)
    tensor = torch.from_numpy(rgb).to(torch.float32)[None] / 255
    picture = picture_from(tensor)
    assert (picture.format, picture.width, picture.height) == ("yuv420p", width, height)
    assert (picture.matrix, picture.full_range) == ("bt709", False)
    back = tensor_from(picture, CPU) * 255
    assert (back[0].numpy() - rgb).max() <= 4
    assert (rgb - back[0].numpy()).max() <= 4


def test_it_makes_the_picture_that_swscale_makes():
    ramp = np.stack(np.meshgrid(np.arange(64) * 4, np.arange(48) * 5), -1)
    rgb = np.concatenate((ramp, 255 - ramp[..., :1]), -1).astype(np.uint8)
    ours = picture_from(torch.from_numpy(rgb))
    theirs = Converter().to_yuv420p(Picture.from_rgb(rgb), "bt709", False)
    for mine, other in zip(ours.planes, theirs.planes, strict=True):
        assert np.abs(mine.astype(int) - other).mean() < 2


def test_what_lies_outside_is_clamped_and_grey_and_alpha_are_taken():
    tensor = torch.tensor([[[-1.0], [2.0]], [[float("nan")], [1.0]]])
    luma = picture_from(tensor).planes[0]
    assert luma.tolist() == [[16, 235], [16, 235]]
    assert picture_from(torch.ones(1, 4, 4, 4)).planes[0].min() == 235
    with pytest.raises(ProcessorError, match="expected a picture"):
        picture_from(torch.zeros(4, 4))


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(InvalidInput, match=name) as raised:
        device_of(name)
    assert raised.value.field == "device"

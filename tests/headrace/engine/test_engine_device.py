from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.device import choose_device, poisons, wanted_format
from stream.errors import EngineError, ProcessorError
from stream.frames import Picture, checked_image, plane_shapes, rgb_from_tensor
from stream.tensors import packed_bytes, tensor_from, three_channels, write_rgb

CPU = torch.device("cpu")
sides = st.integers(1, 40)


def picture(format_: Any, width: int, height: int, matrix: Any, full: bool, padding: int) -> Picture:
    noise = np.random.default_rng(width * 100 + height)
    planes = [
        noise.integers(0, 256, (rows, row + padding), np.uint8)[:, :row]
        for rows, row in plane_shapes(format_, width, height)
    ]
    return Picture(format_, width, height, planes, matrix, full)


@given(
    format_=st.sampled_from(["yuv420p", "rgb24"]),
    width=sides,
    height=sides,
    matrix=st.sampled_from(["bt601", "bt709", "bt2020"]),
    full=st.booleans(),
    padding=st.sampled_from([0, 7]),
)
def test_a_tensor_has_the_colours_of_its_picture(
    format_: Any, width: int, height: int, matrix: Any, full: bool, padding: int
) -> None:
    source = picture(format_, width, height, matrix, full, padding)
    tensor = tensor_from(source, CPU)
    assert tensor.shape == (1, height, width, 3)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    expected = source.rgb().astype(np.float32) / 255
    # Picture.rgb rounds to whole steps.
    assert np.abs(tensor[0].numpy() - expected).max() <= 0.51 / 255


@pytest.mark.parametrize("format_", ["yuv420p", "rgb24"])
def test_a_tensor_shares_no_memory_with_its_picture(format_: Any) -> None:
    source = picture(format_, 8, 8, "bt601", False, 0)
    tensor = tensor_from(source, CPU)
    before = tensor.clone()
    for plane in source.planes:
        plane[:] = 0
    assert torch.equal(tensor, before)


def test_changes_of_a_tensor_are_counted_even_in_inference_mode() -> None:
    with torch.inference_mode():
        tensor = tensor_from(picture("rgb24", 8, 8, "bt601", False, 0), CPU)
        version = tensor._version
        tensor[0, 0, 0, 0] = 1
        assert tensor._version > version


def written(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    image = checked_image(tensor)
    out = np.zeros((*image.shape[:2], 3), np.uint8)
    write_rgb(image, out)
    # What comes back from a device in one piece is the same.
    packed = packed_bytes(three_channels(image)).numpy()
    assert np.array_equal(packed[:-1], out.ravel())
    return out


@given(width=sides, height=sides, channels=st.sampled_from([1, 3, 4]), seed=st.integers(0, 99))
def test_bytes_are_those_of_the_exact_way(width: int, height: int, channels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn((1, height, width, channels), generator=generator)
    assert np.array_equal(written(tensor), rgb_from_tensor(tensor))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8])
def test_every_kind_of_picture_is_written(dtype: torch.dtype) -> None:
    values = torch.arange(256).reshape(1, 16, 16, 1)
    tensor = values.to(dtype) if dtype == torch.uint8 else (values / 255).to(dtype)
    assert np.array_equal(written(tensor), rgb_from_tensor(tensor))


def test_channels_first_memory_is_written_in_order() -> None:
    tensor = torch.rand(1, 3, 6, 10).permute(0, 2, 3, 1)
    assert not tensor.is_contiguous()
    assert np.array_equal(written(tensor), rgb_from_tensor(tensor.contiguous()))


def test_values_beyond_the_range_are_clamped_and_the_tensor_is_left_alone() -> None:
    tensor = torch.tensor([-1.0, 1.01, float("inf"), float("-inf"), 1e30, -1e30]).reshape(1, 1, 2, 3)
    before = tensor.clone()
    assert written(tensor).ravel().tolist() == [0, 255, 255, 0, 255, 0]
    assert torch.equal(tensor, before)


def test_a_nan_is_named_with_its_share() -> None:
    tensor = torch.zeros(1, 10, 10, 3)
    tensor[0, 0, 0, 0] = float("nan")
    with pytest.raises(ProcessorError, match=r"0\.33% are NaN"):
        written(tensor)
    assert packed_bytes(tensor[0])[-1] == 1
    assert packed_bytes(torch.zeros(10, 10, 3))[-1] == 0


def test_a_tensor_with_gradients_is_written() -> None:
    assert written(torch.ones(1, 2, 2, 3, requires_grad=True)).min() == 255


@pytest.mark.parametrize("wanted", ["cuda:99", "meta", "nonsense", "mps"])
def test_a_device_that_is_not_there_is_named(wanted: str) -> None:
    with pytest.raises(EngineError, match=wanted):
        choose_device(wanted)


def test_the_cpu_wants_rgb_and_cuda_yuv() -> None:
    assert choose_device("cpu") == CPU
    assert wanted_format(CPU) == "rgb24"
    assert wanted_format(torch.device("cuda", 0)) == "yuv420p"


def test_only_errors_that_break_the_device_count_as_such() -> None:
    assert poisons(torch.AcceleratorError("CUDA error: device-side assert triggered"))
    assert poisons(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not poisons(torch.OutOfMemoryError("CUDA out of memory"))
    assert not poisons(RuntimeError("shapes do not match"))
    assert not poisons(ValueError("CUDA error"))


@pytest.mark.gpu
@pytest.mark.parametrize("format_", ["yuv420p", "rgb24"])
def test_conversions_on_the_device_agree_with_those_on_the_cpu(format_: Any) -> None:
    device = choose_device("cuda")
    source = picture(format_, 33, 17, "bt709", False, 0)
    tensor = tensor_from(source, device)
    assert tensor.device == device
    assert (tensor.cpu() - tensor_from(source, CPU)).abs().max() < 1e-5
    assert np.abs(written(tensor).astype(int) - written(tensor.cpu())).max() <= 1

"""Pixels between bytes and tensors, on the device where the model is.

The formulas are those of ITU-T H.273 with chroma taken from the nearest sample, as in `Picture.rgb`.
Imports torch when called, not when imported.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from stream.errors import InvalidInput, ProcessorError
from stream.frames import LUMA_COEFFICIENTS, Matrix, Picture, Plane, checked_image, plane_shapes

if TYPE_CHECKING:
    import torch


def device_of(name: str) -> torch.device:
    """The device of that name: ``cpu``, ``cuda`` or ``cuda:N``; `InvalidInput` where it is not there."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise InvalidInput(f"device must be cpu, cuda or cuda:N, not {name!r}", field="device") from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= count):
        raise InvalidInput(f"device {name!r} is not there: torch sees {count} CUDA devices", field="device")
    return device


def tensor_from(picture: Picture, device: torch.device) -> torch.Tensor:
    """float32, 1 x H x W x 3, RGB, 0..1, contiguous, on ``device``; never shares memory with ``picture``."""
    import torch

    # An inference tensor would not count its changes, and `same` rests on the count.
    with torch.inference_mode(False), torch.no_grad():
        planes = [_upload(plane, device) for plane in picture.planes]
        if picture.format == "rgb24":
            rgb = planes[0].view(1, picture.height, picture.width, 3)
            return rgb.to(torch.float32).mul_(1 / 255)
        y, u, v = planes
        return rgb_from_yuv420(y, u, v, picture.matrix, picture.full_range)


def _upload(plane: Plane, device: torch.device) -> torch.Tensor:
    import torch

    if not plane.flags.writeable or not plane.flags.c_contiguous:
        plane = np.array(plane, order="C")
    tensor = torch.from_numpy(plane)
    if device.type == "cpu":
        return tensor
    here, copies = torch.cuda.current_stream(device), _copies(device, "in")
    with torch.cuda.stream(copies):
        # The allocator of pinned memory keeps the block until the copy has run.
        found = tensor.pin_memory().to(device, non_blocking=True)
    here.wait_stream(copies)
    found.record_stream(here)
    return found


@cache
def _copies(device: torch.device, way: Literal["in", "out"]) -> torch.cuda.Stream:
    """So that no copy waits for the work of other frames, nor their work for it."""
    import torch

    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def rgb_from_yuv420(
    y: torch.Tensor, u: torch.Tensor, v: torch.Tensor, matrix: Matrix, full_range: bool
) -> torch.Tensor:
    """RGB from uint8 planes H x W and twice ceil(H/2) x ceil(W/2), on their device.

    float32, 1 x H x W x 3, clamped to 0..1.
    """
    import torch

    kr, kb = LUMA_COEFFICIENTS[matrix]
    kg = 1 - kr - kb
    offset, luma, chroma = (0, 255, 255) if full_range else (16, 219, 224)
    rows, columns = y.shape
    light = y.to(torch.float32).sub_(offset).mul_(1 / luma)
    cb, cr = (
        plane.to(torch.float32)
        .sub_(128)
        .mul_(1 / chroma)
        .repeat_interleave(2, 0)
        .repeat_interleave(2, 1)[:rows, :columns]
        for plane in (u, v)
    )
    rgb = torch.empty((1, rows, columns, 3), dtype=torch.float32, device=y.device)
    torch.add(light, cr, alpha=2 * (1 - kr), out=rgb[0, :, :, 0])
    torch.add(light, cb, alpha=2 * (1 - kb), out=rgb[0, :, :, 2])
    green = light.sub_(cb, alpha=2 * (1 - kb) * kb / kg).sub_(cr, alpha=2 * (1 - kr) * kr / kg)
    rgb[0, :, :, 1] = green
    return rgb.clamp_(0, 1)


def write_rgb(image: torch.Tensor, out: npt.NDArray[np.uint8]) -> None:
    """Write a picture as bytes into ``out`` (uint8, H x W x 3), clamped and rounded.

    ``image`` comes from `stream.frames.checked_image`: H x W x C of floats in 0..1 or of uint8, on any
    device. Raises `ProcessorError` when it contains a NaN.
    """

    image = three_channels(image)
    if image.device.type != "cpu":
        _write_back(image, out)
        return
    if image.is_floating_point():
        scaled, bad = _to_255(image)
        if bool(bad):
            _refuse_nan(scaled)
        np.copyto(out, scaled.numpy(), casting="unsafe")
        return
    np.copyto(out, image.numpy())


def three_channels(image: torch.Tensor) -> torch.Tensor:
    """H x W x 3 of a picture of 1, 3 or 4 channels: grey three times, or without what lies beside colour."""
    return image.expand(-1, -1, 3) if image.shape[-1] == 1 else image[..., :3]


def _write_back(image: torch.Tensor, out: npt.NDArray[np.uint8]) -> None:
    """From a device, with one copy and one wait for it."""
    import torch

    packed = packed_bytes(image)
    pinned = torch.empty(packed.shape, dtype=torch.uint8, pin_memory=True)
    copies = _copies(image.device, "out")
    copies.wait_stream(torch.cuda.current_stream(image.device))
    with torch.cuda.stream(copies):
        pinned.copy_(packed, non_blocking=True)
    packed.record_stream(copies)
    copies.synchronize()
    data = pinned.numpy()
    if data[-1]:
        _refuse_nan(image)
    np.copyto(out, data[:-1].reshape(out.shape))


def packed_bytes(image: torch.Tensor) -> torch.Tensor:
    """The bytes of a picture H x W x 3 in a row, and behind them whether one of its values was a NaN: so the
    device need not be waited for to know that."""
    import torch

    if not image.is_floating_point():
        return torch.cat((image.reshape(-1), torch.zeros(1, dtype=torch.uint8, device=image.device)))
    scaled, bad = _to_255(image)
    return torch.cat((scaled.to(torch.uint8).reshape(-1), bad.to(torch.uint8).view(1)))


def _to_255(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Floats of 0..1 as those whose whole parts are the bytes, and whether one of them was a NaN."""
    import torch

    scaled = image.to(torch.float32).mul(255)
    # One sum is a tenth of the cost of looking at every value, and NaN wherever one of them is.
    bad = torch.isnan(scaled.sum())
    return scaled.add_(0.5).clamp_(0, 255), bad


def _refuse_nan(values: torch.Tensor) -> None:
    import torch

    share = float(torch.isnan(values).to(torch.float32).mean())
    if share > 0:
        raise ProcessorError(f"the processor returned a picture of which {share:.2%} are NaN")


def picture_from(tensor: torch.Tensor, matrix: Matrix = "bt709") -> Picture:
    """YUV 4:2:0 of limited range, converted where the tensor is and then brought to the CPU: half of the
    bytes of RGB. Clamped; chroma is the mean of its pixels. `ProcessorError` for what is no picture.
    """
    import torch

    image = three_channels(checked_image(tensor))
    with torch.no_grad():
        scale = 1.0 if image.is_floating_point() else 1 / 255
        rgb = image.permute(2, 0, 1).to(torch.float32).mul(scale).nan_to_num(0.0, 1.0, 0.0).clamp_(0, 1)
        red, green, blue = rgb
        kr, kb = LUMA_COEFFICIENTS[matrix]
        light = red * kr + green * (1 - kr - kb) + blue * kb
        colour = torch.stack(((blue - light) / (2 * (1 - kb)), (red - light) / (2 * (1 - kr))))
        pool: Any = torch.nn.functional.avg_pool2d
        colour = pool(colour[None], 2, ceil_mode=True, count_include_pad=False)[0]
        packed = torch.cat(((light * 219 + 16).flatten(), (colour * 224 + 128).flatten()))
        data: npt.NDArray[np.uint8] = packed.add_(0.5).clamp_(0, 255).to(torch.uint8).cpu().numpy()
    height, width = int(image.shape[0]), int(image.shape[1])
    planes = []
    for rows, columns in plane_shapes("yuv420p", width, height):
        planes.append(data[: rows * columns].reshape(rows, columns))
        data = data[rows * columns :]
    return Picture("yuv420p", width, height, planes, matrix)

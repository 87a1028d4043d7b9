"""The device that an engine works on. Imports torch when called, not when imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stream.errors import EngineError, ProcessorError
from stream.frames import PixelFormat

if TYPE_CHECKING:
    import torch


def choose_device(wanted: str) -> torch.device:
    """The device that a setting means: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises `EngineError` where it is not to be had; only ``auto`` falls back to the CPU.
    """
    import torch

    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise EngineError(f"device {wanted!r} is none that torch knows: {error}", field="device") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise EngineError(
                f"device {wanted!r} is not there: torch sees {count} CUDA devices", field="device"
            )
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise EngineError(f"device {wanted!r}: only cpu and cuda are supported", field="device")
    return device


def device_name(device: torch.device) -> str:
    """What a person calls the device."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def wanted_format(device: torch.device) -> PixelFormat:
    """What should cross the link: converting is cheap on CUDA, and in swscale, but not in torch on a CPU."""
    return "yuv420p" if device.type == "cuda" else "rgb24"


def poisons(error: BaseException) -> bool:
    """Whether nothing on the device can work after this error, so that only a new process helps."""
    import torch

    if isinstance(error, ProcessorError) and error.__cause__ is not None:
        return poisons(error.__cause__)  # a node's, told with the node
    if isinstance(error, torch.OutOfMemoryError):
        return False
    accelerator_error = getattr(torch, "AcceleratorError", None)
    if accelerator_error is not None and isinstance(error, accelerator_error):
        return True
    return isinstance(error, RuntimeError) and "CUDA error" in str(error)

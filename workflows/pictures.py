"""Pictures from one workflow to the next, and out of the last one as frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stream.errors import ProcessorError
from stream.frames import VideoFrame
from stream.processor import VideoResult
from workflows.protocol import is_blocker

if TYPE_CHECKING:
    import torch


def one_batch(video: Any, label: str) -> Any:
    """What one workflow gave, as the IMAGE that the next one gets."""
    if not isinstance(video, list):
        return video
    import torch

    if not video or any(_shape(item)[1:] != _shape(video[0])[1:] or len(_shape(item)) != 4 for item in video):
        raise ProcessorError(f"{label}: pictures of different sizes cannot go into the next workflow")
    return video[0] if len(video) == 1 else torch.cat(video)


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))


def as_frames(frame: VideoFrame, video: Any, label: str) -> VideoResult:
    """The pictures as frames of the time of ``frame``; None where an execution blocker is in their place."""
    tensors = video if isinstance(video, list) else [video]
    tensors = [tensor for tensor in tensors if not is_blocker(tensor)]
    frames: list[VideoFrame] = []
    for tensor in tensors:
        _check_pictures(tensor, label)
        count = tensor.shape[0]
        pictures = (tensor,) if count == 1 else tensor.split(1)
        frames += (frame.replace_tensor(picture) for picture in pictures)
    return frames[0] if len(frames) == 1 else frames or None


def _check_pictures(tensor: torch.Tensor, label: str) -> None:
    """Raise `ProcessorError` in words unless this is B x H x W x C of floats or bytes, C of 1, 3 or 4."""
    import torch

    expected = f"{label}: expected pictures of B x H x W x 3 (IMAGE)"
    if not isinstance(tensor, torch.Tensor):
        raise ProcessorError(f"{expected}, got {'nothing' if tensor is None else type(tensor).__name__}")
    shape = " x ".join(map(str, tensor.shape))
    if tensor.ndim in (2, 3):
        raise ProcessorError(
            f"{expected}, got {shape}, which is a mask or lacks an axis; turn a mask into a picture"
        )
    if tensor.ndim != 4 or tensor.shape[-1] not in (1, 3, 4) or 0 in tensor.shape:
        raise ProcessorError(f"{expected}, got {shape or 'a single number'}")
    if not tensor.is_floating_point() and tensor.dtype != torch.uint8:
        raise ProcessorError(f"{expected} as floats in 0..1, got {tensor.dtype}")

"""Between frames of ours and PyAV's, for processors that work with those."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import av
import numpy as np
import numpy.typing as npt

from stream.codecs.convert import Converter
from stream.frames import AudioFrame, Picture, VideoFrame, channels_of

if TYPE_CHECKING:
    import torch

SCALES: dict[str, tuple[float, type[np.generic]]] = {
    "s16": (32768.0, np.int16),
    "s32": (2147483648.0, np.int32),
    "flt": (1.0, np.float32),
}
"""Full scale and type of the formats that a tensor can be made into."""


def picture_of(frame: av.VideoFrame) -> Picture:
    """The pixels of any format that swscale knows."""
    if frame.format.name in ("yuv420p", "yuvj420p"):
        return Converter().from_av(frame)
    return Picture.from_rgb(frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False))


def video_to_av(frame: VideoFrame, tensor: torch.Tensor | None) -> av.VideoFrame:
    """See `VideoFrame.to_av_frame`."""
    rgb = frame.picture.rgb() if tensor is None else _bytes_of(tensor)
    made = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
    made.pts, made.time_base = frame.timestamp, frame.time_base
    return made


def _bytes_of(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    if tensor.ndim == 4 and tensor.shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim != 3 or tensor.shape[-1] not in (1, 3, 4):
        raise ValueError(f"expected H x W x 1, 3 or 4 (or one such), not {tuple(tensor.shape)}")
    values: npt.NDArray[Any] = tensor.detach().cpu().numpy()
    if values.dtype.kind == "f":
        scale = 255.0 if values.size and values.max() <= 1 else 1.0
        values = np.nan_to_num(values.astype(np.float32)) * scale + 0.5
    rgb = values.clip(0, 255).astype(np.uint8)
    return rgb.repeat(3, axis=2) if rgb.shape[2] == 1 else rgb[..., :3]


def samples_from_tensor(tensor: torch.Tensor, format: str, layout: str) -> npt.NDArray[Any]:  # noqa: A002
    """See `AudioFrame.from_tensor`: channels x n for planar formats, 1 x (n * channels) for packed ones."""
    known = SCALES.get(format.removesuffix("p"))
    if known is None:
        raise ValueError(f"format must be one of {', '.join(SCALES)}, or planar with a p, not {format!r}")
    values: npt.NDArray[np.float32] = tensor.detach().cpu().numpy().astype(np.float32)
    values = values.reshape(1, -1) if values.ndim == 1 else values
    if values.ndim != 2 or values.shape[0] != channels_of(layout):
        raise ValueError(f"{layout} takes a tensor of {channels_of(layout)} x n, not {tuple(tensor.shape)}")
    full, kind = known
    if full > 1:
        # In double precision: a float cannot tell 2147483647 from one more.
        values = (values.astype(np.float64) * full).clip(-full, full - 1)
    samples = values.astype(kind)
    return samples if format.endswith("p") else np.ascontiguousarray(samples.T).reshape(1, -1)


def audio_to_av(frame: AudioFrame) -> av.AudioFrame:
    """See `AudioFrame.to_av_frame`."""
    samples, channels = frame.samples, frame.channels
    if frame.format.endswith("p"):
        samples = samples.reshape(channels, -1) if samples.ndim == 1 else samples
    elif samples.ndim == 2 and samples.shape[0] == channels > 1:
        samples = samples.T.reshape(1, -1)
    else:
        samples = samples.reshape(1, -1)
    if samples.size % channels or (frame.format.endswith("p") and samples.shape[0] != channels):
        raise ValueError(f"{frame.format} {frame.layout} cannot be made of samples of {frame.samples.shape}")
    made = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format=frame.format, layout=frame.layout)
    made.sample_rate, made.pts, made.time_base = frame.rate, frame.timestamp, frame.time_base
    return made

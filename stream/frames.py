"""Frames as they travel between media and models: pixels, samples, times.

A `Picture` is pixels and what is needed to read them (format, matrix, range). A `VideoFrame` is a picture
or a tensor with its timestamp and its `Timeline`; whichever of the two is missing is made when it is first
asked for, and kept. An `AudioFrame` is samples with their layout.

Imports the standard library, numpy and (only when a tensor is asked for) torch, because the engine's host
loads this module in foreign interpreters.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from stream.errors import ProcessorError
from stream.pictures import LUMA_COEFFICIENTS, Matrix, Picture, PixelFormat, Plane, plane_shapes
from stream.samples import channels_of

if TYPE_CHECKING:
    import torch

__all__ = [
    "DEFAULT_HEIGHT",
    "DEFAULT_WIDTH",
    "LUMA_COEFFICIENTS",
    "AudioFrame",
    "InputFrame",
    "Matrix",
    "Picture",
    "PixelFormat",
    "Plane",
    "SideData",
    "Timeline",
    "VideoFrame",
    "channels_of",
    "checked_image",
    "picture_from_tensor",
    "plane_shapes",
    "rgb_from_tensor",
    "tensor_from_picture",
]

DEFAULT_WIDTH = 512
DEFAULT_HEIGHT = 512


@dataclass(slots=True)
class Timeline:
    """When each stage was done with a frame, in nanoseconds of `time.monotonic_ns`; 0 where it was not.

    ``received`` is the arrival of the frame's last byte, ``taken`` the moment at which the processor began
    with it, ``sent`` the hand-over of its last byte to the sink.
    """

    received: int = 0
    decoded: int = 0
    taken: int = 0
    processed: int = 0
    encoded: int = 0
    sent: int = 0

    STAGES: ClassVar[tuple[str, ...]] = ("received", "decoded", "taken", "processed", "encoded", "sent")

    def stamp(self, stage: str) -> None:
        """Write the present moment into ``stage``."""
        setattr(self, stage, time.monotonic_ns())

    def copy(self) -> Timeline:
        return Timeline(self.received, self.decoded, self.taken, self.processed, self.encoded, self.sent)


class SideData:
    """Free place for a processor's own marks on a frame; travels with it."""

    skipped: bool = True
    input: Any = None


class InputFrame:
    """What both kinds of frames have in common: a moment, and a place for marks."""

    timestamp: int
    time_base: Fraction
    log_timestamps: dict[str, float]
    side_data: SideData
    timeline: Timeline

    @property
    def time(self) -> float:
        """Presentation time in seconds."""
        # A Fraction's own arithmetic takes ten times as long, for the same number.
        return self.timestamp * self.time_base.numerator / self.time_base.denominator

    @classmethod
    def from_av_video(cls, tensor: torch.Tensor, timestamp: int, time_base: Fraction) -> VideoFrame:
        """A frame with the pixels of ``tensor``."""
        return VideoFrame(tensor, timestamp, time_base)

    @classmethod
    def from_av_audio(cls, av_frame: Any) -> AudioFrame:
        """A frame with the samples of an `av.AudioFrame`; `ValueError` when it has no timestamp."""
        return AudioFrame(av_frame)


class VideoFrame(InputFrame):
    """One video frame: pixels as `picture`, as `tensor`, or both.

    ``tensor`` is float32, 1 x H x W x 3, RGB, 0..1, contiguous, on the CPU unless the processor asked for
    another device. It is made from the picture when first read. ``timestamp`` counts ``time_base`` units
    and is the source's own.
    """

    is_notice = False
    """Whether it shows a notice in place of a result, as which it then does not count."""

    def __init__(
        self,
        tensor: torch.Tensor | None,
        timestamp: int,
        time_base: Fraction,
        log_timestamps: dict[str, float] | None = None,
        *,
        picture: Picture | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        if tensor is None and picture is None:
            raise ValueError("a VideoFrame needs a tensor or a picture")
        self._tensor = tensor
        self._picture = picture
        self.timestamp = timestamp
        self.time_base = time_base
        self.log_timestamps: dict[str, float] = {} if log_timestamps is None else log_timestamps
        self.timeline = Timeline() if timeline is None else timeline
        self.side_data = SideData()
        self.device: torch.device | None = None
        """Where `tensor` is made, by way of `stream.tensors`; None: on the CPU by the shortest way."""

    @classmethod
    def from_picture(
        cls, picture: Picture, timestamp: int, time_base: Fraction, timeline: Timeline | None = None
    ) -> VideoFrame:
        return cls(None, timestamp, time_base, picture=picture, timeline=timeline)

    @classmethod
    def from_tensor(cls, tensor: torch.Tensor, timestamp: int = 0) -> VideoFrame:
        """A frame from a tensor alone; its time base is one second."""
        return cls(tensor, timestamp, Fraction(1, 1))

    @property
    def tensor(self) -> torch.Tensor:
        if self._tensor is None:
            assert self._picture is not None
            if self.device is None:
                self._tensor = tensor_from_picture(self._picture)
            else:
                from stream.tensors import tensor_from

                self._tensor = tensor_from(self._picture, self.device)
        return self._tensor

    @tensor.setter
    def tensor(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self._picture = None

    @property
    def picture(self) -> Picture:
        """The pixels as bytes; made from the tensor (clamped to 0..1) when the frame has only that."""
        if self._picture is None:
            assert self._tensor is not None
            self._picture = picture_from_tensor(self._tensor)
        return self._picture

    def use_picture(self, picture: Picture) -> None:
        """Give the frame other pixels; a tensor that was made of those before is forgotten."""
        self._picture, self._tensor = picture, None

    @property
    def has_tensor(self) -> bool:
        return self._tensor is not None

    @property
    def has_picture(self) -> bool:
        return self._picture is not None

    @property
    def width(self) -> int:
        return self._picture.width if self._picture is not None else int(self.tensor.shape[-2])

    @property
    def height(self) -> int:
        return self._picture.height if self._picture is not None else int(self.tensor.shape[-3])

    def replace_tensor(self, new_tensor: torch.Tensor) -> VideoFrame:
        """The same moment with other pixels; times are copied, ``side_data`` is shared."""
        return self._with(VideoFrame(new_tensor, self.timestamp, self.time_base, dict(self.log_timestamps)))

    def replace_picture(self, picture: Picture) -> VideoFrame:
        """The same moment with other pixels; times are copied, ``side_data`` is shared."""
        return self._with(
            VideoFrame(None, self.timestamp, self.time_base, dict(self.log_timestamps), picture=picture)
        )

    @classmethod
    def from_av_frame_with_timing(cls, av_frame: Any, original_frame: VideoFrame) -> VideoFrame:
        """The moment of ``original_frame`` with the pixels of an `av.VideoFrame`."""
        from stream.av_frames import picture_of

        return original_frame.replace_picture(picture_of(av_frame))

    def to_av_frame(self, tensor: torch.Tensor | None = None) -> Any:
        """``tensor`` (or the frame's own pixels) as an `av.VideoFrame` of ``rgb24`` with the frame's times.

        H x W x C or 1 x H x W x C, C of 1, 3 or 4 (alpha is dropped); floats of 0..1, or of 0..255 when one
        is over 1; clamped. Raises `ValueError` for other shapes.
        """
        from stream.av_frames import video_to_av

        return video_to_av(self, tensor)

    def _with(self, other: VideoFrame) -> VideoFrame:
        other.timeline = self.timeline.copy()
        other.side_data = self.side_data
        other.device = self.device
        return other


def tensor_from_picture(picture: Picture) -> torch.Tensor:
    """float32, 1 x H x W x 3, RGB, 0..1, on the CPU."""
    import torch

    # Not torch's arithmetic: its threads wait for each other, tens of milliseconds on a busy machine.
    values = np.multiply(picture.rgb(), np.float32(1 / 255), dtype=np.float32, order="C")
    return torch.from_numpy(values).unsqueeze(0)


def picture_from_tensor(tensor: torch.Tensor) -> Picture:
    """RGB bytes of a 1 x H x W x C or H x W x C tensor, C of 1, 3 or 4 (alpha is dropped).

    Floats are read as 0..1 and clamped, uint8 is taken as it is. Anything else raises `ProcessorError`
    with the shape and type that were found.
    """
    return Picture.from_rgb(rgb_from_tensor(tensor))


def checked_image(tensor: object) -> torch.Tensor:
    """H x W x C view of what a processor returned; raises `ProcessorError` for what is not a picture."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise ProcessorError(f"expected a tensor, got {type(tensor).__name__}")
    found = f"{tuple(tensor.shape)} {tensor.dtype}"
    image = tensor[0] if tensor.ndim == 4 and tensor.shape[0] == 1 else tensor
    if image.ndim != 3 or image.shape[-1] not in (1, 3, 4) or 0 in image.shape:
        raise ProcessorError(f"expected a picture of 1 x H x W x 3 (or 1 or 4 channels), got {found}")
    if not image.is_floating_point() and image.dtype != torch.uint8:
        raise ProcessorError(f"expected floats in 0..1 or uint8, got {found}")
    return image.detach()


def rgb_from_tensor(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    """uint8 H x W x 3 of what a processor returned; the checks of `picture_from_tensor`."""
    import torch

    image = checked_image(tensor)
    image = image.expand(-1, -1, 3) if image.shape[-1] == 1 else image[..., :3]
    if not image.is_floating_point():
        return np.ascontiguousarray(image.cpu().numpy(), dtype=np.uint8)
    if image.device.type != "cpu":
        # NaN survives clamp and its conversion to bytes is undefined.
        image = image.to(torch.float32).nan_to_num(0.0, 1.0, 0.0).clamp(0, 1).mul(255).add(0.5)
        return np.ascontiguousarray(image.to(torch.uint8).cpu().numpy())
    # As for `tensor_from_picture`.
    scaled = np.multiply(image.to(torch.float32).numpy(), np.float32(255), order="C")
    if not np.isfinite(scaled.sum()):
        scaled = np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0)
    scaled += np.float32(0.5)
    rgb: npt.NDArray[np.uint8] = scaled.clip(0, 255, out=scaled).astype(np.uint8)
    return rgb


class AudioFrame(InputFrame):
    """Samples of one stretch of sound.

    ``samples``: planar formats (``fltp``, ``s16p``) channels x n, packed formats 1 x (n * channels).
    ``timestamp`` counts ``time_base`` units. An `av.AudioFrame` alone brings all of it with it; `ValueError`
    when it has no timestamp.
    """

    def __init__(
        self,
        samples: npt.NDArray[Any],
        timestamp: int | None = None,
        time_base: Fraction | None = None,
        *,
        rate: int = 48_000,
        format: str = "fltp",  # noqa: A002
        layout: str = "stereo",
        log_timestamps: dict[str, float] | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        if timestamp is None:
            av_frame: Any = samples
            samples, timestamp, time_base = av_frame.to_ndarray(), av_frame.pts, av_frame.time_base
            rate, format, layout = av_frame.sample_rate, av_frame.format.name, av_frame.layout.name  # noqa: A001
            if timestamp is None:
                raise ValueError("the frame of sound has no timestamp")
        self.samples = samples
        self.timestamp = timestamp
        self.time_base = Fraction(1, rate) if time_base is None else time_base
        self.rate = rate
        self.format = format
        self.layout = layout
        self.log_timestamps: dict[str, float] = {} if log_timestamps is None else log_timestamps
        self.timeline = Timeline() if timeline is None else timeline
        self.side_data = SideData()

    @property
    def channels(self) -> int:
        return channels_of(self.layout)

    @property
    def nb_samples(self) -> int:
        """Samples of one channel."""
        if self.format.endswith("p"):
            return int(self.samples.shape[-1])
        return int(self.samples.size // self.channels)

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return self.nb_samples / self.rate

    def replace_samples(self, samples: npt.NDArray[Any]) -> AudioFrame:
        """The same moment with other samples in the same format and layout."""
        return self.from_audio_frame(samples)

    def from_audio_frame(
        self, samples: npt.NDArray[Any] | None = None, timestamp: int | None = None
    ) -> AudioFrame:
        """A copy with other samples, another timestamp, or both."""
        other = AudioFrame(
            self.samples if samples is None else samples,
            self.timestamp if timestamp is None else timestamp,
            self.time_base,
            rate=self.rate,
            format=self.format,
            layout=self.layout,
            log_timestamps=dict(self.log_timestamps),
        )
        other.timeline = self.timeline.copy()
        other.side_data = self.side_data
        return other

    @classmethod
    def from_tensor(
        cls,
        tensor: torch.Tensor,
        format: str = "s16",  # noqa: A002
        layout: str = "mono",
        sample_rate: int = 48_000,
        timestamp: int = 0,
        time_base: Fraction | None = None,
    ) -> AudioFrame:
        """Sound from a tensor of channels x n, floats of -1..1; ``time_base`` is one sample unless given.

        Raises `ValueError` when the channels are not those of ``layout``, or for a format other than s16,
        s32, flt and their planar forms.
        """
        from stream.av_frames import samples_from_tensor

        samples = samples_from_tensor(tensor, format, layout)
        return cls(samples, timestamp, time_base, rate=sample_rate, format=format, layout=layout)

    def to_av_frame(self) -> Any:
        """The sound as an `av.AudioFrame` with its times; `ValueError` when samples and layout disagree."""
        from stream.av_frames import audio_to_av

        return audio_to_av(self)

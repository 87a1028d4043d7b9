"""Frames on the engine's side: what a processor is given and what it may give back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.engine import slots
from stream.errors import ProcessorError
from stream.frames import AudioFrame, Picture, VideoFrame, checked_image
from stream.results import sound_of
from stream.tensors import tensor_from, write_rgb

if TYPE_CHECKING:
    import torch

Put = Callable[[int], slots.Slot]


class SlotFrame(VideoFrame):
    """A frame whose picture still lies in the worker's memory.

    A tensor is made straight from there. The bytes are copied only when a processor asks for the picture
    itself, or keeps the frame beyond its call (`retire`).
    """

    def __init__(self, picture: Picture, timestamp: int, time_base: Fraction, device: torch.device) -> None:
        super().__init__(None, timestamp, time_base, picture=picture)
        self._device = device
        self._borrowed = True
        self._made: torch.Tensor | None = None
        self._version = 0
        self.read = False
        """Whether anybody has looked at its pixels."""

    @property
    def tensor(self) -> torch.Tensor:
        if self._tensor is None:
            assert self._picture is not None
            self.read = True
            self._tensor = self._made = tensor_from(self._picture, self._device)
            self._version = self._made._version
        return self._tensor

    @tensor.setter
    def tensor(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self._picture = None
        self._borrowed = False

    @property
    def picture(self) -> Picture:
        self.read = True
        self._own()
        return super().picture

    @property
    def untouched(self) -> bool:
        """Whether its pixels are those that came in: no other tensor, and none changed in place."""
        if self._picture is None:
            return False
        return self._tensor is None or (self._tensor is self._made and self._tensor._version == self._version)

    def changed_in_place(self) -> bool:
        return self._picture is not None and not self.untouched

    def retire(self) -> None:
        """The call is over and the worker's memory about to be used again."""
        # Two references are the caller's name and the argument of getrefcount; a third is somebody's own.
        if self._borrowed and sys.getrefcount(self) > 3:
            self._own()

    def _own(self) -> None:
        if self._borrowed and self._picture is not None:
            self._picture = slots.copy_picture(self._picture)
        self._borrowed = False


def put_video(frame: VideoFrame, take: Put) -> tuple[dict[str, Any], slots.Slot]:
    """Lay down the pixels of a returned frame; its header and its slot.

    ``take`` gives a slot of so many bytes. Raises `ProcessorError` for what is not a picture or not a time.
    """
    header: dict[str, Any] = _time(frame)
    tensor, picture = frame._tensor, frame._picture
    if tensor is not None and (
        picture is None or (isinstance(frame, SlotFrame) and frame.changed_in_place())
    ):
        image = checked_image(tensor)
        height, width = int(image.shape[0]), int(image.shape[1])
        _check_size(width, height)
        slot = take(height * width * 3)
        write_rgb(image, slot.array()[: height * width * 3].reshape(height, width, 3))
        header["picture"] = slots.picture_header("rgb24", width, height, "bt601", False)
        return header, slot
    if not isinstance(picture, Picture):
        raise ProcessorError(f"the processor returned a frame with a {type(picture).__name__} as its picture")
    _check_size(picture.width, picture.height)
    slot = take(slots.picture_bytes(picture.format, picture.width, picture.height))
    header["picture"] = slots.put_picture(slot.array(), picture)
    return header, slot


def put_audio(frame: AudioFrame, take: Put) -> tuple[dict[str, Any], slots.Slot]:
    """The same for samples."""
    header: dict[str, Any] = _time(frame)
    samples = sound_of(frame)
    slot = take(max(1, samples.nbytes))
    slot.array()[: samples.nbytes] = samples.reshape(-1).view(np.uint8)
    header["audio"] = slots.audio_header(frame, samples)
    return header, slot


def _time(frame: VideoFrame | AudioFrame) -> dict[str, Any]:
    try:
        return dict(slots.time_header(frame.timestamp, frame.time_base))
    except ValueError as error:
        raise ProcessorError(f"the processor returned a frame whose {error}") from error


def _check_size(width: int, height: int) -> None:
    if max(width, height) > slots.MAX_SIDE or width * height * 3 > slots.MAX_BYTES:
        raise ProcessorError(f"the processor returned a picture of {width}x{height}; that is too large")

"""What a processor may give back for a frame, as the pipeline and an engine take it.

The engine's host loads this module in foreign interpreters.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy.typing as npt

from stream.errors import ProcessorError
from stream.frames import AudioFrame, VideoFrame
from stream.samples import checked_samples

MAX_RESULTS = 16
"""Frames that one call of a processor may return."""

F = TypeVar("F", VideoFrame, AudioFrame)


def listed(result: object, kind: type[F], limit: int = MAX_RESULTS) -> list[F]:
    """What a processor returned, as a list of frames. Raises `ProcessorError` for anything else."""
    if result is None:
        return []
    if isinstance(result, kind):
        return [result]
    if not isinstance(result, (list, tuple)):
        raise ProcessorError(f"the processor returned {type(result).__name__}, not {_expected(kind)}")
    for frame in result:
        if not isinstance(frame, kind):
            found = type(frame).__name__
            raise ProcessorError(f"the processor returned a list with a {found}, not {_expected(kind)}")
    if len(result) > limit:
        raise ProcessorError(f"the processor returned {len(result)} frames; at most {limit} are taken")
    return list(result)


def sound_of(frame: AudioFrame) -> npt.NDArray[Any]:
    """The samples of a returned frame, fit to be encoded. Raises `ProcessorError`."""
    try:
        return checked_samples(frame.samples, frame.format, frame.layout, frame.rate)
    except ValueError as error:
        raise ProcessorError(f"the processor returned sound that cannot be used: {error}") from error


def _expected(kind: type) -> str:
    if kind is VideoFrame:
        return (
            "a VideoFrame (frame.replace_tensor and frame.replace_picture make one), a list of them or None"
        )
    return "an AudioFrame (frame.replace_samples makes one), a list of them or None"

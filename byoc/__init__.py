"""What a container author imports. Names are loaded when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stream.errors import InvalidInput, ProcessorError
    from stream.frames import AudioFrame, VideoFrame
    from stream.processor import FrameProcessor

__all__ = ["AudioFrame", "FrameProcessor", "InvalidInput", "ProcessorError", "VideoFrame"]

_HOMES = {
    "AudioFrame": "stream.frames",
    "FrameProcessor": "stream.processor",
    "InvalidInput": "stream.errors",
    "ProcessorError": "stream.errors",
    "VideoFrame": "stream.frames",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'byoc' has no attribute {name!r}")
    if problems := import_module("byoc.packages").hidden(("stream",)):
        raise ImportError("; ".join(problems))
    return getattr(import_module(_HOMES[name]), name)

"""What a container author imports. Names are loaded when they are first used."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from byoc import api as api
    from byoc.base import ComponentState, ErrorCallback, TrickleComponent
    from byoc.client import TrickleClient
    from byoc.decorators import (
        audio_handler,
        model_loader,
        on_stream_start,
        on_stream_stop,
        param_updater,
        video_handler,
    )
    from byoc.fps_meter import FPSMeter
    from byoc.frame_overlay import OverlayConfig, OverlayController, OverlayMode
    from byoc.frame_processor import FrameProcessor
    from byoc.frame_skipper import FrameSkipConfig
    from byoc.frames import AudioOutput, FrameBuffer, VideoOutput
    from byoc.protocol import TrickleProtocol
    from byoc.publisher import TricklePublisher
    from byoc.request_handlers import Reply, request_handler
    from byoc.server import RouteConfig, StreamServer
    from byoc.state import StreamState
    from byoc.stream_processor import StreamProcessor, VideoProcessingResult
    from byoc.subscriber import TrickleSubscriber
    from byoc.utils.register import RegisterCapability
    from byoc.version import __version__
    from stream.errors import InvalidInput, ProcessorError
    from stream.frames import AudioFrame, Picture, VideoFrame

_HOMES = {
    "AudioFrame": "stream.frames",
    "AudioOutput": "byoc.frames",
    "ComponentState": "byoc.base",
    "ErrorCallback": "byoc.base",
    "FPSMeter": "byoc.fps_meter",
    "FrameBuffer": "byoc.frames",
    "FrameProcessor": "byoc.frame_processor",
    "FrameSkipConfig": "byoc.frame_skipper",
    "InvalidInput": "stream.errors",
    "OverlayConfig": "byoc.frame_overlay",
    "OverlayController": "byoc.frame_overlay",
    "OverlayMode": "byoc.frame_overlay",
    "Picture": "stream.frames",
    "ProcessorError": "stream.errors",
    "RegisterCapability": "byoc.utils.register",
    "Reply": "byoc.request_handlers",
    "RouteConfig": "byoc.server",
    "StreamProcessor": "byoc.stream_processor",
    "StreamServer": "byoc.server",
    "StreamState": "byoc.state",
    "TrickleClient": "byoc.client",
    "TrickleComponent": "byoc.base",
    "TrickleProtocol": "byoc.protocol",
    "TricklePublisher": "byoc.publisher",
    "TrickleSubscriber": "byoc.subscriber",
    "VideoFrame": "stream.frames",
    "VideoOutput": "byoc.frames",
    "VideoProcessingResult": "byoc.stream_processor",
    "__version__": "byoc.version",
    "audio_handler": "byoc.decorators",
    "model_loader": "byoc.decorators",
    "on_stream_start": "byoc.decorators",
    "on_stream_stop": "byoc.decorators",
    "param_updater": "byoc.decorators",
    "request_handler": "byoc.request_handlers",
    "video_handler": "byoc.decorators",
}

_MODULES = frozenset(
    (
        "api",
        "base",
        "client",
        "decorators",
        "fps_meter",
        "frame_overlay",
        "frame_processor",
        "frame_skipper",
        "frames",
        "protocol",
        "publisher",
        "registry",
        "server",
        "state",
        "stream_processor",
        "subscriber",
        "testing",
        "utils",
        "version",
    )
)
_GONE = frozenset({"BaseStreamManager", "StreamHandler", "TrickleStreamHandler", "TrickleStreamManager"})

__all__ = [
    "AudioFrame",
    "AudioOutput",
    "ComponentState",
    "ErrorCallback",
    "FPSMeter",
    "FrameBuffer",
    "FrameProcessor",
    "FrameSkipConfig",
    "InvalidInput",
    "OverlayConfig",
    "OverlayController",
    "OverlayMode",
    "Picture",
    "ProcessorError",
    "RegisterCapability",
    "Reply",
    "RouteConfig",
    "StreamProcessor",
    "StreamServer",
    "StreamState",
    "TrickleClient",
    "TrickleComponent",
    "TrickleProtocol",
    "TricklePublisher",
    "TrickleSubscriber",
    "VideoFrame",
    "VideoOutput",
    "VideoProcessingResult",
    "__version__",
    "api",
    "audio_handler",
    "model_loader",
    "on_stream_start",
    "on_stream_stop",
    "param_updater",
    "request_handler",
    "video_handler",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f"byoc.{name}")
    if name in _GONE:
        return import_module("byoc.manager")
    if name not in _HOMES:
        raise AttributeError(f"module 'byoc' has no attribute {name!r}")
    _check()
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def _check() -> None:
    """Raise `ImportError` that names what hides a package of ours."""
    from byoc.packages import hidden

    if problems := hidden(("stream",)):
        raise ImportError("; ".join(problems))


class _Guard(MetaPathFinder):
    """Says why a module of this package cannot be imported, where something hides what it stands on."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname.startswith("byoc.") and fullname != "byoc.packages":
            _check()


if not any(isinstance(finder, _Guard) for finder in sys.meta_path):
    sys.meta_path.insert(0, _Guard())

"""A server around plain functions: `StreamProcessor`."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any, Self

from byoc.frame_overlay import OverlayConfig
from byoc.frame_processor import FrameProcessor
from byoc.frame_skipper import FrameSkipConfig
from byoc.registry import HandlerKind, HandlerRegistry
from byoc.request_handlers import handlers_of
from byoc.server import StreamServer
from stream.errors import HeadraceError
from stream.frames import AudioFrame, VideoFrame
from stream.logs import Faults
from stream.processor import AudioResult, Params, ProcessorInfo, VideoResult

__all__ = ["StreamProcessor", "VideoProcessingResult"]

log = logging.getLogger(__name__)

Handler = Callable[..., Awaitable[Any]]


class VideoProcessingResult(Enum):
    """WITHHELD: nothing is to be shown for this frame, on purpose; `OverlayConfig` says what is instead."""

    WITHHELD = "withheld"


PARAMETERS: dict[str, HandlerKind] = {
    "video_processor": "video",
    "audio_processor": "audio",
    "model_loader": "model_loader",
    "param_updater": "param_updater",
    "on_stream_start": "stream_start",
    "on_stream_stop": "stream_stop",
}
"""The parameters that take a function, and the kind of handler that each is."""


class StreamProcessor:
    """Serves one stream with the functions that it is given.

    All of them must be coroutine functions (`ValueError`); they run in a thread of their own with one event
    loop. A ``video_processor`` that raises, or returns None or what is no frame, lets the original pass;
    `VideoProcessingResult.WITHHELD` does not. ``server_kwargs`` go to `StreamServer`.
    """

    def __init__(
        self,
        video_processor: Handler | None = None,
        audio_processor: Handler | None = None,
        model_loader: Handler | None = None,
        param_updater: Handler | None = None,
        on_stream_start: Handler | None = None,
        on_stream_stop: Handler | None = None,
        send_data_interval: float | None = 0.333,
        name: str = "stream-processor",
        port: int = 8000,
        frame_skip_config: FrameSkipConfig | None = None,
        overlay_config: OverlayConfig | None = None,
        validate_signature: bool = True,
        **server_kwargs: Any,
    ) -> None:
        handlers: dict[str, Handler | None] = {
            "video_processor": video_processor,
            "audio_processor": audio_processor,
            "model_loader": model_loader,
            "param_updater": param_updater,
            "on_stream_start": on_stream_start,
            "on_stream_stop": on_stream_stop,
        }
        for label, handler in handlers.items():
            if handler is not None:
                _check(label, handler, validate_signature)
        self.video_processor = video_processor
        self.audio_processor = audio_processor
        self.model_loader = model_loader
        self.param_updater = param_updater
        self.on_stream_start = on_stream_start
        self.on_stream_stop = on_stream_stop
        self.name = name
        self.port = port
        self.send_data_interval = send_data_interval
        self.frame_skip_config = frame_skip_config
        self.overlay_config = overlay_config
        self.server_kwargs = server_kwargs
        self._frame_processor = HandlersProcessor(handlers, name)
        self.server = StreamServer(
            frame_processor=self._frame_processor,
            port=port,
            frame_skip_config=frame_skip_config,
            overlay_config=overlay_config,
            send_data_interval=send_data_interval,
            **server_kwargs,
        )

    @classmethod
    def from_handlers(
        cls,
        handler_instance: object,
        *,
        send_data_interval: float | None = 0.333,
        name: str = "stream-processor",
        port: int = 8000,
        frame_skip_config: FrameSkipConfig | None = None,
        overlay_config: OverlayConfig | None = None,
        validate_signature: bool = True,
        **server_kwargs: Any,
    ) -> Self:
        """One around the decorated methods of an object (`byoc.decorators`, `byoc.request_handler`)."""
        server_kwargs.setdefault("request_handlers", handlers_of(handler_instance))
        registry = HandlerRegistry.of(handler_instance)
        handlers = {parameter: registry.get(kind) for parameter, kind in PARAMETERS.items()}
        return cls(
            **handlers,
            send_data_interval=send_data_interval,
            name=name,
            port=port,
            frame_skip_config=frame_skip_config,
            overlay_config=overlay_config,
            validate_signature=validate_signature,
            **server_kwargs,
        )

    # -- towards the stream; from any thread and any event loop ------------------------------------------

    async def send_data(self, data: str) -> bool:
        """Queue text for the data channel; False without a running stream or for over 64 KiB."""
        client = self.server.current_client
        return client is not None and client.send(data)

    async def send_monitoring_event(
        self, event: dict[str, Any], event_type: str = "custom_monitoring_event"
    ) -> bool:
        """Send an event of that kind on the events channel; False without a running stream."""
        client = self.server.current_client
        if client is None or not client.running:
            return False
        await client.protocol.emit_monitoring_event(event, event_type)
        return True

    async def send_input_frame(self, frame: VideoFrame | AudioFrame) -> bool:
        """Put a frame into the stream as if it had come in; False without a running stream."""
        client = self.server.current_client
        return client is not None and client.push(frame)

    def set_loading_overlay(self, active: bool) -> bool:
        """Show the notice in place of all frames, or stop that; False without a stream."""
        client = self.server.current_client
        if client is None:
            return False
        client.loading_controller.set_manual_loading(active)
        return True

    # -- life --------------------------------------------------------------------------------------------

    async def run_forever(self) -> None:
        """Serve until SIGTERM, SIGINT or cancellation."""
        await self.server.run_forever()

    def run(self) -> None:
        """As `run_forever`, in an event loop of its own."""
        import uvloop

        uvloop.run(self.run_forever())


def _check(label: str, handler: Handler, validate_signature: bool) -> None:
    """Raise `ValueError` for what is no coroutine function; warn of one that takes too little."""
    function = inspect.unwrap(getattr(handler, "__func__", handler))
    if not (inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(function)):
        raise ValueError(f"{label} must be an async function")
    if validate_signature and label in ("video_processor", "audio_processor", "param_updater"):
        taken = inspect.signature(handler).parameters
        if not taken:
            log.warning("%s takes no %s", label, "params" if label == "param_updater" else "frame")


class HandlersProcessor(FrameProcessor):
    """A `FrameProcessor` of functions, forgiving as PyTrickle's is."""

    def __init__(self, handlers: dict[str, Handler | None], name: str) -> None:
        super().__init__()
        self.name = name
        self._handlers = {label: handler for label, handler in handlers.items() if handler is not None}
        self._faults = {label: Faults() for label in self._handlers}

    def info(self) -> ProcessorInfo:
        return ProcessorInfo(
            video="video_processor" in self._handlers, audio="audio_processor" in self._handlers
        )

    async def load_model(self, **kwargs: Any) -> None:
        if (loader := self._handlers.get("model_loader")) is not None:
            await loader(**kwargs)

    async def process_video_async(self, frame: VideoFrame) -> VideoResult:
        try:
            result = await self._handlers["video_processor"](frame)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 (the edge to a handler that is not ours; it is told)
            self._failed("video_processor", error)
            return frame
        if result is VideoProcessingResult.WITHHELD:
            return None
        if isinstance(result, VideoFrame):
            return result
        if isinstance(result, list) and result and all(isinstance(each, VideoFrame) for each in result):
            return result
        return frame

    async def process_audio_async(self, frame: AudioFrame) -> AudioResult:
        try:
            result = await self._handlers["audio_processor"](frame)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 (the edge to a handler that is not ours; it is told)
            self._failed("audio_processor", error)
            return [frame]
        if isinstance(result, AudioFrame):
            return [result]
        return result if isinstance(result, list) else [frame]

    async def update_params(self, params: Params) -> None:
        """Give the updater what there is; ``load_model`` loads the model and is kept from it."""
        rest = dict(params)
        if rest.pop("load_model", False):
            await self.ensure_model_loaded()
        if rest and (updater := self._handlers.get("param_updater")) is not None:
            await updater(rest)

    async def on_stream_start(self, params: Params) -> None:
        if (starter := self._handlers.get("on_stream_start")) is not None:
            await starter(params)

    async def on_stream_stop(self) -> None:
        if (stopper := self._handlers.get("on_stream_stop")) is not None:
            await stopper()

    def _failed(self, label: str, error: Exception) -> None:
        """Tell of an error once, and again when it has become another."""
        text = f"{type(error).__name__}: {error}"
        if not self._faults[label].tells(text, time.monotonic()):
            return
        log.error("%s of %s raised, and the original passes: %s", label, self.name, text, exc_info=error)
        message = error.message if isinstance(error, HeadraceError) else text
        self.emit("event", {"type": "error", "pipeline": self.name, "message": message})

"""One stream: its session, seen as PyTrickle's client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from byoc.base import ComponentState, ErrorCallback
from byoc.frame_overlay import OverlayConfig, OverlayController
from byoc.frame_skipper import FrameSkipConfig
from byoc.hosted import HostedProcessor, device_for
from byoc.protocol import TrickleProtocol
from byoc.sessions import ProcessorSession, StreamSettings, processor_session
from byoc.state import LoopEvent
from byoc.threads import LoopThread
from stream.batching import Batcher
from stream.errors import Conflict, HeadraceError
from stream.frames import AudioFrame, VideoFrame
from stream.processor import Emission, FrameProcessor, Params
from stream.trickle.documents import encode_item

log = logging.getLogger(__name__)


class TrickleClient:
    """Runs a processor on the channels of a `TrickleProtocol`.

    ``control_handler`` gets the messages of the control channel in place of ``update_params``.
    ``max_queue_size`` is taken and means nothing: there are no queues. ``error_callback`` (or the
    processor's) is told what ended the stream, as ``stream_failed``.
    """

    def __init__(
        self,
        protocol: TrickleProtocol,
        frame_processor: FrameProcessor,
        control_handler: Callable[[dict[str, Any]], Awaitable[None]] | None = None,
        send_data_interval: float | None = 0.333,
        error_callback: ErrorCallback | None = None,
        max_queue_size: int = 300,
        frame_skip_config: FrameSkipConfig | None = None,
        overlay_config: OverlayConfig | None = None,
        *,
        thread: LoopThread | None = None,
        batcher: Batcher | None = None,
        settings: StreamSettings | None = None,
    ) -> None:
        self.protocol = protocol
        self.frame_processor = frame_processor
        self.control_handler = control_handler
        self.send_data_interval = send_data_interval
        self.error_callback = error_callback or getattr(frame_processor, "error_callback", None)
        self.max_queue_size = max_queue_size
        self.frame_skip_config = frame_skip_config or FrameSkipConfig()
        self.loading_controller = OverlayController(overlay_config)
        self.request_id = "default"
        self.stop_event = LoopEvent()
        self.error_event = LoopEvent()
        self.session: ProcessorSession | None = None
        self._settings = settings or StreamSettings()
        self._thread = thread
        self._batcher = batcher
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def running(self) -> bool:
        """Whether the stream goes on."""
        session = self.session
        return session is not None and session.ending is None

    # -- life --------------------------------------------------------------------------------------------

    def prepare(self, request_id: str, params: Params, thread: LoopThread) -> ProcessorSession:
        """The session of this client, not yet started. Raises `InvalidInput`."""
        self.request_id = request_id
        self._loop = asyncio.get_running_loop()
        protocol = self.protocol
        width, height = protocol.width, protocol.height
        out_size = (width, height) if width and height and not protocol.detect_out_resolution else None
        hosted = HostedProcessor(
            self.frame_processor,
            thread,
            self.loading_controller,
            batcher=self._batcher,
            device=device_for(self.frame_processor, self._settings.device),
            out_size=out_size,
        )
        session = processor_session(self, hosted, params, self._settings)
        self.session = session
        protocol.serve(session)
        return session

    async def start(self, request_id: str = "default", params: Params | None = None) -> None:
        """Run the stream to its end. Raises `Conflict` when it runs already."""
        if self.running:
            raise Conflict("the client is running already")
        thread = self._thread or LoopThread(f"processor {request_id}")
        thread.start()
        try:
            await self.prepare(request_id, dict(params or {}), thread).run()
        finally:
            await self.ended()
            if thread is not self._thread:
                await thread.close()

    async def ended(self) -> None:
        """The session has come to its end: tell whoever wants to know."""
        self.stop_event.set()
        ending = self.session.ending if self.session is not None else None
        if ending is None or ending.error is None:
            self.protocol._update_state(ComponentState.STOPPED)
            return
        self.error_event.set()
        await self.protocol._notify_error("stream_failed", ending.error)
        if self.error_callback is not None and self.error_callback is not self.protocol.error_callback:
            try:
                await self.error_callback("stream_failed", ending.error)
            except Exception:  # the edge to a callback that is not ours
                log.exception("the error callback raised")

    async def stop(self) -> None:
        """Ask for the end, from any thread; `start` returns in a bounded time."""
        self.stop_event.set()
        self.loading_controller.reset()
        self._on_loop(lambda session: session.stop("stopped"))

    # -- towards the stream, from any thread -------------------------------------------------------------

    async def publish_data(self, data: str) -> None:
        """Queue text for the data channel; what cannot be sent is logged."""
        self.send(data)

    def send(self, data: Any) -> bool:
        """Queue text (or any JSON value) for the data channel; False when it cannot be sent."""
        try:
            encode_item(data)
        except HeadraceError as error:
            log.warning("data was not sent: %s", error.message)
            return False
        kind: Any = "text" if isinstance(data, str) else "data"
        return self._on_loop(lambda session: session.emit(Emission(kind, data)))

    def push(self, frame: VideoFrame | AudioFrame) -> bool:
        """Put a frame into the stream as if it had come in."""
        session = self.session
        return session is not None and self.running and session.pipeline.push(frame)

    def get_statistics(self) -> dict[str, Any]:
        """PyTrickle's three keys, of queues that are always empty here, and the session's counts."""
        queues = ("video_input_queue_size", "audio_input_queue_size", "output_queue_size")
        counts = self.session.pipeline.figures.counts if self.session is not None else None
        return dict.fromkeys(queues, 0) | ({"frames_in": counts.frames_in} if counts is not None else {})

    def set_target_fps(self, target_fps: float | None) -> None:
        """Take at most so many frames a second; None: all. Raises `InvalidInput`."""
        self.frame_skip_config = FrameSkipConfig(target_fps)
        self._on_loop(lambda session: session.pipeline.limit_rate(target_fps))

    def _on_loop(self, act: Callable[[ProcessorSession], object]) -> bool:
        """Have the session do something on its loop; False when there is none that runs."""
        session, loop = self.session, self._loop
        if session is None or loop is None or not self.running:
            return False
        try:
            loop.call_soon_threadsafe(act, session)
        except RuntimeError:
            return False
        return True

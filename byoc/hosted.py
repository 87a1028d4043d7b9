"""A container author's processor as the pipeline knows it: its code runs in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from byoc.frame_overlay import OverlayController
from byoc.threads import LoopThread
from stream.batching import Batcher
from stream.codecs.convert import Converter
from stream.errors import HeadraceError, InvalidInput, ProcessorError
from stream.frames import AudioFrame, VideoFrame
from stream.pipeline import ONE_FRAME
from stream.processor import (
    AudioResult,
    Emission,
    EmitSink,
    FrameProcessor,
    Params,
    ProcessorInfo,
    VideoResult,
    called,
)
from stream.results import listed
from stream.tensors import device_of, picture_from

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


class HostedProcessor(FrameProcessor):
    """``inner`` in ``thread``, with the overlay's rules for what it withholds.

    Belongs to the server's loop. ``batcher``: who calls ``inner`` for pictures. ``device``: where tensors are
    made, and pictures of them. ``out_size``: pictures are brought to that size. An exception of
    ``on_stream_start`` or ``on_stream_stop`` is told and the stream goes its way; one of ``update_params``
    becomes `InvalidInput`.
    """

    def __init__(
        self,
        inner: FrameProcessor,
        thread: LoopThread,
        overlay: OverlayController,
        *,
        batcher: Batcher | None = None,
        device: torch.device | None = None,
        out_size: tuple[int, int] | None = None,
    ) -> None:
        self.inner = inner
        self.thread = thread
        self.overlay = overlay
        self._process = inner.process_video_async if batcher is None else batcher.of(inner)
        self._device = device
        self._out_size = out_size
        self._converter = Converter()
        self._info = inner.info()
        self._loop = asyncio.get_running_loop()
        super().__init__()

    def info(self) -> ProcessorInfo:
        """As it was when it was last loaded, started or steered."""
        return self._info

    def progress(self) -> tuple[str, float | None]:
        config = self.overlay.overlay_config
        return config.message, config.progress

    def bind(self, sink: EmitSink | None) -> None:
        """What it says may come from any thread."""
        super().bind(sink)
        self.inner.bind(None if sink is None else self._say)

    def _say(self, emission: Emission) -> None:
        try:
            self._loop.call_soon_threadsafe(self._said, emission)
        except RuntimeError:
            # The loop has ended, and the stream with it.
            pass

    def _said(self, emission: Emission) -> None:
        if self._emit_sink is not None:
            self._emit_sink(emission)

    # -- life --------------------------------------------------------------------------------------------

    async def load_model(self, **kwargs: Any) -> None:
        ensure = getattr(self.inner, "ensure_model_loaded", None) or self.inner.load_model
        await self.thread.call(ensure, **kwargs)
        self._info = self.inner.info()

    async def on_stream_start(self, params: Params) -> None:
        self.overlay.reset()
        await self._told("on_stream_start", self.inner.on_stream_start, params)
        self._info = self.inner.info()

    async def on_stream_stop(self) -> None:
        await self._told("on_stream_stop", self.inner.on_stream_stop)

    async def _told(self, name: str, method: Any, *arguments: Any) -> None:
        """Call a method whose failure is told and changes nothing."""
        try:
            await self.thread.call(method, *arguments)
        except Exception as error:  # the edge to a processor that is not ours
            text = error.message if isinstance(error, HeadraceError) else f"{type(error).__name__}: {error}"
            log.exception("%s failed; the stream goes its way", name)
            self.emit("event", {"type": "error", "message": f"{name} failed: {text}"})

    async def prepare_params(self, params: Params) -> None:
        await self._steered(self.inner.prepare_params, params)

    async def update_params(self, params: Params) -> None:
        await self._steered(self.inner.update_params, params)
        self._info = self.inner.info()

    async def _steered(self, method: Any, params: Params) -> None:
        if not await self.thread.turns(ONE_FRAME):
            held = f"{type(self.inner).__name__} has held its thread for over {ONE_FRAME:g} s"
            raise ProcessorError(f"{held}; the parameters were not taken")
        try:
            await self.thread.call(method, params)
        except HeadraceError:
            raise
        except Exception as error:  # the edge to a processor that is not ours
            log.info("parameters were refused", exc_info=True)
            raise InvalidInput(f"{type(error).__name__}: {error}") from error

    # -- frames ------------------------------------------------------------------------------------------

    async def process_video_async(self, frame: VideoFrame) -> VideoResult:
        if self.overlay.should_skip_processing():
            return self.overlay.notice(frame)
        return await self.thread.call(self._video, frame)  # type: ignore[no-any-return]

    async def process_audio_async(self, frame: AudioFrame) -> AudioResult:
        frame.log_timestamps.setdefault("frame_init", time.time())
        return await self.thread.call(self.inner.process_audio_async, frame)  # type: ignore[no-any-return]

    async def _video(self, frame: VideoFrame) -> VideoResult:
        """In the processor's thread, conversions too."""
        frame.log_timestamps.setdefault("frame_init", time.time())
        frame.device = self._device
        self.inner.frame_time = frame.time
        try:
            result = await called(self._process, frame)
        finally:
            self.inner.frame_time = None
        results = listed(result, VideoFrame)
        if result is not None and not results:
            return []
        choice = self.overlay.choose(bool(results))
        if choice == "notice":
            return self.overlay.notice(frame)
        if choice != "result":
            return frame if choice == "original" else None
        for shown in results:
            self._settle(shown, frame)
        return results

    def _settle(self, shown: VideoFrame, frame: VideoFrame) -> None:
        """Make the bytes of a result here, where it takes nobody else's time."""
        if shown is frame and frame.has_tensor:
            # It may have been written to, and numpy tells nobody.
            shown.tensor = shown.tensor
        if self._device is not None and shown.has_tensor and not shown.has_picture:
            shown.use_picture(picture_from(shown.tensor))
        picture = shown.picture
        if self._out_size is not None and (picture.width, picture.height) != self._out_size:
            shown.use_picture(self._converter.scale(picture, *self._out_size, crop=False))


def device_for(processor: FrameProcessor, wanted: str | None) -> torch.device | None:
    """Where tensors are to be made; None: on the CPU, as ever. `InvalidInput` where it is not there."""
    name = wanted or processor.tensor_device
    if name == "engine":
        import torch

        name = "cuda" if torch.cuda.is_available() else "cpu"
    return None if name == "cpu" and wanted is None else device_of(name)

"""The calls of a pipeline to its processor, one frame at a time."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from stream.codecs.convert import Converter
from stream.errors import EngineError, ProcessorError
from stream.frames import VideoFrame
from stream.processor import FrameProcessor
from stream.results import listed
from stream.sound import ENGINE_RETRIES
from stream.timeouts import is_cancelled

log = logging.getLogger(__name__)


class ProcessorCalls:
    """Hands frames to the processor; belongs to the loop.

    ``size``: the width and height that the processor is promised; it may change. ``began`` is told the moment
    (ns) of each attempt. ``patience``: seconds for which the return of a lost engine is waited for, to offer
    it the frame again (None: not at all).
    """

    def __init__(
        self,
        processor: FrameProcessor,
        size: tuple[int, int] | None,
        began: Callable[[int], None],
        *,
        patience: float | None,
    ) -> None:
        self.ready = False
        self._processor = processor
        self.size = size
        self._began = began
        self._patience = patience
        self._converter = Converter()
        self._scaling = ThreadPoolExecutor(1, thread_name_prefix="scale")

    def close(self) -> None:
        self._scaling.shutdown(wait=False, cancel_futures=True)

    async def prepare(self, frame: VideoFrame) -> VideoFrame:
        """The frame at the size that the processor is promised."""
        size = self.size
        if size is None or (frame.width, frame.height) == size:
            return frame
        scale = functools.partial(self._converter.scale, frame.picture, *size, crop=True)
        loop = asyncio.get_running_loop()
        return frame.replace_picture(await loop.run_in_executor(self._scaling, scale))

    async def offer(self, frame: VideoFrame) -> list[VideoFrame]:
        """What the processor made of a frame. Raises `EngineError` when it is not there, and whatever it
        raises itself."""
        for attempt in range(ENGINE_RETRIES + 1):
            frame.timeline.stamp("taken")
            self._began(frame.timeline.taken)
            self._processor.frame_time = frame.time
            try:
                if not self.ready:
                    message, progress = self._processor.progress()
                    raise EngineError(message, progress=progress)
                if not self._processor.info().video:
                    return [frame]
                return listed(await self._processor.process_video_async(frame), VideoFrame)
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                raise ProcessorError("the processor's work was cancelled") from None
            except EngineError:
                if self._patience is None or attempt == ENGINE_RETRIES:
                    raise
                log.warning("the engine was lost over the frame at %.3f s; trying it again", frame.time)
                await self._processor.wait_ready(self._patience)
        raise AssertionError("unreachable")

"""A processor that can be held: the last processed picture stays, the raw input is never shown instead."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Literal

import numpy as np

from stream.frames import AudioFrame, VideoFrame
from stream.overlay import Notice, OverlayPainter
from stream.processor import (
    AudioResult,
    EmitSink,
    FrameProcessor,
    Params,
    ProcessorInfo,
    VideoResult,
)

Hold = Literal["running", "paused", "stopped"]
STOPPED = "Stopped"


class Pausable(FrameProcessor):
    """``inner``, until it is held.

    Paused, it puts no pictures out, so that the pipeline repeats the last one, and its sound is silence.
    Stopped is the same with a notice in place of the picture. Parameters and workflows can be changed
    meanwhile. Sound that the processor does not touch goes past it and is silent all the same.
    """

    def __init__(self, inner: FrameProcessor) -> None:
        self.inner = inner
        self.hold: Hold = "running"
        self.held_at: float | None = None
        """Since when it is held (epoch s)."""
        self._told_size: tuple[int, int] | None = None
        super().__init__()

    def pause(self) -> None:
        self._set("paused")

    def stop(self) -> None:
        self._set("stopped")

    def resume(self) -> None:
        self._set("running")

    def _set(self, hold: Hold) -> None:
        if hold != self.hold:
            self.hold, self._told_size = hold, None
            self.held_at = None if hold == "running" else time.time()

    # -- frames ------------------------------------------------------------------------------------------

    async def process_video_async(self, frame: VideoFrame) -> VideoResult:
        if self.hold == "running":
            return await self.inner.process_video_async(frame)
        size = (frame.width, frame.height)
        if self.hold == "paused" or self._told_size == size:
            return None
        self._told_size = size
        notice = Notice(STOPPED, progress=0.0)
        return frame.replace_picture(await asyncio.to_thread(OverlayPainter().paint, None, *size, notice))

    async def process_audio_async(self, frame: AudioFrame) -> AudioResult:
        if self.hold != "running":
            silence = 128 if frame.samples.dtype == np.uint8 else 0
            return [frame.replace_samples(np.full_like(frame.samples, silence))]
        # Asked for while it was held.
        return await self.inner.process_audio_async(frame) if self.inner.info().audio else [frame]

    def info(self) -> ProcessorInfo:
        info = self.inner.info()
        if self.hold == "running":
            return info
        return replace(info, video=True, audio=True)

    # -- everything else is the inner one's --------------------------------------------------------------

    async def load_model(self, **kwargs: object) -> None:
        await self.inner.load_model(**kwargs)

    async def prepare_params(self, params: Params) -> None:
        await self.inner.prepare_params(params)

    async def update_params(self, params: Params) -> None:
        await self.inner.update_params(params)

    async def on_stream_start(self, params: Params) -> None:
        await self.inner.on_stream_start(params)

    async def on_stream_stop(self) -> None:
        await self.inner.on_stream_stop()

    async def wait_ready(self, timeout: float) -> None:
        await self.inner.wait_ready(timeout)

    def progress(self) -> tuple[str, float | None]:
        return self.inner.progress()

    def bind(self, sink: EmitSink | None) -> None:
        self.inner.bind(sink)

    @property
    def frame_time(self) -> float | None:
        """When the frame at work is to be shown, in seconds of the source's clock."""
        return self.inner.frame_time

    @frame_time.setter
    def frame_time(self, moment: float | None) -> None:
        self.inner.frame_time = moment


def innermost(processor: FrameProcessor) -> FrameProcessor:
    """The processor itself, whatever holds it."""
    while isinstance(inner := getattr(processor, "inner", None), FrameProcessor):
        processor = inner
    return processor

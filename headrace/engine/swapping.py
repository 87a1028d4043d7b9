"""A session that can move: another workflow is loaded in another engine beside it, and then takes its place.

For engines in which two workflows get in each other's way while one loads (a ComfyUI), and for workflows
that need another engine than the one before. What runs goes on meanwhile; the swap is between two frames.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from headrace.engine.client import EngineProcessor
from headrace.engine.guardian import Engine
from stream.errors import EngineError, HeadraceError, ProcessorError
from stream.frames import AudioFrame, Picture, VideoFrame
from stream.processor import (
    AudioResult,
    EmitSink,
    FrameProcessor,
    Params,
    ProcessorInfo,
    VideoResult,
)
from stream.timeouts import is_cancelled

log = logging.getLogger(__name__)

WARM_FRAMES = 2
"""Made-up frames that a workflow works on before it is shown."""
WARM_SIZE = (512, 512)
"""Of these, while none has been seen."""
LOOK = 0.25
"""Seconds between two looks at how far the other workflow is."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where another workflow is to run. ``engine``: None is the one that the session is in already, beside
    its frames. ``notice``: what the user should know of that."""

    spec: dict[str, Any]
    params: Params
    engine: Engine | None
    notice: str | None = None


class Placement(Protocol):
    """Chooses engines for workflows, and counts who is in which."""

    def target(self, engine: Engine, spec: dict[str, Any], params: Params) -> Target | None:
        """Where what ``params`` bring is to run, for a session that runs ``spec`` in ``engine``; None when
        they bring no other workflow. Raises `HeadraceError` for one that cannot run."""

    async def made_ready(self, engine: Engine) -> None:
        """Start ``engine`` if need be and wait for it. Raises `EngineError`."""

    def entered(self, engine: Engine) -> None: ...

    def left(self, engine: Engine) -> None: ...


class SwappingProcessor(FrameProcessor):
    """An `EngineProcessor` that may be put in another's place. ``inner`` is the one whose frames are shown.

    ``make`` makes the stand-in for a session of ``(engine, spec, params)``.
    """

    def __init__(
        self,
        engine: Engine,
        spec: dict[str, Any],
        placement: Placement,
        make: Callable[[Engine, dict[str, Any], Params], EngineProcessor],
        params: Params | None = None,
    ) -> None:
        self._placement = placement
        self._make = make
        self._engine = engine
        self._next: tuple[Params, Engine, EngineProcessor] | None = None
        self._opening: asyncio.Task[EngineProcessor] | None = None
        self._loading: EngineProcessor | None = None
        self._size: tuple[int, int] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._sink: EmitSink | None = None
        self._load: dict[str, Any] = {}
        self._start: Params = {}
        self.inner = make(engine, spec, dict(params or {}))
        super().__init__()
        self._inside = False
        """Whether the placement counts it; a session that is refused before it loads never is."""
        self._is_stopped = False

    # -- life --------------------------------------------------------------------------------------------

    async def load_model(self, **kwargs: Any) -> None:
        self._load = kwargs
        self._is_stopped = False
        if not self._inside:
            self._inside = True
            self._placement.entered(self._engine)
        try:
            await self.inner.load_model(**kwargs)
        except BaseException:
            self._leave()
            raise

    async def on_stream_start(self, params: Params) -> None:
        self._start = params
        try:
            await self.inner.on_stream_start(params)
        except BaseException:
            self._leave()
            raise

    async def on_stream_stop(self) -> None:
        """Close whatever is open; bounded as `EngineProcessor.on_stream_stop` is."""
        self._is_stopped = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait({self._opening})
        self._forget_prepared()
        try:
            await self.inner.on_stream_stop()
        finally:
            self._leave()
            if self._closing:
                await asyncio.wait(self._closing)

    def _leave(self) -> None:
        if self._inside:
            self._inside = False
            self._placement.left(self._engine)

    async def wait_ready(self, timeout: float) -> None:
        await self.inner.wait_ready(timeout)

    # -- changes -----------------------------------------------------------------------------------------

    async def prepare_params(self, params: Params) -> None:
        """Load another workflow beside the frames: in the engine that the placement names, else in this one.

        Raises what the workflow or its engine raised; then the old one goes on.
        """
        self._forget_prepared()
        # In a thread: what is brought is checked, which takes as long as it is large.
        target = await asyncio.to_thread(self._placement.target, self._engine, self.inner.spec, params)
        if target is not None and target.engine is not None and self._is_stopped:
            raise EngineError("the session was closed while another workflow was loaded")
        if target is not None and target.notice is not None:
            self.emit("event", {"type": "notice", "message": target.notice})
        if target is None or target.engine is None:
            await self.inner.prepare_params(params)
            return
        opening = self._opening = asyncio.create_task(self._opened(target, target.engine))
        try:
            made = await opening
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise EngineError("the session was closed while another workflow was loaded") from None
        finally:
            opening.cancel()
            self._opening = None
        self._next = (params, target.engine, made)

    async def update_params(self, params: Params) -> None:
        waiting, self._next = self._next, None
        if waiting is not None and waiting[0] == params:
            self._swap(waiting[1], waiting[2])
            return
        if waiting is not None:
            self._close_beside(waiting[1], waiting[2])
        await self.inner.update_params(params)

    async def _opened(self, target: Target, engine: Engine) -> EngineProcessor:
        """A session in ``engine`` that has worked on made-up frames; nothing is left of one that fails."""
        made = self._loading = self._make(engine, target.spec, target.params)
        self._placement.entered(engine)
        telling = asyncio.create_task(self._tell_progress(engine, made))
        try:
            await self._placement.made_ready(engine)
            await made.load_model(**self._load)
            await made.on_stream_start(target.params)
            await self._warm_up(made)
        except BaseException:
            self._close_beside(engine, made)
            raise
        finally:
            self._loading = None
            telling.cancel()
        self._tell("ready", 1.0)
        return made

    async def _tell_progress(self, engine: Engine, made: EngineProcessor) -> None:
        """Its session speaks to nobody before it is shown; so this one tells how far it is."""
        said: tuple[str, float | None] | None = None
        while True:
            now = made.progress() if engine.state == "ready" else (engine.describe(), None)
            if now != said and made.status.phase != "stopped":
                said = now
                self._tell(*now)
            await asyncio.sleep(LOOK)

    def _tell(self, words: str, done: float | None) -> None:
        percent = None if done is None else round(100 * done)
        message = f"the other workflow: {words}"
        self.emit("event", {"type": "progress", "message": message, "percent": percent})

    async def _warm_up(self, made: EngineProcessor) -> None:
        """A workflow that fails on a grey picture fails here, and not before the viewers."""
        if not made.info().video:
            return
        width, height = self._size or WARM_SIZE
        grey = Picture.from_rgb(np.full((height, width, 3), 128, np.uint8))
        for number in range(WARM_FRAMES):
            try:
                await made.process_video_async(VideoFrame.from_picture(grey, number, Fraction(1, 30)))
            except EngineError:
                raise
            except HeadraceError as error:
                raise ProcessorError(
                    f"the first frame of the other workflow failed: {error.message}"
                ) from error

    def _swap(self, engine: Engine, made: EngineProcessor) -> None:
        old, old_engine = self.inner, self._engine
        old.bind(None)
        self.inner, self._engine = made, engine
        made.bind(self._sink)
        self._close_beside(old_engine, old)

    def _forget_prepared(self) -> None:
        waiting, self._next = self._next, None
        if waiting is not None:
            self._close_beside(waiting[1], waiting[2])

    def _close_beside(self, engine: Engine, processor: EngineProcessor) -> None:
        """Close without keeping the frames waiting; the stop waits for it."""

        async def close() -> None:
            try:
                await processor.on_stream_stop()
            except HeadraceError as error:
                log.warning("a session that was replaced did not close well: %s", error.message)
            finally:
                self._placement.left(engine)

        task = asyncio.create_task(close(), name="close a replaced session")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    # -- frames, and everything else, are the present one's ------------------------------------------------

    async def process_video_async(self, frame: VideoFrame) -> VideoResult:
        self._size = (frame.width, frame.height)
        return await self.inner.process_video_async(frame)

    async def process_audio_async(self, frame: AudioFrame) -> AudioResult:
        return await self.inner.process_audio_async(frame)

    def info(self) -> ProcessorInfo:
        return self.inner.info()

    def progress(self) -> tuple[str, float | None]:
        """Of the one that is shown; while that is ready, how far the one is that is to take its place."""
        words, done = self.inner.progress()
        if self._loading is not None and self.inner.status.phase == "ready":
            done = self._loading.progress()[1]
        return words, done

    def bind(self, sink: EmitSink | None) -> None:
        self._sink = self._emit_sink = sink
        self.inner.bind(sink)

    @property
    def frame_time(self) -> float | None:
        return self.inner.frame_time

    @frame_time.setter
    def frame_time(self, moment: float | None) -> None:
        self.inner.frame_time = moment

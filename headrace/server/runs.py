"""Workflows over one picture or clip, as requests: a queue, and an engine that is there while it is needed.

It is neither the live engine, whose frames would wait for it, nor the batch engine, whose pipelines may not
be lost to a run that hangs: giving up a run that does not end means ending its engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from headrace.batch.contract import TimedOut
from headrace.batch.errors import Interrupted
from headrace.batch.line import Line
from headrace.batch.queue import BatchQueue, Ticket
from headrace.engine.client import EngineProcessor
from headrace.engine.guardian import Engine
from headrace.server.run_media import Made, container_of
from headrace.server.specs import Spec
from stream.codecs.video_encoder import VideoEncoderSettings
from stream.encoding_parts import EncodingSettings
from stream.errors import EngineError, TooLarge
from stream.files import FileJob
from stream.frames import Picture, VideoFrame
from stream.pipeline import PipelineSettings
from stream.processor import FrameProcessor, Params

log = logging.getLogger(__name__)

ENGINE_START = 180.0
"""Seconds in which the engine must be ready."""
LOOK = 0.5
"""Seconds between two looks at how far a clip is."""


@dataclass(frozen=True, slots=True)
class RunLimits:
    """``queue``: runs that may wait; ``timeout``: seconds from the queue to the answer; ``clip``: seconds of
    a clip; ``pixels``: of one of its pictures; ``idle``: seconds after which an unused engine ends."""

    queue: int = 8
    timeout: float = 600.0
    clip: float = 60.0
    pixels: int = 3840 * 2160
    idle: float = 300.0


@dataclass(frozen=True, slots=True)
class Run:
    """A checked request. ``picture``, ``video`` (a file's bytes) or neither; ``size``: width and height for a
    workflow without input, and to which clips are scaled and cropped."""

    spec: Spec
    params: dict[str, Any]
    picture: Picture | None = None
    video: bytes | None = None
    size: tuple[int, int] | None = None
    bitrate: int = 6_000_000
    client: str = ""
    lane: str = field(default="workflow")


class Runs:
    """One run after the other. Belongs to the loop of the main thread."""

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        limits: RunLimits | None = None,
        elsewhere: Callable[[Spec, str, Params], FrameProcessor | None] = lambda spec, name, params: None,
    ) -> None:
        """``elsewhere`` makes the processor of a spec that names an engine which is not ours to end."""
        self._elsewhere = elsewhere
        self.limits = limits or RunLimits()
        self.queue = BatchQueue(self.limits.queue, 1)
        self._line = Line(self.queue)
        self._make_engine = make_engine
        self._engine: Engine | None = None
        self._idle: asyncio.Task[None] | None = None
        self._stopped = False

    async def stop(self) -> None:
        """End the engine; whoever waits gets an error."""
        self._stopped = True
        self._line.refuse(EngineError("the worker is shutting down"))
        await self._end_engine()

    def check_room(self) -> None:
        """Raise `QueueFull` before a body is read for which there is no place."""
        self.queue.check_room(time.monotonic())

    async def run(self, wanted: Run) -> Made:
        """What the workflow makes of it; cancel the task to give it up.

        Raises `QueueFull` (429), `TimedOut` (504), `Interrupted` (503), `TooLarge` and `UnsupportedMedia` for
        the clip, and what the workflow raises.
        """
        limit = self.limits.timeout
        try:
            async with asyncio.timeout(limit):
                async with self._line.place(Ticket(wanted.lane, wanted.client)) as ticket:
                    made = await self._run(wanted)
                    self.queue.done(ticket, time.monotonic())
                return made
        except TimeoutError:
            raise TimedOut(f"the run took longer than {limit:g} s") from None
        except EngineError as error:
            raise Interrupted(f"{error.message}; the run may be sent again", retry_after=2) from error

    async def _run(self, wanted: Run) -> Made:
        name = f"run-{secrets.token_hex(8)}"
        foreign = self._elsewhere(wanted.spec, name, wanted.params)
        if foreign is not None:
            return await self._work(wanted, foreign)
        async with self._ready_engine() as engine:
            processor = EngineProcessor(engine, wanted.spec, session=name, params=wanted.params)
            ended = False
            try:
                made = await self._work(wanted, processor)
                ended = True
            finally:
                if not ended:
                    await self._give_up(engine)
            return made

    async def _work(self, wanted: Run, processor: FrameProcessor) -> Made:
        made = Made()
        processor.bind(made.hear)
        if wanted.video is not None:
            await self._clip(wanted, processor, made)
        else:
            await _picture(wanted, processor, made)
        return made

    async def _give_up(self, engine: Engine) -> None:
        """After a run that did not end well: an engine that is still at work on it goes."""
        if engine.open_calls:
            log.info("a run was given up; its engine ends with it")
            await self._end_engine()

    # -- one run ---------------------------------------------------------------------------------------

    async def _clip(self, wanted: Run, processor: FrameProcessor, made: Made) -> None:
        assert wanted.video is not None
        container = container_of(wanted.video)
        folder = await asyncio.to_thread(tempfile.TemporaryDirectory, prefix="headrace-run-")
        try:
            source, target = Path(folder.name) / "in", Path(folder.name) / "out.mp4"
            await asyncio.to_thread(source.write_bytes, wanted.video)
            job = await asyncio.to_thread(_job, wanted, source, target, processor, container)
            try:
                self._check_clip(job)
                await self._watched(job)
            finally:
                await asyncio.to_thread(job.close)
            assert job.figures is not None
            made.frames = job.figures.counts.frames_out
            made.video = await asyncio.to_thread(target.read_bytes)
        finally:
            await asyncio.to_thread(folder.cleanup)

    def _check_clip(self, job: FileJob) -> None:
        width, height = job.size
        if width * height > self.limits.pixels:
            raise TooLarge(
                f"the clip is {width} x {height}; {self.limits.pixels} pixels are the limit", field="video"
            )
        self._check_length(job.duration or 0.0)

    def _check_length(self, seconds: float) -> None:
        if seconds > self.limits.clip:
            raise TooLarge(
                f"the clip has over {seconds:.1f} s; {self.limits.clip:g} s are the limit", field="video"
            )

    async def _watched(self, job: FileJob) -> None:
        """Run the job; what a file says of its length need not be true."""
        work = asyncio.ensure_future(job.run())
        try:
            while not (await asyncio.wait({work}, timeout=LOOK))[0]:
                self._check_length(job.position)
            await work
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    # -- the engine ------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _ready_engine(self) -> AsyncIterator[Engine]:
        """The engine, started where there is none; afterwards it goes when nobody asks for it."""
        if self._stopped:
            raise EngineError("the worker is shutting down")
        if self._idle is not None:
            self._idle.cancel()
            await asyncio.gather(self._idle, return_exceptions=True)
            self._idle = None
        if self._engine is None:
            self._engine = self._make_engine()
            await self._engine.start()
        engine = self._engine
        try:
            await engine.wait_ready(ENGINE_START)
            yield engine
        finally:
            if self._engine is engine and not self._stopped:
                self._idle = asyncio.create_task(self._end_when_idle(), name="idle engine of runs")

    async def _end_when_idle(self) -> None:
        await asyncio.sleep(self.limits.idle)
        self._idle = None
        await self._end_engine()

    async def _end_engine(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            await asyncio.gather(self._idle, return_exceptions=True)
            self._idle = None
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.stop()


async def _picture(wanted: Run, processor: FrameProcessor, made: Made) -> None:
    picture = wanted.picture or _black(*(wanted.size or (512, 512)))
    await processor.load_model()
    try:
        await processor.on_stream_start({})
        processor.frame_time = 0.0
        frame = VideoFrame.from_picture(picture, 0, Fraction(1, 90_000))
        result = await processor.process_video_async(frame)
        frames = [result] if isinstance(result, VideoFrame) else list(result or ())
        # Out of the memory that is shared with the engine.
        made.pictures = await asyncio.to_thread(lambda: [_own(each.picture) for each in frames])
    finally:
        await processor.on_stream_stop()
    made.frames = 1


def _job(wanted: Run, source: Path, target: Path, processor: FrameProcessor, container: str) -> FileJob:
    width, height = wanted.size or (None, None)
    video = VideoEncoderSettings(bitrate=wanted.bitrate)
    settings = PipelineSettings(width=width, height=height, encoding=EncodingSettings(video=video))
    return FileJob(source, target, processor, settings, container)


def _own(picture: Picture) -> Picture:
    return Picture.from_rgb(picture.rgb().copy())


def _black(width: int, height: int) -> Picture:
    return Picture.from_rgb(np.zeros((height, width, 3), np.uint8))

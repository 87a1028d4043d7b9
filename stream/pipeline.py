"""The way of a frame, written down in one place.

    source -> units -> decode -> mailbox -> processor -> encode -> sinks

Decoding and encoding each have a thread, the processor is awaited on the event loop. Live, the newest frame
is taken when work starts and whatever cannot keep up loses frames, never time. Lossless (files), each stage
waits for room in the next.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from stream.calls import ProcessorCalls
from stream.canvas import Shown
from stream.clock import TICKS, EvenRate, Monotonic, SessionClock, ticks, to_ticks
from stream.encoding import EncodingStage
from stream.encoding_parts import EncodingSettings
from stream.errors import CodecError, EngineError, HeadraceError, ProcessorError
from stream.figures import Figures
from stream.frames import AudioFrame, Timeline, VideoFrame
from stream.handoff import ToLoop
from stream.logs import Faults, session_thread
from stream.overlay import Notice, OverlaySettings
from stream.presenter import Presenter
from stream.processor import FrameProcessor, Params
from stream.sound import SoundStage
from stream.units import EncodedUnit, Rendition

log = logging.getLogger(__name__)

ONE_FRAME = 10.0
"""Seconds for which parameters wait for the frame that a live processor has, or blocks its thread with."""


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """``width`` and ``height``: the size at which frames are handed to the processor, centre-cropped
    (None keeps the source's); ``max_fps`` drops evenly; ``ready_timeout`` (s) is how long a lossless
    pipeline waits for an engine."""

    width: int | None = None
    height: int | None = None
    max_fps: float | None = None
    lossless: bool = False
    overlay: OverlaySettings = field(default_factory=OverlaySettings)
    encoding: EncodingSettings = field(default_factory=EncodingSettings)
    ready_timeout: float = 300.0

    @property
    def size(self) -> tuple[int, int] | None:
        return None if self.width is None or self.height is None else (self.width, self.height)


class Decoding(Protocol):
    """The first stage: reads and decodes in a thread of its own until its end or until it is aborted.

    ``put_video`` and ``put_audio`` return False when nothing is wanted any more.
    """

    def run(
        self, put_video: Callable[[VideoFrame], bool], put_audio: Callable[[AudioFrame], bool]
    ) -> None: ...
    def abort(self) -> None: ...


@dataclass(slots=True)
class _Job:
    frame: VideoFrame
    pts: int
    number: int


class Pipeline:
    """One session's frames from decoding to encoded units, which ``deliver`` gets in the encoding thread.

    What is encoded follows from who opens what of `encoding`. `run` returns when the input has ended and
    everything is put out, and raises what stopped it; an encoder that fails does so too, unless
    ``rendition_failed`` is there to be told (in the encoding thread).
    """

    def __init__(
        self,
        decoding: Decoding,
        processor: FrameProcessor,
        settings: PipelineSettings,
        deliver: Callable[[list[EncodedUnit]], None],
        rendition_failed: Callable[[Rendition, HeadraceError], None] | None = None,
    ) -> None:
        self.processor = processor
        self.settings = settings
        self.figures = Figures()
        self._decoding = decoding
        self.encoded = deliver
        self._rendition_failed = rendition_failed
        self._loop = asyncio.get_running_loop()
        lossless = settings.lossless
        self._frames: ToLoop[_Job] = ToLoop(
            self._loop,
            limit=4 if lossless else 1,
            lossless=lossless,
            on_arrival=None if lossless else self._arrived,
        )
        self._encoding = EncodingStage(settings.encoding, self._loop, self)
        self._sound = SoundStage(processor, self._encoding, self._loop, self._frame_failed, lossless=lossless)
        self._presenter = Presenter(settings.overlay)
        patience = settings.ready_timeout if lossless else None
        self._calls = ProcessorCalls(processor, settings.size, self._presenter.began, patience=patience)
        # A file's frames lie on one timeline already, and the moments at which they are read mean nothing.
        self._clock = None if lossless else SessionClock()
        self._times = threading.Lock()
        self._out = Monotonic()
        self._shown_at = 0
        self._rate = EvenRate(settings.max_fps) if settings.max_fps else None
        self._between_frames = asyncio.Lock()
        self._steering = asyncio.Lock()
        self._number = 0
        self._faults = Faults()
        self._last_job_pts: int | None = None
        self._failure: asyncio.Future[None] = self._loop.create_future()

    # -- what others call ------------------------------------------------------------------------------

    @property
    def encoding(self) -> EncodingStage:
        return self._encoding

    @property
    def ready(self) -> bool:
        """Whether the processor has been loaded and told that the stream starts; set by the session."""
        return self._calls.ready

    @ready.setter
    def ready(self, ready: bool) -> None:
        self._calls.ready = ready

    @property
    def audio_dropped(self) -> int:
        """Stretches of sound that were left out, for whatever reason."""
        return self._sound.dropped + self._encoding.dropped_audio

    async def apply(self, params: Params) -> int:
        """Change parameters between two frames; returns the number of the first frame they hold for. Raises
        `ProcessorError` when a live processor does not come back from the frame that it has."""
        async with self._steering:
            await self.processor.prepare_params(params)
            try:
                async with asyncio.timeout(None if self.settings.lossless else ONE_FRAME):
                    await self._between_frames.acquire()
            except TimeoutError:
                raise ProcessorError(
                    f"a frame takes over {ONE_FRAME:g} s; the parameters were not taken"
                ) from None
            try:
                await self.processor.update_params(params)
                return self._number
            finally:
                self._between_frames.release()

    def source_changed(self) -> None:
        """From the decoding thread: what comes next has another clock than what came before."""
        if self._clock is not None:
            self._clock.restart()

    def resize(self, width: int, height: int) -> None:
        """Promise the processor another size, from the next frame on."""
        self.settings = replace(self.settings, width=width, height=height)
        self._calls.size = (width, height)

    def limit_rate(self, fps: float | None) -> None:
        """Take in at most so many pictures a second from now on; None: all."""
        self.settings = replace(self.settings, max_fps=fps)
        self._rate = EvenRate(fps) if fps else None

    def push(self, frame: VideoFrame | AudioFrame) -> bool:
        """A frame from elsewhere than the source, from any thread; False when none is wanted any more."""
        if isinstance(frame, VideoFrame):
            return self._decoded_video(frame)
        return self._decoded_audio(frame)

    def expect_video(self, expected: bool) -> None:
        """Once the source knows whether it carries pictures."""
        self._encoding.expect_video(expected)

    async def run(self) -> None:
        """Run every stage to the end of input. Cancelling it stops them all."""
        threads = [
            session_thread("decode", self._run_decoding),
            session_thread("encode", self._encoding.run),
        ]
        for thread in threads:
            thread.start()
        try:
            await self._run_stages()
            self._encoding.end()
            await asyncio.to_thread(threads[1].join)
            self._raise_failure()
        finally:
            await self._stop_threads(threads)

    async def _run_stages(self) -> None:
        work = asyncio.gather(self._work_video(), self._sound.run())
        ticker = asyncio.ensure_future(self._tick())
        waiting: set[asyncio.Future[Any]] = {work, self._failure}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            self._raise_failure()
            await work
        finally:
            work.cancel()
            ticker.cancel()
            await asyncio.gather(work, ticker, return_exceptions=True)

    async def _stop_threads(self, threads: Sequence[threading.Thread]) -> None:
        self._decoding.abort()
        self._frames.abort()
        self._sound.abort()
        self._encoding.abort()
        if not self._failure.done():
            self._failure.cancel()
        for thread in threads:
            await asyncio.shield(asyncio.to_thread(thread.join, 5.0))
            if thread.is_alive():
                log.error("the %s thread did not end within 5 s", thread.name)
        self._calls.close()

    # -- decoding thread -------------------------------------------------------------------------------

    def _run_decoding(self) -> None:
        try:
            self._decoding.run(self._decoded_video, self._decoded_audio)
        except HeadraceError as error:
            self.encoding_failed(error)
        except Exception as error:  # the edge of a thread: nobody else would hear of it
            log.exception("the decoding thread broke")
            self.encoding_failed(CodecError(f"decoding broke: {type(error).__name__}: {error}"))
        finally:
            self._frames.close()
            self._sound.close()

    def _decoded_video(self, frame: VideoFrame) -> bool:
        now = time.monotonic_ns()
        counts = self.figures.counts
        counts.frames_in += 1
        self.figures.input_rate.tick(now)
        rate = self._rate
        pts = to_ticks(frame)
        with self._times:
            if self._clock is not None:
                pts = self._clock.map_picture(pts, frame.timeline.received or now)
            kept = rate is None or rate.keeps(pts)
        if not kept:
            counts.dropped_rate += 1
            return True
        return self._frames.put(_Job(frame, pts, -1), (pts, frame.width, frame.height))

    def _decoded_audio(self, frame: AudioFrame) -> bool:
        now = time.monotonic_ns()
        self.figures.counts.audio_in += 1
        self.figures.audio_in_rate.tick(now)
        pts = to_ticks(frame)
        if self._clock is not None:
            with self._times:
                pts = self._clock.map(pts, frame.timeline.received or now)
        return self._sound.put(frame, pts)

    def _call(self, function: Callable[..., object], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            # The loop has ended, and this pipeline with it.
            pass

    def encoding_failed(self, error: HeadraceError) -> None:
        def fail() -> None:
            if not self._failure.done():
                self._failure.set_exception(error)

        self._call(fail)

    def _raise_failure(self) -> None:
        if self._failure.done() and not self._failure.cancelled():
            error = self._failure.exception()
            if error is not None:
                raise error

    # -- the processor, on the loop --------------------------------------------------------------------

    async def _work_video(self) -> None:
        while (job := await self._frames.take()) is not None:
            self.figures.counts.dropped_busy = self._frames.dropped
            async with self._between_frames:
                shown = await self._process(job)
            if not shown:
                continue
            if self.settings.lossless:
                await self._encoding.show_wait(shown)
            else:
                self.figures.counts.dropped_encoder += self._encoding.show(shown)

    async def _process(self, job: _Job) -> list[Shown]:
        job.number = self._number
        self._number += 1
        try:
            frame = await self._calls.prepare(job.frame)
            return self._results(job, frame, await self._calls.offer(frame))
        except EngineError as error:
            if self.settings.lossless:
                raise
            self._presenter.away(time.monotonic_ns(), error.message, error.progress)
            self._number -= 1
            self.figures.counts.dropped_away += 1
            return []
        except HeadraceError as error:
            return self._frame_failed(error)
        except Exception as error:  # noqa: BLE001 (the edge to a processor that is not ours)
            return self._frame_failed(ProcessorError(f"{type(error).__name__}: {error}"), error)

    def _frame_failed(self, error: HeadraceError, raised: Exception | None = None) -> list[Shown]:
        if self.settings.lossless:
            raise error from raised
        now = time.monotonic_ns()
        figures = self.figures
        if self._faults.tells(error.message, now / 1e9):
            # Where in the author's code it was.
            log.error("a frame failed: %s", error.message, exc_info=raised)
        figures.counts.failed += 1
        figures.last_error, figures.last_error_at = error, now
        self._presenter.failed(now)
        return []

    def _results(self, job: _Job, frame: VideoFrame, results: list[VideoFrame]) -> list[Shown]:
        now = time.monotonic_ns()
        figures = self.figures
        pictures = [result.picture for result in results]
        figures.answer_rate.tick(now)
        if figures.first_answer is None:
            figures.first_answer = now
        if not results:
            figures.counts.withheld += 1
            self._presenter.silent()
            return []
        self._presenter.result(now, now - frame.timeline.taken)
        if not results[0].is_notice:
            figures.result_rate.tick(now)
        interval = self._interval(job.pts)
        shown = []
        for index, result in enumerate(results):
            if result.timestamp != frame.timestamp or result.time_base != frame.time_base:
                pts = job.pts + to_ticks(result) - to_ticks(frame)
            else:
                pts = job.pts + interval * index // len(results)
            timeline = result.timeline if result.timeline.received else frame.timeline.copy()
            timeline.processed = timeline.processed or now
            pts = self._next_pts(pts, now)
            source, painted = to_ticks(frame), result.is_notice
            shown.append(Shown(pts, pictures[index], timeline=timeline, source=source, painted=painted))
        return shown

    def _interval(self, pts: int) -> int:
        last, self._last_job_pts = self._last_job_pts, pts
        return min(max(pts - last, 0), TICKS // 2) if last is not None else TICKS // 30

    def _next_pts(self, pts: int, now: int) -> int:
        self._shown_at = now
        return self._out.next(pts)

    # -- when there is no result -----------------------------------------------------------------------

    def _arrived(self, note: tuple[int, int, int]) -> None:
        """An input frame was put into the mailbox; show something for it if results stay away."""
        pts, width, height = note
        now = time.monotonic_ns()
        self._fill(self._presenter.arrived(now), pts, now, (width, height))

    async def _tick(self) -> None:
        if self.settings.lossless:
            return
        while True:
            await asyncio.sleep(0.05)
            now = time.monotonic_ns()
            last = self._out.last
            if last is not None:
                self._fill(self._presenter.idle(now), last + ticks(now - self._shown_at), now, None)

    def _fill(self, what: Notice | str | None, pts: int, now: int, size: tuple[int, int] | None) -> None:
        if what is None:
            return
        notice = what if isinstance(what, Notice) else None
        size = self.settings.size or size
        shown = Shown(self._next_pts(pts, now), notice=notice, size=size, timeline=Timeline(processed=now))
        self._encoding.show([shown])

    # -- encoding thread -------------------------------------------------------------------------------

    def picture_left(self, shown: Shown, timeline: Timeline) -> None:
        self.figures.picture_left(shown, timeline, time.monotonic_ns())

    def sound_left(self, pts: int) -> None:
        self.figures.sound_left(pts, time.monotonic_ns())

    def rendition_failed(self, rendition: Rendition, error: HeadraceError) -> None:
        if self._rendition_failed is None:
            self.encoding_failed(error)
        else:
            self._rendition_failed(rendition, error)

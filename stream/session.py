"""One stream from its start to its end: source, pipeline, sinks and side channels under one stop path."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar

from stream.audience import Audience
from stream.decoding import UnitDecoding
from stream.errors import HeadraceError, InvalidInput, ProcessorError, SinkError, SourceError
from stream.ingest import Ingest
from stream.pipeline import Pipeline
from stream.processor import FrameProcessor, Params
from stream.renditions import RenditionHandle
from stream.session_parts import Ending, KeySource, SessionSettings, SideChannels, Source, StreamDecoding
from stream.sinks import Sink
from stream.standing import Standing
from stream.states import Counters, State
from stream.ticking import TickingDecoding
from stream.timeouts import is_cancelled
from stream.units import EncodedUnit, Rendition
from stream.voice import Listener, Voice

__all__ = ["Ending", "Session", "SessionSettings", "SideChannels", "Source", "StreamDecoding"]

log = logging.getLogger(__name__)

DRAIN = 2.0
"""Seconds in which what is under way is put out after a stop."""
LAST_FRAME = 10.0
"""Seconds in which what is under way must be put out after the input's end."""
REPLACING = ("workflow", "prompt", "prompts")
"""Parameters that put something else in place of what runs: those before them no longer hold."""
CLOSE = 3.0
"""Seconds in which each of the closing steps must be done."""


def _replaces(name: str, value: Any) -> bool:
    """A prompt may be a text too, which is a parameter like others."""
    first = value[0] if isinstance(value, list) and value else value
    return name == "workflow" or isinstance(first, Mapping)


class Session:
    """A live stream. `run` is its whole life; `stop` may be called at any time, from anywhere on the loop."""

    FIXED: ClassVar[tuple[str, ...]] = ("width", "height", "max_framerate")
    """Parameters that hold from its start to its end."""

    def __init__(
        self,
        session_id: str,
        source: Source | None,
        processor: FrameProcessor,
        side: SideChannels,
        settings: SessionSettings,
        *,
        start_params: Params | None = None,
        decoding: StreamDecoding | None = None,
    ) -> None:
        self.id = session_id
        self.processor = processor
        self.settings = settings
        self.ending: Ending | None = None
        self.fatal: HeadraceError | None = None
        self.params: Params = dict(start_params or {})
        self.params_updated_at: float | None = None
        self.urls: dict[str, str | None] = {}
        """Where it reads and writes, for its status."""
        self.tracks: tuple[bool, bool] | None = None
        """Whether the source has pictures, and sound, once that is known."""
        self.restarts = 0
        self.restarted_at: float | None = None
        self.restart_logs: str | None = None
        self._running = self._loaded = False
        self._standing = Standing()
        self._source = source
        self._key_source: KeySource | None = source if isinstance(source, KeySource) else None
        self._side = side
        self._voice = Voice(side)
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.decoding = decoding or UnitDecoding(settings.pipeline.encoding.video.hardware)
        self.pipeline = Pipeline(
            self.decoding, processor, settings.pipeline, self._deliver, self._rendition_failed
        )
        if isinstance(self.decoding, UnitDecoding):
            self.decoding.source_changed = self.pipeline.source_changed
            self.decoding.key_wanted = self._key_wanted
        elif isinstance(self.decoding, TickingDecoding):
            self.decoding.tracks = lambda video, audio: self._call(self._tracks, video, audio)
        self._audience = Audience(self.pipeline.encoding, self._fail)
        processor.bind(self._voice.emitted)

    @property
    def pipeline_name(self) -> str:
        """The name that its events carry."""
        return self._voice.name

    @pipeline_name.setter
    def pipeline_name(self, name: str) -> None:
        self._voice.name = name

    @property
    def processor_says(self) -> dict[str, Any]:
        """What the processor has said of itself last (`Voice.processor`)."""
        return self._voice.processor

    @property
    def started(self) -> float:
        """When it was made, in seconds of the monotonic clock."""
        return self._standing.started

    @property
    def started_at(self) -> float:
        """The same in epoch seconds."""
        return self._standing.started_at

    @property
    def state_changed_at(self) -> float:
        """Epoch seconds."""
        return self._standing.changed_at

    @property
    def publisher(self) -> str | None:
        """The name of whoever publishes to it now, where that is not settled from the start."""
        return self._source.publisher if isinstance(self._source, Ingest) else None

    @property
    def problem(self) -> str | None:
        """What is wrong with the input itself, in words."""
        return self.decoding.last_problem or getattr(self._source, "problem", None)

    @property
    def bytes_received(self) -> int:
        """Bytes of media that came in, where the source counts them."""
        return getattr(self._source, "bytes_received", 0)

    @property
    def bytes_sent(self) -> int:
        """Bytes of media that went out, to all sinks that count them."""
        return self._audience.bytes_sent

    @property
    def units_dropped(self) -> int:
        """Encoded units that sinks left out."""
        return self._audience.units_dropped

    # -- what others ask of it -------------------------------------------------------------------------

    def attach(self, sink: Sink, *, essential: bool = False) -> RenditionHandle | None:
        """Let a sink take part, before the session runs or while it does; it begins with a key picture.

        One that is not ``essential`` only leaves when it ends or fails, an essential one ends the session.
        Returns its hold on its rendition, which is closed when it leaves (None: sound only). Raises
        `Conflict` when the session is ending.
        """
        return self._audience.attach(sink, essential=essential)

    def detach(self, sink: Sink) -> None:
        """Ask a sink to end, in a bounded time; it gets no more units. Safe to call twice."""
        self._audience.detach(sink)

    @property
    def sinks(self) -> tuple[Sink, ...]:
        return self._audience.sinks

    def request_input_key(self) -> None:
        """Ask the source for a key picture, where it can be asked; heeded twice a second at most."""
        if self._key_source is not None:
            self._key_source.request_key()

    def listen(self, callback: Listener) -> Callable[[], None]:
        """Be told, on the loop, what the session says; returns what ends that.

        ``callback`` gets a kind and: ``event`` a dict, ``data`` an `Emission`, ``params`` ``{"params",
        "frame"}``, ``ended`` ``{"reason", "error"}`` (the error's `as_dict`, or None), which is the last.
        """
        return self._voice.listen(callback)

    def stop(self, reason: str) -> None:
        """Ask for the end; `run` returns in a bounded time."""
        if self.ending is None:
            self.ending = Ending(reason)
        self._stop.set()

    async def update_params(self, params: Params) -> dict[str, Any]:
        """Apply parameters between two frames, all or none.

        Returns ``{"frame": n}``, the number of the first frame for which they hold. Raises `InvalidInput`
        (nothing changed), or what the processor raised as `ProcessorError`.
        """
        for name in self.FIXED:
            if name in params:
                raise InvalidInput(f"{name} holds from a stream's start to its end", field=name)
        try:
            frame = await self.pipeline.apply(params)
        except HeadraceError:
            raise
        except Exception as error:  # the edge to a processor that is not ours
            log.info("parameters were refused", exc_info=True)
            raise ProcessorError(f"the parameters were refused: {type(error).__name__}: {error}") from error
        if any(_replaces(name, params[name]) for name in REPLACING if name in params):
            self.params = {}
        self.params.update(params)
        self.params_updated_at = time.time()
        self._voice.params_updated(params, frame)
        return {"frame": frame}

    def restarted(self, count: int, logs: Sequence[str]) -> None:
        """The processor's engine was restarted under this session."""
        self._standing.restarted = time.monotonic()
        self.restarts, self.restarted_at, self.restart_logs = count, time.time(), "\n".join(logs)
        self._voice.restarted(count, self.restarted_at, self.restart_logs)

    @property
    def state(self) -> State:
        return self._standing.state(self.counters())

    def counters(self) -> Counters:
        """A snapshot for `session_state`."""
        standing = self._standing
        standing.fatal = self.fatal is not None
        standing.ended = self.ending is not None and not self._running
        return standing.counters(self.pipeline.figures, has_input=self._source is not None)

    # -- its life --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """From the first byte to the last; never raises but for cancellation, `ending` says what happened."""
        self._running = True
        side = asyncio.create_task(self._guarded(self._side.run(self)))
        prepare = asyncio.create_task(self._prepare())
        watch = asyncio.create_task(self._watch_input())
        try:
            await self._run_media()
        except HeadraceError as error:
            self._fail(error)
        except Exception as error:  # the edge of a task: the stream's end must have a reason
            log.exception("session %s broke", self.id)
            self._fail(ProcessorError(f"the session broke: {type(error).__name__}: {error}"))
        finally:
            self._running = False
            for task in (watch, prepare):
                task.cancel()
            await asyncio.gather(watch, prepare, return_exceptions=True)
            await self._close(side)

    async def _run_media(self) -> None:
        pipeline = asyncio.create_task(self.pipeline.run())
        source = asyncio.create_task(self._read())
        stop = asyncio.create_task(self._stop.wait())
        self._audience.start()
        try:
            if self._source is not None:
                await asyncio.wait({pipeline, stop, source}, return_when=asyncio.FIRST_COMPLETED)
            # A frame that does not come back must not keep a stream whose input has ended.
            limit = None if self._source is None else LAST_FRAME
            await asyncio.wait({pipeline, stop}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if pipeline.cancelled():
                raise ProcessorError("the pipeline was cancelled from within")
            source.cancel()
            self.decoding.end()
            await asyncio.wait({pipeline}, timeout=DRAIN)
            await self._audience.close()
        finally:
            for task in (source, pipeline, stop):
                task.cancel()
            results = await asyncio.gather(source, pipeline, stop, return_exceptions=True)
            await self._audience.close(0)
        for result in results:
            if isinstance(result, Exception):
                raise result
        self._end(getattr(self._source, "end_reason", None) or "the input ended")

    async def _read(self) -> None:
        """Read the source to its end; without one, frames come from elsewhere until the stop."""
        if self._source is None:
            return
        try:
            assert isinstance(self.decoding, UnitDecoding)
            await self._source.run(self.decoding.put, self._tracks)
        finally:
            self.decoding.end()

    def _tracks(self, video: bool, audio: bool) -> None:
        self.tracks = (video, audio)
        self.pipeline.expect_video(video)
        self._audience.expect(video, audio)

    def _key_wanted(self) -> None:
        """From the decoding: it waits for a key picture."""
        if self._key_source is not None:
            self._call(self._key_source.request_key)

    async def _prepare(self) -> None:
        """Load the processor and tell it that the stream starts; frames wait for it meanwhile."""
        try:
            await self.processor.load_model()
            self._loaded = True
            await self.processor.on_stream_start(dict(self.params))
        except HeadraceError as error:
            self._load_failed(error)
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            self._load_failed(ProcessorError("loading was cancelled from within"))
        except Exception as error:  # the edge to a processor that is not ours
            log.info("loading failed", exc_info=True)
            self._load_failed(ProcessorError(f"loading failed: {type(error).__name__}: {error}"))
        else:
            self._standing.ready_since = time.monotonic()
            self.pipeline.ready = True

    def _load_failed(self, error: HeadraceError) -> None:
        self.fatal = error
        log.error("session %s: %s", self.id, error.message)
        self._voice.error(error)

    async def _watch_input(self) -> None:
        limit = self.settings.input_timeout
        while limit is not None and self._source is not None:
            await asyncio.sleep(min(1.0, limit / 4))
            since = self._silent_since()
            if since is not None and time.monotonic() - since > limit:
                self.stop(f"no input for {limit:.0f} s")
                return

    def _silent_since(self) -> float | None:
        """Since when there has been no input; None while a source waits for its publisher by itself."""
        last = self.counters().last_input or 0.0
        if not isinstance(self._source, Ingest):
            return max(self.started, last)
        return None if self._source.publisher is None else max(self._source.present_since, last)

    async def _guarded(self, work: Awaitable[str]) -> None:
        """A side channel: its end is the stream's end, its fault the stream's fault."""
        reason = "a side channel broke"
        try:
            reason = await work
        except HeadraceError as error:
            self._fail(error)
        except Exception as error:  # the edge of a task: the stream must not go on unsteered
            log.exception("a side channel of session %s broke", self.id)
            self._fail(ProcessorError(f"a side channel broke: {type(error).__name__}: {error}"))
        self.stop(reason)

    def _fail(self, error: HeadraceError) -> None:
        log.error("session %s: %s", self.id, error.message)
        self.fatal = error
        if self.ending is None or self.ending.error is None:
            self.ending = Ending(error.message, error)
        if isinstance(error, (SourceError, SinkError)) or self._running:
            self._voice.error(error)
        self._stop.set()

    def _end(self, reason: str) -> None:
        if self.ending is None:
            self.ending = Ending(reason)

    async def _close(self, side: asyncio.Task[None]) -> None:
        """The last steps, each bounded; one that fails does not keep the others from being taken."""
        if self._loaded:
            await self._bounded(self.processor.on_stream_stop(), self.settings.on_stream_stop_timeout)
        self.processor.bind(None)
        self._end("stopped")
        assert self.ending is not None
        self._voice.ended(self.ending.reason, self.ending.error)
        await self._bounded(self._side.close(), CLOSE)
        side.cancel()
        await asyncio.gather(side, return_exceptions=True)
        log.info("session %s ended: %s", self.id, self.ending.reason)

    async def _bounded(self, work: Awaitable[None], seconds: float) -> None:
        try:
            await asyncio.wait_for(work, seconds)
        except TimeoutError:
            log.warning("session %s: a closing step took over %.0f s and was given up", self.id, seconds)
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            log.warning("session %s: a closing step was cancelled from within", self.id)
        except Exception:  # the edge to a processor that is not ours
            log.warning("session %s: a closing step failed", self.id, exc_info=True)

    # -- what comes out of the pipeline ----------------------------------------------------------------

    def _deliver(self, units: list[EncodedUnit]) -> None:
        """In the encoding thread."""
        self._call(self._audience.offer, units)

    def _rendition_failed(self, rendition: Rendition, error: HeadraceError) -> None:
        """In the encoding thread."""
        self._call(self._audience.rendition_failed, rendition, error)

    def _call(self, function: Callable[..., object], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            # The loop has ended, and this session with it.
            pass

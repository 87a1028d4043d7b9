"""The stand-in for a processor that runs in an engine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from headrace.engine.client_session import RemoteSession
from headrace.engine.guardian import Engine
from headrace.engine.host_errors import rebuild
from headrace.engine.link import Message
from stream.errors import EngineError, HeadraceError, ProcessorError
from stream.frames import AudioFrame, VideoFrame
from stream.processor import AudioResult, Emission, FrameProcessor, Params, ProcessorInfo, VideoResult
from workflows.graph import looks_like_graph
from workflows.processor import WORKFLOW_KEYS

log = logging.getLogger(__name__)

T = TypeVar("T")
Phase = Literal["stopped", "starting", "loading", "ready", "restarting", "failed"]

_PATIENCE = 2
"""Calls are given up after so many times ``call_timeout``, while the engine may still be working on them."""
_RETRY = 5.0
"""Seconds until a session that could not be opened again after a restart is tried once more."""
_MAX_DEATHS = 3
"""Engines in a row that may end while they open a session; then it is given up, so that others go on."""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """Where a session stands, for an overlay or a status page. ``percent`` is 0 to 100 where it is known."""

    phase: Phase
    message: str
    percent: float | None = None


class EngineProcessor(FrameProcessor):
    """A `FrameProcessor` whose work is done by an engine.

    ``spec`` says what to run (`headrace.engine.processors`). While the engine or the session is not there,
    frames raise `EngineError` at once; after a restart the session is opened again with the latest
    parameters, and frames flow as before. ``complete`` turns changed parameters into what the engine is told,
    and raises for what it cannot be told.
    """

    def __init__(
        self,
        engine: Engine,
        spec: dict[str, Any],
        *,
        session: str,
        params: Params | None = None,
        complete: Callable[[Params], Params] | None = None,
    ) -> None:
        super().__init__()
        self.session = session
        self._complete = complete or dict
        self.params_frame = 0
        """The first frame, counted from 0 at the session's opening, for which the parameters hold."""
        self._engine = engine
        self._spec = spec
        self._initial: Params = dict(params or {})
        self._params = self._initial
        self._load: dict[str, Any] = {}
        self._info = ProcessorInfo()
        self._remote: RemoteSession | None = None
        self._failure: HeadraceError | None = None
        self._progress: tuple[str, float | None] = ("", None)
        self._want_start = self._was_started = False
        self._deaths = 0
        """Engines in a row that ended while this session was being opened."""
        self._changed = asyncio.Event()
        self._moved: set[asyncio.Event] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] | None = None

    # -- life ------------------------------------------------------------------------------------------

    async def load_model(self, **kwargs: Any) -> None:
        """Open the session and return when its model is loaded, however often the engine starts meanwhile.

        Raises what the engine answered for good (`InvalidWorkflow`, `ProcessorError`), `NotInstalled`, and
        `EngineError` when the engine is stopped. Nothing is held after an error or a cancellation.
        """
        self._load = kwargs
        await self._reach(lambda remote: remote.loaded)

    async def on_stream_start(self, params: Params) -> None:
        """Start the stream with ``params``; returns and raises as `load_model` does."""
        self._params = {**self._initial, **params}
        self._want_start = True
        await self._reach(lambda remote: remote.started)

    async def on_stream_stop(self) -> None:
        """Close the session; bounded by the engine's ``stop_timeout``."""
        remote = self._remote
        try:
            await self._end_keeper()
            if remote is not None:
                await remote.close(self._engine.settings.stop_timeout)
        finally:
            self._release()

    async def wait_ready(self, timeout: float) -> None:
        """Return when frames can be processed.

        Raises `EngineError` after ``timeout`` seconds, and at once what makes waiting pointless: the error
        of the opening, or `NotInstalled`.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._until(lambda remote: remote.started)
        except TimeoutError:
            raise EngineError(f"{self.status.message}; not ready within {timeout:g} s") from None

    # -- what is to be known ---------------------------------------------------------------------------

    @property
    def status(self) -> EngineStatus:
        engine = self._engine
        if self._failure is not None:
            return EngineStatus("failed", self._failure.message)
        if engine.state != "ready":
            return EngineStatus(engine.state, engine.describe())
        remote = self._remote
        if remote is not None and remote.started and remote.usable:
            return EngineStatus("ready", "ready")
        if self._keeper is None:
            return EngineStatus("stopped", "the session is not open")
        text, percent = self._progress
        parts = ["loading", f"{percent:.0f} %" if percent is not None else "", text]
        return EngineStatus("loading", " ".join(part for part in parts if part), percent)

    def progress(self) -> tuple[str, float | None]:
        status = self.status
        return status.message, None if status.percent is None else status.percent / 100

    def info(self) -> ProcessorInfo:
        """Which media the processor touches, and its parameters; until it is loaded once, video alone."""
        return self._info

    @property
    def engine(self) -> Engine:
        """Where it runs."""
        return self._engine

    @property
    def spec(self) -> dict[str, Any]:
        """What runs, as the next engine would be told of it."""
        return self._spec

    @property
    def params(self) -> Params:
        """The parameters that hold on top of that, by the names under which they were given."""
        return dict(self._params)

    @property
    def pixel_format(self) -> str:
        """How the engine wants pictures to come, to spare a conversion: ``rgb24`` or ``yuv420p``."""
        return "rgb24" if self._engine.facts is None else self._engine.facts.pixel_format

    # -- frames and parameters -------------------------------------------------------------------------

    async def process_video_async(self, frame: VideoFrame) -> VideoResult:
        """One frame through the engine; ``frame`` itself when the processor left it as it was.

        Raises `EngineError` when the engine is not there or went away, else what the processor raised.
        """
        remote = self._usable()
        return await self._bounded(remote.video(frame))

    async def process_audio_async(self, frame: AudioFrame) -> AudioResult:
        """The same for a stretch of sound."""
        remote = self._usable()
        return await self._bounded(remote.audio(frame))

    async def prepare_params(self, params: Params) -> None:
        """Have the processor prepare a change beside its frames, within the engine's ``open_timeout``.

        Raises what the processor raised, or `EngineError` while it is not there.
        """
        work = self._usable().prepare_params(self._complete(params))
        await self._bounded(work, self._engine.settings.open_timeout)

    async def update_params(self, params: Params) -> None:
        """Change parameters between two frames; `params_frame` then says from which on they hold.

        Raises what the processor raised, or `EngineError` while it is not there; in both cases those before
        stay in force.
        """
        remote, params = self._usable(), self._complete(params)
        work = remote.update_params(params)
        # Also when the answer comes after the caller has given up.
        work.add_done_callback(lambda done: self._on_updated(remote, params, done))
        self.params_frame = await self._bounded(work)

    def _on_updated(self, remote: RemoteSession, params: Params, work: asyncio.Task[int]) -> None:
        if self._remote is remote and not work.cancelled() and work.exception() is None:
            self._remember(params)
            self._info = remote.info

    def _remember(self, params: Params) -> None:
        """For the next engine, without the values that were for a workflow which has been replaced."""
        key = replacing(params) if self._spec.get("kind") == "workflow" else None
        if key is None:
            self._params = {**self._params, **params}
        else:
            # What the operator was trusted with ends with his workflow.
            kept = {name: value for name, value in self._spec.items() if name != "trusted"}
            self._spec = {**kept, "workflow": params[key]}
            self._params = {name: value for name, value in params.items() if name != key}

    def _usable(self) -> RemoteSession:
        remote = self._remote
        if self._failure is None and remote is not None and remote.started and remote.usable:
            return remote
        if self._failure is not None and not isinstance(self._failure, EngineError):
            raise self._failure
        message, progress = self.progress()
        raise EngineError(message, progress=progress)

    async def _bounded(self, work: asyncio.Task[T], limit: float | None = None) -> T:
        """Await ``work``, which goes on by itself when this gives up: the engine may be using its memory."""
        limit = limit or self._engine.settings.call_timeout * _PATIENCE
        try:
            async with asyncio.timeout(limit) as deadline:
                return await asyncio.shield(work)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise EngineError(f"the engine is busy; no answer within {limit:g} s") from None

    # -- keeping the session open ----------------------------------------------------------------------

    async def _reach(self, reached: Callable[[RemoteSession], bool]) -> None:
        if self._keeper is None:
            self._failure = None
            self._unsubscribe = self._engine.subscribe(lambda _: self._move())
            self._keeper = asyncio.create_task(self._keep_open(), name=f"engine session {self.session}")
        self._move()
        try:
            await self._until(reached)
        except BaseException:
            # Whoever fails to open is not asked to close.
            self._release()
            raise

    async def _until(self, reached: Callable[[RemoteSession], bool]) -> None:
        moved = asyncio.Event()
        self._moved.add(moved)
        try:
            while True:
                moved.clear()
                if self._failure is not None:
                    raise self._failure
                if self._engine.missing_package and self._engine.failure is not None:
                    raise self._engine.failure
                if self._engine.state == "stopped":
                    raise EngineError(self._engine.describe())
                remote = self._remote
                if remote is not None and remote.usable and reached(remote):
                    return
                await moved.wait()
        finally:
            self._moved.discard(moved)

    async def _keep_open(self) -> None:
        """Open the session in every new engine; ends with an error of the very first opening, and when
        opening it ends one engine after the other."""
        while True:
            self._changed.clear()
            try:
                # Whom the last engine may have died of is opened alone, so that nobody else is blamed.
                async with self._engine.suspects if self._deaths else contextlib.nullcontext():
                    await self._try_to_open()
            except HeadraceError as error:
                failure = error
            else:
                await self._changed.wait()
                continue
            if isinstance(failure, EngineError) and (self._remote is None or not self._remote.usable):
                log.debug("session %s lost its engine: %s", self.session, failure.message)
                if self._deaths < _MAX_DEATHS:
                    continue
                self._fail(
                    ProcessorError(
                        f"the engine ended {self._deaths} times in a row while opening this session; it "
                        f"is not tried again. The last time: {failure.message}"
                    )
                )
                return
            self._fail(failure)
            if not self._was_started:
                return
            # It worked before: what stands in the way now may go away.
            await asyncio.sleep(_RETRY)
            self._failure = None

    async def _try_to_open(self) -> None:
        """Take the session as far as is wanted, if there is an engine; counts engines that end of it."""
        remote = self._remote
        if remote is not None and not remote.usable:
            remote.release()
            remote = self._remote = None
        if self._engine.state != "ready":
            return
        try:
            await self._open(remote)
        except EngineError:
            self._deaths += self._is_bereft()
            raise
        self._deaths = 0

    def _is_bereft(self) -> bool:
        """Whether the engine that the session was to be opened in is gone, without having been told to."""
        remote = self._remote
        return remote is not None and not remote.usable and self._engine.state != "stopped"

    async def _open(self, remote: RemoteSession | None) -> None:
        if remote is None:
            self._progress = ("", None)
            remote = self._remote = RemoteSession(self._engine, self.session, self._on_message)
        if not remote.loaded:
            await remote.load(self._spec, self._load)
            self._info = remote.info
            self._tell()
        if self._want_start and not remote.started:
            await remote.start(self._params)
            self._was_started = True
            self._remember(self._params)
            self._info = remote.info
            self._tell()

    def _fail(self, error: HeadraceError) -> None:
        log.error("session %s cannot be opened: %s", self.session, error.message)
        self._failure = error
        if self._remote is not None:
            self._remote.release()
            self._remote = None
        self._tell()

    def _move(self) -> None:
        """Something changed: look at it in the keeper, and tell those who wait."""
        self._changed.set()
        self._tell()

    def _tell(self) -> None:
        for event in self._moved:
            event.set()

    async def _end_keeper(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    def _release(self) -> None:
        """Free everything without waiting; the engine is told to close what it still has."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        remote, self._remote = self._remote, None
        if remote is not None:
            remote.release()
        self._want_start = self._was_started = False
        self._deaths = 0
        self._tell()

    def _on_message(self, message: Message) -> None:
        body = message.body
        if message.op == "progress":
            text, percent = body.get("message"), body.get("percent")
            known = isinstance(percent, (int, float)) and 0 <= percent <= 100
            self._progress = (
                text if isinstance(text, str) else "",
                float(percent) if known and percent is not None else None,
            )
            return
        if message.op == "closed":
            # The engine has given the session up; another would fare no better.
            if self._keeper is not None:
                self._keeper.cancel()
            self._fail(rebuild(body.get("error")))
            return
        kind, data, moment = body.get("kind"), body.get("data"), body.get("time")
        timed = moment is None or isinstance(moment, (int, float))
        if kind not in ("text", "data", "event") or not timed or (kind == "event" and type(data) is not dict):
            # The engine's host refuses such; raising here would hit the link, not the processor.
            log.warning("session %s: dropped an emission of kind %r at %r", self.session, kind, moment)
        elif self._emit_sink is not None:
            self._emit_sink(Emission(kind, data, moment))


def replacing(params: Params) -> str | None:
    """The key under which accepted parameters bring another workflow; not a node of that name."""
    for key in WORKFLOW_KEYS:
        value = params.get(key)
        if value is not None and not (isinstance(value, Mapping) and not looks_like_graph(value)):
            return key
    return None

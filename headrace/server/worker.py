"""What a worker is made of: sessions, engines, and what stands beside them; and its life."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Coroutine, Mapping
from typing import Any

from headrace.batch import setup as batch
from headrace.batch.front import Front
from headrace.checking.object_info import elsewhere
from headrace.comfyui.setup import ComfyBeside
from headrace.engine.client import EngineProcessor
from headrace.engine.guardian import Engine
from headrace.engine.settings import EngineSettings
from headrace.library.names import Library
from headrace.models.holder_service import HolderService
from headrace.models.ledger_service import LedgerService
from headrace.models.live_memory import watch_memory
from headrace.models.live_models import watch_models
from headrace.nodes.custom import CustomNodes
from headrace.nodes.packs import home_for
from headrace.server.definitions import WorkerDefinitions
from headrace.server.demo import DEFAULT_WORKFLOW, Demo
from headrace.server.pipelines import processor_of
from headrace.server.registration import make_registrar
from headrace.server.runs import RunLimits, Runs
from headrace.server.specs import Spec, Specs
from headrace.server.stopping import ENGINE, SESSIONS, each_step
from headrace.server.webrtc import WebRtc
from headrace.settings import Settings
from headrace.version import package_version
from stream.codecs.audio_encoder import AudioEncoderSettings
from stream.codecs.video_encoder import VideoEncoderSettings
from stream.encoding_parts import EncodingSettings
from stream.heap import HeapTrimmer
from stream.hosts import HostRules
from stream.ingest import Ingest
from stream.metrics import EngineFigures, Metrics
from stream.overlay import OverlaySettings
from stream.pattern import PatternSettings
from stream.pausing import Pausable, innermost
from stream.pipeline import PipelineSettings
from stream.processor import FrameProcessor, Params
from stream.recording.folder import RecordingFolder
from stream.recording.recorder import Recorder
from stream.recording.writer import RecordingLimits
from stream.requests import MediaParams, StreamStart, take_media_params
from stream.session import Session, SessionSettings, SideChannels
from stream.session_feed import Feeds
from stream.states import Health, worker_health
from stream.status import session_report
from stream.table import SessionTable
from stream.trickle.live import trickle_session


@dataclasses.dataclass(frozen=True, slots=True)
class _Start:
    """A request for a session, checked."""

    media: MediaParams
    spec: Spec
    params: Params


class Worker:
    """What the routes act on: the session table and the live engine."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.table = SessionTable(settings.capacity, session_report)
        self.holders = HolderService(settings.share_weights)
        self.engine = Engine(engine_settings(settings, self.holders.addresses))
        self.holders.watch(self.engine)
        self.definitions = WorkerDefinitions(settings.input_folder, settings.models_folder)
        if settings.object_info is not None:
            self.definitions.elsewhere = elsewhere(settings.object_info)
        self.library = Library(settings.workflows)
        self.specs = Specs(
            self.definitions, local=self.engine.settings.python is None, named=self.library.load
        )
        self._processor = processor_of(settings)
        self.custom_nodes = (
            CustomNodes(settings.custom_nodes, self.definitions)
            if settings.custom_nodes is not None
            else None
        )
        if self.custom_nodes is not None:
            self.custom_nodes.watch(self.engine)
        self.ledger = LedgerService(settings.models_budget) if settings.batch else None
        self.comfyui = ComfyBeside(self, self.ledger) if settings.comfyui is not None else None
        self._unsubscribe = [engine.subscribe(self._engine_changed) for engine in self.engines]
        self._hosts = HostRules(settings.allowed_hosts)
        self.metrics = Metrics(
            self.table,
            version=package_version(),
            per_session=settings.session_metrics,
            engines=lambda: [engine_figures(engine) for engine in self.engines],
        )
        self.webrtc = WebRtc(self, settings)
        self.feeds = Feeds()
        self.recorder = Recorder(
            RecordingFolder(settings.recordings) if settings.recordings is not None else None,
            RecordingLimits(settings.recording_limit, settings.recording_reserve),
        )
        self._heap = HeapTrimmer()
        self.table.on_ended.append(self._heap.session_ended)
        self.batch = self._make_front() if settings.batch else None
        self.runs = Runs(self._make_run_engine, run_limits(settings), self._run_elsewhere)
        self.demo = self._make_demo() if settings.demo else None
        self.registrar = make_registrar(self)

    # -- for the routes --------------------------------------------------------------------------------

    async def prepare(self, request: StreamStart) -> _Start:
        """Check a workflow in a thread: a large one takes a tenth of a second."""
        return await asyncio.to_thread(self._start_of, request)

    def _start_of(self, request: StreamStart) -> _Start:
        media, rest = take_media_params(request.params or {})
        spec, params = self.specs.of_start(
            rest,
            default=self.settings.workflow if self._processor is None else self._processor,
            allow_processors=self.settings.allow_processors,
        )
        return _Start(media, spec, params)

    def make_session(
        self,
        session_id: str,
        request: StreamStart,
        *,
        ingest: Ingest | None = None,
        side: SideChannels | None = None,
        prepared: _Start | None = None,
    ) -> Session:
        """A session whose processor runs in the engine, over trickle where ``request`` says so; others may
        publish to it by ``ingest``, and ``side`` may take the place of its side channels."""
        for name in ("subscribe", "publish", "control", "events", "data"):
            if url := request.url(name):
                self._hosts.check_url(url, f"{name}_url")
        self._hosts.bind()
        settings, start = self.settings, prepared or self._start_of(request)
        processor = self.make_processor(start.spec, session_id, start.params)
        # The default size is what gateways expect of trickle streams; cameras and OBS keep their own.
        pipeline = self._pipeline_settings(start.media, sized=ingest is None)
        session = trickle_session(
            session_id,
            request,
            Pausable(processor),
            SessionSettings(pipeline=pipeline, input_timeout=settings.input_timeout),
            start_params=start.params,
            verify_tls=settings.verify_tls,
            ingest=ingest,
            side=side,
        )
        session.pipeline_name = request.model_id or settings.model_id
        return session

    def make_processor(self, spec: Spec, session_id: str, params: Params | None = None) -> FrameProcessor:
        """The stand-in for what ``spec`` describes, in whichever engine that runs."""
        if self.comfyui is not None:
            return self.comfyui.processor(spec, session=session_id, params=params)
        complete = self.specs.completing(spec)
        return EngineProcessor(self.engine, spec, session=session_id, params=params, complete=complete)

    @property
    def engines(self) -> list[Engine]:
        """Our live engine, and those in an existing ComfyUI."""
        return [self.engine, *(self.comfyui.service.engines if self.comfyui is not None else ())]

    def _pipeline_settings(self, media: MediaParams, *, sized: bool) -> PipelineSettings:
        """``sized``: a stream that names no size gets the default one, else it keeps its source's."""
        settings = self.settings
        return PipelineSettings(
            width=media.width or (settings.width if sized else None),
            height=media.height or (settings.height if sized else None),
            max_fps=media.max_framerate or settings.max_framerate,
            overlay=OverlaySettings(enabled=settings.overlay),
            encoding=EncodingSettings(
                video=VideoEncoderSettings(
                    bitrate=settings.bitrate,
                    preset=settings.preset,
                    hardware=settings.hardware,
                    quality=settings.quality,
                ),
                audio=AudioEncoderSettings(),
                viewers=self.webrtc.viewer_bitrates,
            ),
        )

    def _make_front(self) -> Front:
        assert self.ledger is not None
        live = self.engine if self.settings.one_engine else None
        if live is None:
            watch_memory(self.engine, self.ledger)
            watch_models(self.engine, self.ledger)
        else:
            watch_models(self.engine, self.ledger, name=f"{live.settings.name} streams")
        return batch.make_front(self.settings, holders=self.holders, ledger=self.ledger, live=live)

    def _run_elsewhere(self, spec: Spec, name: str, params: Params) -> FrameProcessor | None:
        if spec.get("engine") is None or self.comfyui is None:
            return None
        return self.comfyui.processor(spec, session=name, params=params)

    def _make_run_engine(self) -> Engine:
        settings = self.settings
        cores = len(os.sched_getaffinity(0))
        made = dataclasses.replace(
            engine_settings(settings, self.holders.addresses),
            name="runs",
            threads=settings.engine_threads or max(1, cores - 1),
            nice=10,
            # Nobody watches: a slow model on a CPU may take minutes for a frame.
            call_timeout=settings.batch_timeout,
        )
        engine = Engine(made)
        self.holders.watch(engine)
        if self.ledger is not None:
            watch_memory(engine, self.ledger)
            watch_models(engine, self.ledger, live=False)
        if self.custom_nodes is not None:
            self.custom_nodes.watch(engine)
        return engine

    def _make_demo(self) -> Demo:
        settings = self.settings
        return Demo(
            self.engine,
            self.table,
            self._pipeline_settings(MediaParams(None, None, None), sized=False),
            self.specs,
            workflow=settings.workflow if "workflow" in settings.model_fields_set else DEFAULT_WORKFLOW,
            processor=self._processor,
            make=self.make_processor,
            pattern=PatternSettings(fps=settings.demo_fps),
        )

    def health(self) -> Health:
        return worker_health(
            self.table.states(), engine_ready=self.ready(), engine_failed=self.engine.state == "failed"
        )

    def ready(self) -> bool:
        return self.engine.state == "ready"

    def problem(self) -> str | None:
        failed = [engine.describe() for engine in self.engines if engine.state == "failed"]
        return "; ".join(failed) or None

    # -- life ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        await self.engine.start()
        if self.comfyui is not None:
            await self.comfyui.service.start()
        if self.demo is not None:
            await self.demo.start()
        if self.registrar is not None:
            self.registrar.start()

    async def stop(self) -> None:
        """End everything within the times of `headrace.server.stopping`."""
        try:
            # At the same time: a session that ends closes its peers anyway.
            sessions = self.table.close("the worker is shutting down", SESSIONS)
            steps: dict[str, Coroutine[Any, Any, Any]] = {
                "peers": self.webrtc.close(),
                "sessions": sessions,
            }
            if self.registrar is not None:
                steps["registration"] = self.registrar.stop()
            await each_step(steps)
        finally:
            self._heap.close()
            for unsubscribe in self._unsubscribe:
                unsubscribe()
            steps = {"recordings": self.recorder.close(), "the live engine": self.engine.stop()}
            steps["runs"] = self.runs.stop()
            if self.comfyui is not None:
                steps["ComfyUI"] = self.comfyui.service.stop()
            if self.batch is not None:
                steps["batch"] = self.batch.stop()
            try:
                await each_step(steps)
            finally:
                await self.holders.close()

    def _engine_changed(self, engine: Engine) -> None:
        if engine.state == "restarting":
            for session in self.table:
                processor = innermost(session.processor)
                if isinstance(processor, EngineProcessor) and processor.engine is not engine:
                    continue
                session.restarted(engine.restarts + 1, engine.last_lines)


def engine_settings(settings: Settings, holders: Mapping[str, str] | None = None) -> EngineSettings:
    """The engine's part of a worker's settings; ``holders`` as in `EngineSettings`."""
    return EngineSettings(
        name="live",
        python=(settings.engine_python,) if settings.engine_python else None,
        device=settings.engine_device,
        threads=settings.engine_threads or 1,
        call_timeout=settings.call_timeout,
        stop_timeout=ENGINE,
        holders=holders or {},
        home=home_for(settings.custom_nodes),
    )


def run_limits(settings: Settings) -> RunLimits:
    """What a worker's settings allow to runs of workflows as requests."""
    return RunLimits(settings.batch_queue, settings.batch_timeout, settings.clip_seconds)


def engine_figures(engine: Engine) -> EngineFigures:
    """What `/metrics` tells of an engine."""
    return EngineFigures(engine.settings.name, engine.state, engine.restarts, engine.open_calls, engine.rss)

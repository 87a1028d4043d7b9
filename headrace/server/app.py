"""The worker: HTTP application, sessions, and the engine behind them."""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import ipaddress
import logging
import signal
from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from headrace.engine.client import EngineProcessor
from headrace.engine.guardian import Engine
from headrace.engine.settings import EngineSettings
from headrace.server.demo import DEFAULT_WORKFLOW, Demo
from headrace.server.page import FILES, PageRoutes
from headrace.server.specs import spec_from_params
from headrace.settings import Settings
from stream.codecs.audio_encoder import AudioEncoderSettings
from stream.codecs.video_encoder import VideoEncoderSettings
from stream.encoding import EncodingSettings
from stream.errors import InvalidInput, Unauthorized
from stream.overlay import OverlaySettings
from stream.pipeline import PipelineSettings
from stream.preview import PreviewRoutes
from stream.requests import MediaParams, StreamStart, take_media_params
from stream.routes import MAX_BODY, StreamRoutes
from stream.session import Session, SessionSettings
from stream.states import Health, worker_health
from stream.status import session_report
from stream.table import SessionTable
from stream.trickle.live import trickle_session

log = logging.getLogger(__name__)

OPEN_ROUTES = frozenset({"/health", *FILES})
SHUTDOWN = 15.0


class Worker:
    """What the routes act on: the session table and the live engine."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.table = SessionTable(settings.capacity, session_report)
        self.engine = Engine(engine_settings(settings))
        self._unsubscribe = self.engine.subscribe(self._engine_changed)
        self.demo = self._make_demo() if settings.demo else None

    # -- for the routes --------------------------------------------------------------------------------

    def make_session(self, session_id: str, request: StreamStart) -> Session:
        """A trickle session whose processor runs in the engine."""
        media, rest = take_media_params(request.params or {})
        settings = self.settings
        spec, params = spec_from_params(
            rest, default=settings.workflow, allow_processors=settings.allow_processors
        )
        processor = EngineProcessor(self.engine, spec, session=session_id, params=params)
        pipeline = self._pipeline_settings(media)
        session = trickle_session(
            session_id,
            request,
            processor,
            SessionSettings(pipeline=pipeline, input_timeout=settings.input_timeout),
            start_params=params,
            verify_tls=settings.verify_tls,
        )
        session.pipeline_name = request.model_id or "headrace"
        return session

    def _pipeline_settings(self, media: MediaParams) -> PipelineSettings:
        settings = self.settings
        return PipelineSettings(
            width=media.width or settings.width,
            height=media.height or settings.height,
            max_fps=media.max_framerate or settings.max_framerate,
            overlay=OverlaySettings(enabled=settings.overlay),
            encoding=EncodingSettings(
                video=VideoEncoderSettings(
                    bitrate=settings.bitrate, preset=settings.preset, hardware=settings.hardware
                ),
                audio=AudioEncoderSettings(),
            ),
        )

    def _make_demo(self) -> Demo:
        settings = self.settings
        pipeline = self._pipeline_settings(MediaParams(None, None, None))
        return Demo(
            self.engine,
            self.table,
            # The pattern is drawn at its own size.
            dataclasses.replace(pipeline, width=None, height=None),
            workflow=settings.workflow if "workflow" in settings.model_fields_set else DEFAULT_WORKFLOW,
        )

    def health(self) -> Health:
        return worker_health(
            self.table.states(), engine_ready=self.ready(), engine_failed=self.engine.state == "failed"
        )

    def ready(self) -> bool:
        return self.engine.state == "ready"

    def problem(self) -> str | None:
        return self.engine.describe() if self.engine.state == "failed" else None

    # -- life ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        await self.engine.start()
        if self.demo is not None:
            await self.demo.start()

    async def stop(self) -> None:
        await self.table.close("the worker is shutting down")
        self._unsubscribe()
        await self.engine.stop()

    def _engine_changed(self, engine: Engine) -> None:
        if engine.state == "restarting":
            for session in self.table:
                session.restarted(engine.restarts + 1, engine.last_lines)


def engine_settings(settings: Settings) -> EngineSettings:
    """The engine's part of a worker's settings."""
    return EngineSettings(
        name="live",
        python=(settings.engine_python,) if settings.engine_python else None,
        device=settings.engine_device,
        threads=settings.engine_threads or 1,
        call_timeout=settings.call_timeout,
    )


def build_app(worker: Worker) -> web.Application:
    """The HTTP application over ``worker``; does not start it."""
    app = web.Application(middlewares=[_authorise(worker.settings)], client_max_size=MAX_BODY)
    StreamRoutes(worker).register(app)
    PreviewRoutes(worker.table).register(app)
    PageRoutes(worker).register(app)
    return app


def _authorise(settings: Settings) -> Middleware:
    """Ask for the bearer token before the body is read (RFC 6750)."""
    token = settings.token.get_secret_value().encode() if settings.token else None

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if token is not None and request.path not in OPEN_ROUTES:
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token):
                error = Unauthorized("this worker asks for a bearer token in the Authorization header")
                body = {"status": "error", "detail": {"msg": error.message}, **error.as_dict()}
                return web.json_response(body, status=401, headers={"WWW-Authenticate": "Bearer"})
        return await handler(request)

    return middleware


def check_exposure(settings: Settings) -> None:
    """Refuse to listen on other machines' networks without a token."""
    if settings.token is not None or settings.host == "localhost":
        return
    try:
        loopback = ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise InvalidInput(
            f"host {settings.host!r} is reachable from other machines: set a token (HEADRACE_TOKEN), "
            "or listen on 127.0.0.1",
            field="host",
        )


async def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Run a worker until SIGINT or SIGTERM; a second signal ends it at once.

    ``announce`` gets the URL once it listens. Raises `OSError` when the port is taken.
    """
    check_exposure(settings)
    worker = Worker(settings)
    runner = web.AppRunner(build_app(worker), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _asked_to_stop, stop, number)
    try:
        site = web.TCPSite(runner, settings.host, settings.port, reuse_address=True)
        await site.start()
        await worker.start()
        announce(_url_of(runner))
        await stop.wait()
        log.info("stopping: streams are finished first; a second signal ends it at once")
    finally:
        await asyncio.wait_for(worker.stop(), SHUTDOWN)
        await runner.cleanup()


def _asked_to_stop(stop: asyncio.Event, number: signal.Signals) -> None:
    if stop.is_set():
        raise SystemExit(128 + number)
    stop.set()


def _url_of(runner: web.AppRunner) -> str:
    host, port = runner.addresses[0][:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"

"""`StreamServer`: a processor behind HTTP, as an orchestrator calls it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from byoc.api import StreamStartRequest, checked_params
from byoc.client import TrickleClient
from byoc.frame_overlay import OverlayConfig
from byoc.frame_skipper import FrameSkipConfig
from byoc.pool import ProcessorPool, Supply
from byoc.protocol import TrickleProtocol
from byoc.request_handlers import RequestHandler, handlers_of
from byoc.routes import ProcessorRoutes
from byoc.service import CapabilityService
from byoc.sessions import StreamSettings
from byoc.state import PipelineState, StreamState
from byoc.threads import LoopThread
from byoc.utils.hardware import HardwareInfo
from byoc.version import __version__
from stream.access import guard
from stream.errors import InvalidInput
from stream.heap import HeapTrimmer, settle
from stream.ingest import Ingest
from stream.logs import configure
from stream.machine import Identity, MachineRoutes
from stream.metrics import Metrics
from stream.processor import FrameProcessor, Params
from stream.requests import StreamStart
from stream.routes import MAX_BODY
from stream.session import Session, SideChannels
from stream.states import Health, worker_health
from stream.status import session_report
from stream.table import SessionTable

__all__ = ["RouteConfig", "StreamServer"]

log = logging.getLogger(__name__)

SHUTDOWN = 8.0
"""Seconds in which the streams must have ended when the server stops."""

Hook = Callable[[web.Application], Awaitable[None]]


@dataclass
class RouteConfig:
    """A route of the author's own; ``kwargs`` go to aiohttp's `add_route`."""

    method: str
    path: str
    handler: Callable[..., Any]
    kwargs: dict[str, Any] | None = None


class StreamServer:
    """Serves ``frame_processor``: an instance serves one stream, a class or factory up to ``capacity``.

    The processor's coroutines all run in a thread of its own. ``token``: every route that acts asks for it
    (a registration carries it). ``device``: where the tensors of frames are made (``cuda``: pictures are
    uploaded as YUV, converted there, and back there too). ``verify_tls``: whether the certificates of trickle
    servers are checked.
    Where ``ORCH_URL`` and ``ORCH_SECRET`` are set and the capability has a name, it registers with that
    orchestrator and keeps the registration true. Methods marked by `byoc.request_handler` answer batch
    requests, as do ``request_handlers``. ``app`` is an ordinary aiohttp application, to which hooks and
    routes may be added before the start.
    """

    def __init__(
        self,
        frame_processor: Supply,
        port: int = 8000,
        pipeline: str = "",
        capability_name: str = "",
        version: str = "0.0.1",
        custom_routes: Sequence[RouteConfig | Mapping[str, Any]] | None = None,
        middleware: Sequence[Any] | None = None,
        cors_config: Mapping[str, Any] | None = None,
        static_routes: Sequence[Mapping[str, Any]] | None = None,
        app_context: Mapping[Any, Any] | None = None,
        health_check_interval: float = 5.0,
        enable_default_routes: bool = True,
        route_prefix: str = "/",
        host: str = "0.0.0.0",
        on_startup: Sequence[Hook] | None = None,
        on_shutdown: Sequence[Hook] | None = None,
        publisher_timeout: float | None = None,
        subscriber_timeout: float | None = None,
        app_kwargs: Mapping[str, Any] | None = None,
        frame_skip_config: FrameSkipConfig | None = None,
        overlay_config: OverlayConfig | None = None,
        *,
        capacity: int | None = None,
        token: str | None = None,
        verify_tls: bool = False,
        allowed_hosts: Sequence[str] = (),
        input_timeout: float | None = 60.0,
        send_data_interval: float | None = 0.333,
        request_handlers: Sequence[RequestHandler] = (),
        device: str | None = None,
    ) -> None:
        self.state = StreamState()
        self.pool = ProcessorPool(frame_processor, self.state, capacity, device)
        self.frame_processor = frame_processor
        self.host = host
        self.port = port
        self.pipeline = pipeline or os.environ.get("PIPELINE") or "byoc"
        environment = os.environ.get("CAPABILITY_NAME") or os.environ.get("MODEL_ID") or ""
        self.capability_name = capability_name or environment
        self.version = version
        self.health_check_interval = health_check_interval
        self.enable_default_routes = enable_default_routes
        self.route_prefix = route_prefix
        self.publisher_timeout = publisher_timeout
        self.subscriber_timeout = subscriber_timeout
        self.frame_skip_config = frame_skip_config
        self.overlay_config = overlay_config
        self.hardware_info = HardwareInfo()
        self.current_client: TrickleClient | None = None
        self.current_params: StreamStartRequest | None = None
        self._settings = StreamSettings(verify_tls, input_timeout, tuple(allowed_hosts), device=device)
        self._send_data_interval = send_data_interval
        self._clients: dict[str, TrickleClient] = {}
        self.table = SessionTable(self.pool.capacity, session_report)
        self.table.on_ended.append(self._ended)
        handlers = (*handlers_of(self.pool.first), *request_handlers)
        self.service = CapabilityService(self.pool, self.table, handlers)
        self._token = token
        self._heap = HeapTrimmer()
        self.table.on_ended.append(self._heap.session_ended)
        self._closing: set[asyncio.Task[None]] = set()
        self._stopping: asyncio.Event | None = None
        self.app = self._make_app(dict(app_kwargs or {}), middleware or (), token)
        for key, value in (app_context or {}).items():
            self.app[key] = value
        self._cors = _cors(self.app, cors_config) if cors_config else None
        self.app.on_startup.extend(on_startup or ())
        self.app.on_shutdown.extend(on_shutdown or ())
        self.app.on_shutdown.append(self._shut_down)
        if enable_default_routes:
            self._add_default_routes()
        self.service.add_routes(self.app, reports=enable_default_routes)
        if self._cors is not None:
            for standard in list(self.app.router.routes()):
                self._cors.add(standard)
        for route in custom_routes or ():
            self._add_custom(route)
        for static in static_routes or ():
            self.add_static_route(static["prefix"], static["path"], **static.get("kwargs", {}))

    # -- the application ---------------------------------------------------------------------------------

    def _make_app(
        self, options: dict[str, Any], middleware: Sequence[Any], token: str | None
    ) -> web.Application:
        first = [guard(token)] if token else []
        options["middlewares"] = [*first, *options.get("middlewares", ()), *middleware]
        return web.Application(**{"client_max_size": MAX_BODY, **options})

    def _add_default_routes(self) -> None:
        routes = ProcessorRoutes(self, self.route_prefix)
        routes.register(self.app)
        identity = Identity(self.pipeline, self.capability_name, __version__, self.version)
        MachineRoutes(self, identity).register(self.app, routes)
        metrics = Metrics(self.table, version=__version__)
        metrics.register(self.app)
        self.service.add_metrics(metrics.registry)

    def _add_custom(self, route: RouteConfig | Mapping[str, Any]) -> None:
        config = route if isinstance(route, RouteConfig) else RouteConfig(**route)
        self.add_route(config.method, config.path, config.handler, **(config.kwargs or {}))

    def add_route(
        self, method: str, path: str, handler: Callable[..., Any], **kwargs: Any
    ) -> web.AbstractRoute:
        """Add a route; before the start."""
        route = self.app.router.add_route(method, path, handler, **kwargs)
        if self._cors is not None:
            self._cors.add(route)
        return route

    def add_static_route(self, prefix: str, path: str, **kwargs: Any) -> web.AbstractResource:
        """Serve the files of a folder; before the start."""
        resource = self.app.router.add_static(prefix, path, **kwargs)
        if self._cors is not None:
            self._cors.add(resource)
        return resource

    def add_middleware(self, middleware: Any) -> None:
        """Add an aiohttp middleware; before the start."""
        self.app.middlewares.append(middleware)

    def get_app(self) -> web.Application:
        return self.app

    def set_context(self, key: Any, value: Any) -> None:
        """Keep a value in the application; before the start."""
        self.app[key] = value

    def get_context(self, key: Any, default: Any = None) -> Any:
        return self.app.get(key, default)

    # -- for the routes ----------------------------------------------------------------------------------

    async def prepare(self, request: StreamStart) -> None:
        """Nothing of a request takes long to check."""

    def make_session(
        self,
        session_id: str,
        request: StreamStart,
        *,
        ingest: Ingest | None = None,
        side: SideChannels | None = None,
        prepared: None = None,
    ) -> Session:
        """A session for that request, not yet started. Raises `InvalidInput` or `ProcessorError`."""
        params = checked_params(request.params or {})
        processor, thread = self.pool.take()
        try:
            return self._session(session_id, request, params, processor, thread)
        except BaseException:
            self._close_later(self.pool.give_back(processor))
            raise

    def _session(
        self,
        session_id: str,
        request: StreamStart,
        params: Params,
        processor: FrameProcessor,
        thread: LoopThread,
    ) -> Session:
        processor.check_params(params)
        protocol = TrickleProtocol(
            subscribe_url=request.url("subscribe"),
            publish_url=request.url("publish"),
            control_url=request.url("control"),
            events_url=request.url("events"),
            data_url=request.url("data"),
            width=params.get("width"),
            height=params.get("height"),
            max_framerate=params.get("max_framerate"),
            publisher_timeout=self.publisher_timeout,
            subscriber_timeout=self.subscriber_timeout,
            detect_out_resolution=params.get("detect_out_resolution", True),
        )
        client = TrickleClient(
            protocol,
            processor,
            send_data_interval=self._send_data_interval,
            frame_skip_config=self.frame_skip_config,
            overlay_config=self.overlay_config,
            batcher=self.pool.batcher,
            settings=self._settings,
        )
        session = client.prepare(session_id, params, thread)
        session.pipeline_name = self.capability_name or self.pipeline
        self._clients[session_id] = client
        self.current_client = client
        urls = {f"{name}_url": url for name, url in protocol.urls.items()}
        self.current_params = StreamStartRequest(
            **urls, gateway_request_id=session_id, params=dict(params) if request.params is not None else None
        )
        self.state.set_active_client(True)
        self.state.update_active_streams(len(self._clients))
        return session

    def _ended(self, session: Session) -> None:
        client = self._clients.pop(session.id, None)
        self.state.update_active_streams(len(self._clients))
        self.state.set_active_client(bool(self._clients))
        if client is None:
            return
        if self.current_client is client:
            self.current_client = next(reversed(self._clients.values()), None)
            self.current_params = None
        self._close_later(client.ended())
        self._close_later(self.pool.give_back(client.frame_processor))

    def _close_later(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def health(self) -> Health:
        if self.state.is_error() or self.pool.stuck:
            return Health.ERROR
        if len(self.table):
            health = worker_health(self.table.states(), engine_ready=True)
            # A stream that is still closing is in the way of another.
            return Health.OK if health is Health.IDLE else health
        return self.state.health

    def ready(self) -> bool:
        return self.state.pipeline_ready

    def problem(self) -> str | None:
        return self.pool.stuck or self.state.error_message

    # -- state -------------------------------------------------------------------------------------------

    def set_state(self, state: PipelineState) -> None:
        self.state.set_state(state)

    def set_client_active(self, active: bool) -> None:
        self.state.set_active_client(active)

    def get_state(self) -> dict[str, Any]:
        return self.state.get_state()

    def update_active_streams(self, count: int) -> None:
        self.state.update_active_streams(count)

    def get_health_state(self) -> dict[str, Any]:
        return self.state.get_pipeline_state()

    def is_healthy(self) -> bool:
        return not self.state.is_error()

    def get_health_summary(self) -> str:
        return str(self.health())

    # -- life --------------------------------------------------------------------------------------------

    async def start_server(self) -> web.AppRunner:
        """Listen, and begin to load the model; `port` is then the one that was found for port 0.

        Raises `OSError` when the port is taken, `InvalidInput` for a registration that cannot be. The caller
        cleans up what is returned, which stops listening; that calls `stop`, where nobody has.
        """
        runner = web.AppRunner(self.app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, self.host, self.port, reuse_address=True).start()
            self.port = runner.addresses[0][1]
            if self.capability_name:
                self.service.prepare(
                    self.capability_name,
                    self.host,
                    self.port,
                    token=self._token,
                    verify_tls=self._settings.verify_tls,
                )
            elif os.environ.get("ORCH_URL"):
                log.warning(
                    "ORCH_URL is set and the capability has no name (CAPABILITY_NAME): nothing is registered"
                )
        except BaseException:
            await runner.cleanup()
            raise
        await self.pool.start()
        self.service.start()
        log.info("listening on %s:%d", self.host, self.port)
        return runner

    async def stop(self) -> None:
        """End all streams and the processor's thread, in a bounded time; safe to call twice."""
        if self._stopping is not None:
            self._stopping.set()
        try:
            await asyncio.gather(
                self.service.withdraw(), self.table.close("the server is stopping", SHUTDOWN)
            )
            if self._closing:
                await asyncio.wait(self._closing, timeout=SHUTDOWN)
        finally:
            self._heap.close()
            await asyncio.gather(self.service.close(), self.pool.close())

    async def _shut_down(self, app: web.Application) -> None:
        await self.stop()

    async def run_forever(self) -> None:
        """Serve until SIGTERM or SIGINT (where this is the main thread), `stop`, or cancellation."""
        if not logging.getLogger().handlers:
            # A program of a few lines has set up none, and its author wants to know what goes on.
            configure("info")
        self._stopping = asyncio.Event()
        runner = await self.start_server()
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT) if _is_main_thread() else ()
        for number in signals:
            loop.add_signal_handler(number, self._stopping.set)
        try:
            settle()
            await self._stopping.wait()
        finally:
            for number in signals:
                loop.remove_signal_handler(number)
            await self.stop()
            await runner.cleanup()


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _cors(app: web.Application, config: Mapping[str, Any]) -> Any:
    """Answers to other sites' pages by aiohttp-cors. Raises `InvalidInput` when that is not installed."""
    try:
        import aiohttp_cors
    except ImportError:
        raise InvalidInput("cors_config needs the package aiohttp-cors", field="cors_config") from None
    defaults = {
        origin: aiohttp_cors.ResourceOptions(**options) if isinstance(options, Mapping) else options
        for origin, options in config.items()
    }
    return aiohttp_cors.setup(app, defaults=defaults)

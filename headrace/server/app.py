"""The worker's HTTP application, and running it."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from pydantic import SecretStr

from byoc.registration.report import CapabilityRoute, RegistrationCollector
from headrace.batch import setup as batch
from headrace.batch.metrics import BatchCollector
from headrace.comfyui.routes import ComfyRoutes
from headrace.server.comfystream import ComfyStreamRoutes
from headrace.server.page import FILES, PageRoutes
from headrace.server.pipelines import check_default
from headrace.server.run_routes import RunRoutes
from headrace.server.stopping import StopSignal
from headrace.server.switching import schema_of
from headrace.server.tls import server_context
from headrace.server.worker import Worker
from headrace.server.workflow_routes import WorkflowRoutes
from headrace.settings import Settings
from headrace.version import package_version
from stream.access import OPEN_ROUTES, check_exposure, guard
from stream.answers import unrouted
from stream.cors import Origins, mark_answers, preflights
from stream.errors import InvalidInput
from stream.heap import settle
from stream.machine import Identity, MachineRoutes
from stream.preview import PreviewRoutes
from stream.recording.routes import RecordingRoutes
from stream.routes import MAX_BODY, StreamRoutes
from stream.server_events import EventRoutes


def build_app(worker: Worker) -> web.Application:
    """The HTTP application over ``worker``; does not start it."""
    settings, release = worker.settings, package_version()
    origins = Origins(settings.allowed_origins)
    if origins.any and settings.token is None:
        raise InvalidInput(
            "pages of any site (*) may not use a worker without a token", field="allowed_origins"
        )
    unguarded = OPEN_ROUTES | FILES.keys() | {"/openapi.json"}
    access = guard(_secret(settings.token), unguarded, origins, _secret(settings.view_token))
    app = web.Application(middlewares=[preflights(origins), access, unrouted], client_max_size=MAX_BODY)
    mark_answers(app, origins)
    routes = StreamRoutes(worker)
    routes.register(app)
    identity = Identity(settings.pipeline, settings.model_id, release, release)
    MachineRoutes(worker, identity).register(app, routes)
    worker.metrics.register(app)
    CapabilityRoute(lambda: worker.registrar).register(app)
    worker.metrics.registry.register(RegistrationCollector(lambda: worker.registrar))
    PreviewRoutes(worker.table).register(app)
    PageRoutes(worker).register(app)
    WorkflowRoutes(worker).register(app)
    RunRoutes(worker, settings.batch_uploads).register(app)
    if worker.batch is not None:
        batch.register(worker.batch, app)
        worker.metrics.registry.register(BatchCollector(worker.batch))
    if worker.comfyui is not None:
        ComfyRoutes(worker.comfyui.service).register(app)
    worker.webrtc.register(app)
    specs = worker.specs
    EventRoutes(worker.table, worker.feeds, lambda session: schema_of(session, specs)).register(app)
    RecordingRoutes(worker.table, worker.recorder).register(app)
    webrtc = worker.webrtc
    ComfyStreamRoutes(worker, webrtc.peers, webrtc.publications, worker.feeds, specs).register(app)
    return app


async def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Run a worker until SIGINT or SIGTERM; a second signal ends it at once.

    ``announce`` gets the URL once it listens. Raises `OSError` when the port is taken, and as `check_default`
    does.
    """
    check_exposure(settings.host, _secret(settings.token))
    tls = server_context(settings)
    worker = Worker(settings)
    check_default(settings, worker.specs)
    runner = web.AppRunner(build_app(worker), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    stop = StopSignal()
    stop.listen()
    try:
        site = web.TCPSite(runner, settings.host, settings.port, reuse_address=True, ssl_context=tls)
        await site.start()
        await worker.start()
        settle()
        announce(_url_of(runner, "http" if tls is None else "https"))
        await stop.wait()
    finally:
        await worker.stop()
        await runner.cleanup()


def _secret(setting: SecretStr | None) -> str | None:
    return setting.get_secret_value() if setting is not None else None


def _url_of(runner: web.AppRunner, scheme: str) -> str:
    host, port = runner.addresses[0][:2]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

"""The batch endpoints of a worker, from its settings."""

from __future__ import annotations

import dataclasses

from aiohttp import web

from headrace.batch.choice import ModelChooser, Store
from headrace.batch.client import BatchEngine, BatchSettings, default_engine
from headrace.batch.defaults import PIPELINES
from headrace.batch.discovery import Catalogue, DiscoveryRoutes
from headrace.batch.front import Front, FrontSettings
from headrace.batch.job_routes import JobRoutes
from headrace.batch.openai_routes import OpenAiRoutes
from headrace.batch.openapi import OpenApiRoutes
from headrace.batch.routes import BatchRoutes
from headrace.batch.service import BatchService, Engine, ServiceSettings
from headrace.models.roots import Roots
from headrace.models.store import ModelStore
from headrace.server.stopping import ENGINE
from headrace.settings import Settings
from stream.errors import InvalidInput


def make_front(settings: Settings, *, engine: Engine | None = None, store: Store | None = None) -> Front:
    """The front of a worker's batch endpoints; no engine runs before the first request.

    ``engine`` and ``store`` take the place of the real ones. Raises `InvalidInput` for settings that name no
    pipeline or no model.
    """
    demo = settings.demo if settings.demo_weights is None else settings.demo_weights
    chooser = ModelChooser(
        store or ModelStore(Roots.from_environment()),
        demo_weights=demo,
        defaults=default_models(settings.batch_models),
    )
    service = BatchService(
        engine or BatchEngine(engine_settings(settings)),
        chooser,
        ServiceSettings(settings.batch_queue, settings.batch_places, timeout=settings.batch_timeout),
    )
    limits = FrontSettings(settings.batch_uploads, settings.media_bytes, settings.media_seconds)
    return Front(service, limits)


def engine_settings(settings: Settings) -> BatchSettings:
    """The batch engine's part of a worker's settings: the live engine's device, threads of its own."""
    engine = dataclasses.replace(default_engine(), device=settings.engine_device, stop_timeout=ENGINE)
    return BatchSettings(engine=engine)


def default_models(named: tuple[str, ...]) -> dict[str, str]:
    """``pipeline=model`` of the settings as a table."""
    found = {}
    for item in named:
        pipeline, _, model = item.partition("=")
        if pipeline not in PIPELINES or not model:
            raise InvalidInput(
                f"batch_models has {item!r}; it takes PIPELINE=MODEL, with one of {', '.join(PIPELINES)}",
                field="batch_models",
            )
        found[pipeline] = model
    return found


def register(front: Front, app: web.Application) -> None:
    """Add every route of the batch endpoints."""
    catalogue = Catalogue(front.service)
    BatchRoutes(front).register(app)
    JobRoutes(front).register(app)
    OpenAiRoutes(front, catalogue).register(app)
    DiscoveryRoutes(catalogue).register(app)
    OpenApiRoutes().register(app)

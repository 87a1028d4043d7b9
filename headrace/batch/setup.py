"""The batch endpoints of a worker, from its settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from aiohttp import web

from headrace.batch.choice import ModelChooser, Store
from headrace.batch.client import BatchEngine, BatchSettings, default_engine
from headrace.batch.defaults import PIPELINES
from headrace.batch.discovery import Catalogue, DiscoveryRoutes
from headrace.batch.front import Front, FrontSettings
from headrace.batch.job_routes import JobRoutes
from headrace.batch.keeping import BatchKeeper
from headrace.batch.openai_routes import OpenAiRoutes
from headrace.batch.openapi import OpenApiRoutes
from headrace.batch.parler_engine import BatchEngineWithParler
from headrace.batch.routes import BatchRoutes
from headrace.batch.service import BatchService, Engine, ServiceSettings
from headrace.engine.guardian import Engine as LiveEngine
from headrace.models.holder_service import HolderService
from headrace.models.ledger_service import LedgerService
from headrace.models.roots import Roots
from headrace.models.routes import ModelRoutes
from headrace.models.store import ModelStore
from headrace.server.stopping import ENGINE
from headrace.settings import Settings
from stream.errors import InvalidInput


def make_front(
    settings: Settings,
    *,
    engine: Engine | None = None,
    store: Store | None = None,
    holders: HolderService | None = None,
    ledger: LedgerService | None = None,
    live: LiveEngine | None = None,
) -> Front:
    """The front of a worker's batch endpoints; no engine runs before the first request.

    ``engine`` and ``store`` take the place of the real ones; ``holders`` and ``ledger`` are those that the
    live engine has too, and ``live`` is that engine where it is to answer requests as well. Raises
    `InvalidInput` for settings that name no pipeline or no model.
    """
    demo = settings.demo if settings.demo_weights is None else settings.demo_weights
    roots = Roots.from_environment(settings.models_folder)
    chooser = ModelChooser(
        store or ModelStore(roots),
        demo_weights=demo,
        defaults=default_models(settings.batch_models),
    )
    ledger = ledger or LedgerService(settings.models_budget)
    own: BatchEngine | None = None
    if engine is None:
        engine = own = make_engine(settings, roots, ledger, holders, live)
    service = BatchService(
        engine,
        chooser,
        ServiceSettings(settings.batch_queue, settings.batch_places, timeout=settings.batch_timeout),
    )
    limits = FrontSettings(settings.batch_uploads, settings.media_bytes, settings.media_seconds)
    models = (
        None if own is None else ModelRoutes(ModelStore(roots), ledger, BatchKeeper(service, own), holders)
    )
    return Front(service, limits, models)


def make_engine(
    settings: Settings,
    roots: Roots,
    ledger: LedgerService,
    holders: HolderService | None = None,
    live: LiveEngine | None = None,
) -> BatchEngine:
    """The engine (``live``, where there is to be only one), or two, where Parler-TTS has an interpreter of
    its own."""
    batch = engine_settings(settings, roots, holders.addresses if holders is not None else {})
    made = (
        BatchEngine(batch, ledger, live)
        if settings.parler_python is None
        else BatchEngineWithParler(batch, ledger, live, python=settings.parler_python)
    )
    if holders is not None and live is None:
        holders.watch(made.engine)
    return made


def engine_settings(
    settings: Settings, roots: Roots, holders: Mapping[str, str] | None = None
) -> BatchSettings:
    """The batch engine's part of a worker's settings: the live engine's device, threads of its own."""
    engine = dataclasses.replace(
        default_engine(), device=settings.engine_device, stop_timeout=ENGINE, holders=holders or {}
    )
    return BatchSettings(
        engine=engine, folders={name: str(path) for name, path in dataclasses.asdict(roots).items()}
    )


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
    if front.models is not None:
        front.models.register(app)

"""What a `StreamServer` is to an orchestrator beside its streams: a registration, and batch requests."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from aiohttp import web
from prometheus_client import CollectorRegistry

from byoc.pool import ProcessorPool
from byoc.registration.capability import whole
from byoc.registration.environment import registration_from
from byoc.registration.registrar import Offer, Registrar
from byoc.registration.report import CapabilityRoute, RegistrationCollector
from byoc.request_handlers import RequestHandler
from byoc.request_routes import RequestRoutes
from stream.table import SessionTable

log = logging.getLogger(__name__)


class CapabilityService:
    """The registration (where ``ORCH_URL`` and ``ORCH_SECRET`` are set and the capability has a name) and the
    request handlers of a server. Raises `InvalidInput` for an environment that cannot be."""

    def __init__(self, pool: ProcessorPool, table: SessionTable, handlers: Sequence[RequestHandler]) -> None:
        self._pool = pool
        self._table = table
        self.requests = RequestRoutes(handlers, pool.wait_loaded)
        self._idle = not handlers and not pool.streams
        self.registrar: Registrar | None = None
        self._capacity = pool.capacity
        if handlers and not pool.streams:
            self._capacity = sum(handler.rules.concurrency for handler in handlers)

    def prepare(self, name: str, host: str, port: int, *, token: str | None, verify_tls: bool) -> None:
        """Make the registrar, once the port is known that is the default of ``CAPABILITY_URL``."""
        environment = {"CAPABILITY_URL": f"http://localhost:{port}", **os.environ}
        if text := os.environ.get("CAPABILITY_CAPACITY"):
            wanted = whole("CAPABILITY_CAPACITY", text)
            if not self._pool.streams:
                self._capacity = wanted
            elif wanted != self._capacity:
                log.warning(
                    "CAPABILITY_CAPACITY is %d and %d is registered: an instance serves one stream, a class "
                    "or function several, and a capacity that the server was given counts",
                    wanted,
                    self._capacity,
                )
        settings = registration_from(
            environment,
            name=name,
            capacity=self._capacity,
            token=token,
            verify_tls=verify_tls,
            listening=host,
        )
        if settings is not None:
            self.registrar = Registrar(settings, self.offer)
        elif os.environ.get("ORCH_URL"):
            log.warning("ORCH_URL is set and ORCH_SECRET is not: nothing is registered")

    def offer(self) -> Offer | None:
        """What is free; None while there is nothing to offer."""
        if self._table.closed or not self._pool.ready:
            return None
        return Offer(max(0, self._capacity - len(self._table) - self.requests.running))

    def add_routes(self, app: web.Application, *, reports: bool) -> None:
        """The handlers' routes, and with ``reports`` ``GET /capability``."""
        self.requests.register(app)
        if reports:
            CapabilityRoute(lambda: self.registrar).register(app)

    def add_metrics(self, registry: CollectorRegistry) -> None:
        registry.register(RegistrationCollector(lambda: self.registrar))

    def start(self) -> None:
        if self._idle:
            log.warning(
                "nothing works on pictures or sound, which pass as they came: there is no handler, and no "
                "process_video_async, process_video_batch, process_video_window or process_audio_async"
            )
        self.requests.start()
        if self.registrar is not None:
            self.registrar.start()

    async def withdraw(self) -> None:
        """Take the registration back, in a bounded time."""
        if self.registrar is not None:
            await self.registrar.stop()

    async def close(self) -> None:
        """End the requests, in a bounded time."""
        await self.requests.close()

"""The worker as a capability of an orchestrator."""

from __future__ import annotations

import time
from typing import Protocol

from byoc.registration.capability import Capability
from byoc.registration.registrar import Offer, Registrar, RegistrationSettings
from headrace.settings import Settings
from stream.table import SessionTable

RESTARTING = 10.0
"""Seconds for which an engine that is not ready is taken to come back."""


class Host(Protocol):
    """What a registration needs of the worker."""

    settings: Settings
    table: SessionTable

    def ready(self) -> bool: ...


class Places:
    """What a worker has to offer: its free sessions, once its engine is ready."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._ready_at = float("-inf")

    def __call__(self) -> Offer | None:
        now = time.monotonic()
        if self._host.ready():
            self._ready_at = now
        elif now - self._ready_at > RESTARTING:
            return None
        table = self._host.table
        if table.closed:
            return None
        # What came with channels is the orchestrator's; cameras and the demo it knows nothing of.
        elsewhere = sum(1 for session in table if not session.urls)
        return Offer(max(0, table.capacity - len(table)), elsewhere)


def make_registrar(host: Host) -> Registrar | None:
    """The worker's registrar; None where it is not to register. Raises `InvalidInput`."""
    settings = host.settings
    if settings.orchestrator is None or settings.orchestrator_secret is None:
        return None
    token = settings.token.get_secret_value() if settings.token is not None else None
    capabilities = [
        Capability(
            name,
            settings.capability_url
            or f"{'https' if settings.encrypted else 'http'}://localhost:{settings.port}",
            settings.capability_description,
            settings.capacity,
            settings.capability_price,
            settings.capability_price_scaling,
            token=token,
        )
        for name in settings.capabilities or (settings.model_id,)
    ]
    return Registrar(
        RegistrationSettings(
            settings.orchestrator,
            settings.orchestrator_secret.get_secret_value(),
            capabilities,
            verify_tls=settings.verify_tls,
            interval=settings.registration_interval,
            listening=settings.host,
        ),
        Places(host),
    )

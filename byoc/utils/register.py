"""One registration on demand, with PyTrickle's names. `Registrar` is what keeps one true."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from typing import Any
from urllib.parse import ParseResult, urlparse

from byoc.registration.capability import Capability
from byoc.registration.environment import registration_from
from byoc.registration.link import OrchestratorLink, RegistrationError
from byoc.registration.registrar import RegistrationSettings
from stream.errors import HeadraceError


class RegisterCapability:
    """Registers this worker with an orchestrator; what is not given comes from the environment.

    ``ORCH_URL``, ``ORCH_SECRET``, ``CAPABILITY_NAME``, ``CAPABILITY_DESCRIPTION``, ``CAPABILITY_URL`` (always
    from there), ``CAPABILITY_CAPACITY``, ``CAPABILITY_PRICE_PER_UNIT``, ``CAPABILITY_PRICE_SCALING``.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self.logger = logger or logging.getLogger(__name__)

    @classmethod
    async def register(cls, logger: logging.Logger | None = None, **kwargs: Any) -> ParseResult | bool:
        """`register_capability` in one call."""
        return await cls(logger).register_capability(**kwargs)

    async def register_capability(
        self,
        orch_url: str | None = None,
        orch_secret: str | None = None,
        capability_name: str | None = None,
        capability_desc: str | None = None,
        capability_capacity: int | None = None,
        capability_price_per_unit: int | None = None,
        capability_price_scaling: int | None = None,
        max_retries: int = 3,
        delay: float = 2.0,
        timeout: float = 1.5,
    ) -> ParseResult | bool:
        """The registered URL, parsed; False when there is no orchestrator to register with, when it refuses,
        or when ``max_retries`` tries with ``delay`` seconds between them failed. Never raises: logs say why.
        """
        given: dict[str, Any] = {
            "ORCH_URL": orch_url,
            "ORCH_SECRET": orch_secret,
            "CAPABILITY_NAME": capability_name,
            "CAPABILITY_DESCRIPTION": capability_desc,
            "CAPABILITY_CAPACITY": capability_capacity,
            "CAPABILITY_PRICE_PER_UNIT": capability_price_per_unit,
            "CAPABILITY_PRICE_SCALING": capability_price_scaling,
        }
        environment = {**os.environ, **{key: str(value) for key, value in given.items() if value is not None}}
        try:
            settings = registration_from(environment)
            if settings is None:
                self.logger.info("ORCH_URL or ORCH_SECRET is not set: nothing is registered")
                return False
            return await self._try(settings, max_retries, delay, timeout)
        except HeadraceError as error:
            self.logger.error("not registered: %s", error.message)
            return False

    async def _try(
        self, settings: RegistrationSettings, tries: int, delay: float, timeout: float
    ) -> ParseResult | bool:
        capabilities = settings.capabilities
        for warning in (text for one in capabilities for text in one.doubts(settings.orchestrator)):
            self.logger.warning(warning)
        link = OrchestratorLink(settings.orchestrator, settings.secret, verify_tls=False, timeout=timeout)
        try:
            for left in reversed(range(max(tries, 1))):
                try:
                    for capability in capabilities:
                        await link.register(_body(capability))
                except RegistrationError as error:
                    if error.final or left == 0:
                        raise
                    self.logger.warning("not registered yet: %s", error.message)
                    await asyncio.sleep(delay)
                else:
                    self.logger.info("registered with %s", settings.orchestrator)
                    return urlparse(capabilities[0].url)
        finally:
            await link.close()
        return False


def _body(capability: Capability) -> bytes:
    return json.dumps(capability.body(capability.capacity)).encode()

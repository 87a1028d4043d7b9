"""Registration by the environment, under PyTrickle's names and ai-runner's ``MODEL_ID``."""

from __future__ import annotations

from collections.abc import Mapping

from byoc.registration.capability import Capability, names, whole
from byoc.registration.registrar import RegistrationSettings

DEFAULT_NAME = "pytrickle-worker"
DEFAULT_URL = "http://localhost:8000"
"""PyTrickle's; a container that counts on them goes on being found."""


def registration_from(
    environment: Mapping[str, str],
    *,
    capacity: int | None = None,
    name: str | None = None,
    description: str | None = None,
    token: str | None = None,
    verify_tls: bool = False,
    listening: str | None = None,
) -> RegistrationSettings | None:
    """What the environment asks for; None when ``ORCH_URL`` or ``ORCH_SECRET`` is missing.

    ``CAPABILITY_NAME`` may hold several names with commas between them. ``name``, ``capacity`` and
    ``description`` come before the environment. Raises `InvalidInput` that names the variable at fault.
    """
    orchestrator, secret = environment.get("ORCH_URL"), environment.get("ORCH_SECRET")
    if not orchestrator or not secret:
        return None
    found = [name] if name else names(environment.get("CAPABILITY_NAME") or environment.get("MODEL_ID") or "")
    return RegistrationSettings(
        orchestrator,
        secret,
        [
            Capability(
                each,
                environment.get("CAPABILITY_URL") or DEFAULT_URL,
                description or environment.get("CAPABILITY_DESCRIPTION") or "",
                _number(environment, "CAPABILITY_CAPACITY", 1) if capacity is None else capacity,
                _number(environment, "CAPABILITY_PRICE_PER_UNIT", 0),
                _number(environment, "CAPABILITY_PRICE_SCALING", 1),
                token=token,
            )
            for each in found or [DEFAULT_NAME]
        ],
        verify_tls=verify_tls,
        listening=listening,
    )


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name)
    return whole(name, text) if text else default

"""The orchestrator's book of external capabilities, as go-livepeer keeps it. Pure."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from stream.errors import HeadraceError

CURRENCIES = ("", "wei", "eth", "usd")


class RegistrationRefused(HeadraceError):
    """What is answered with 400."""

    code = "registration_refused"
    status = 400


class WouldPanic(HeadraceError):
    """go-livepeer's handler panics here: the connection is dropped without an answer."""

    code = "orchestrator_panics"


@dataclass(slots=True)
class RegisteredCapability:
    """One capability; ``load`` is the orchestrator's own count of what runs, and may fall below 0."""

    name: str
    url: str
    description: str
    capacity: int
    price_per_unit: int
    price_scaling: int
    currency: str
    token: str
    load: int = 0

    @property
    def available(self) -> int:
        return max(0, self.capacity - self.load)


class CapabilityBook:
    """Capabilities by name. A repeated registration replaces everything, the load included."""

    def __init__(self) -> None:
        self._known: dict[str, RegisteredCapability] = {}

    def __iter__(self) -> Any:
        return iter(list(self._known.values()))

    def find(self, name: str) -> RegisteredCapability | None:
        return self._known.get(name)

    def register(self, text: str) -> RegisteredCapability:
        """Take a registration; raises `RegistrationRefused` with Go's words, or `WouldPanic`."""
        try:
            body = json.loads(text)
        except ValueError as error:
            raise RegistrationRefused(f"Error registering capability: {error}") from None
        if not isinstance(body, dict):
            kind = "array" if isinstance(body, list) else type(body).__name__
            raise RegistrationRefused(
                f"Error registering capability: json: cannot unmarshal {kind} into Go value of type "
                "core.ExternalCapability"
            )
        # Go's decoder does not heed the case of names.
        given = {key.lower(): value for key, value in body.items()}
        found = RegisteredCapability(
            name=_text(given, "name"),
            url=_text(given, "url"),
            description=_text(given, "description"),
            currency=_text(given, "currency"),
            token=_text(given, "token"),
            capacity=_integer(given, "capacity", "int"),
            price_per_unit=_integer(given, "price_per_unit", "int64"),
            price_scaling=_integer(given, "price_scaling", "int64") or 1,
        )
        if found.currency.lower() not in CURRENCIES:
            raise WouldPanic(f"no price feed for the currency {found.currency!r}")
        self._known[found.name] = found
        return found

    def remove(self, name: str) -> None:
        """Forget one; it need not be there."""
        self._known.pop(name, None)

    def clear(self) -> None:
        self._known.clear()

    def reserve(self, name: str) -> bool:
        """Count a job; False only when the capability is unknown: a full one is not refused here."""
        if (found := self._known.get(name)) is None:
            return False
        found.load += 1
        return True

    def release(self, name: str) -> None:
        if (found := self._known.get(name)) is not None:
            found.load -= 1


def _text(given: dict[str, Any], key: str) -> str:
    value = given.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _mismatch(value, key, "string")
    return value


def _integer(given: dict[str, Any], key: str, kind: str) -> int:
    value = given.get(key)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise _mismatch(value, key, kind)
    return value


def _mismatch(value: Any, key: str, kind: str) -> RegistrationRefused:
    if isinstance(value, bool):
        got = "bool"
    elif isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        got = f"number {value}" if kind != "string" else "number"
    else:
        kinds: dict[type, str] = {str: "string", list: "array", dict: "object"}
        got = kinds.get(type(value), "number")
    return RegistrationRefused(
        f"Error registering capability: json: cannot unmarshal {got} into Go struct field "
        f"ExternalCapability.{key} of type {kind}"
    )

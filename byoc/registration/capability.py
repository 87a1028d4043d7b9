"""What a worker offers to an orchestrator, as go-livepeer's ``POST /capability/register`` takes it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from stream.access import is_loopback
from stream.errors import InvalidInput

MAX_CAPACITY: Final = 10_000
MAX_PRICE: Final = 2**63 - 1
"""Prices are int64 there."""
MAX_TEXT: Final = 1024
NAME: Final = re.compile(r"[!-+\--~]([ -+\--~]{0,254}[!-+\--~])?")
"""Printable ASCII without a comma, because the name travels in a header that lists several."""

VARIABLES: Final[Mapping[str, str]] = {
    "name": "CAPABILITY_NAME",
    "url": "CAPABILITY_URL",
    "description": "CAPABILITY_DESCRIPTION",
    "capacity": "CAPABILITY_CAPACITY",
    "price_per_unit": "CAPABILITY_PRICE_PER_UNIT",
    "price_scaling": "CAPABILITY_PRICE_SCALING",
}
"""PyTrickle's variables for each field."""


@dataclass(frozen=True, slots=True)
class Capability:
    """``url`` is where the orchestrator calls (paths are appended), ``capacity`` how many jobs run at once.

    A second of work costs ``price_per_unit / price_scaling``, in wei or in ``currency``. The orchestrator
    sends ``token`` as a bearer token. Raises `InvalidInput` for what go-livepeer would refuse or choke on.
    """

    name: str
    url: str
    description: str = ""
    capacity: int = 1
    price_per_unit: int = 0
    price_scaling: int = 1
    currency: str = ""
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check_text("name", self.name, 256)
        if not NAME.fullmatch(self.name):
            raise _wrong("name", "printable ASCII without commas", self.name)
        _check_text("description", self.description, MAX_TEXT)
        _check_whole("capacity", self.capacity, 0, MAX_CAPACITY)
        _check_whole("price_per_unit", self.price_per_unit, 0, MAX_PRICE)
        _check_whole("price_scaling", self.price_scaling, 1, MAX_PRICE)
        if not isinstance(self.currency, str) or not re.fullmatch(r"[A-Za-z]{0,8}", self.currency):
            raise _wrong(
                "currency", "wei, eth, or a currency that the orchestrator has a feed for", self.currency
            )
        object.__setattr__(self, "url", _checked_url(self.url))

    def body(self, free: int) -> dict[str, Any]:
        """The JSON of a registration that offers ``free`` places, 0 to ``capacity``."""
        told: dict[str, Any] = {
            "name": self.name,
            "url": self.url,
            "description": self.description,
            "capacity": max(0, min(free, self.capacity)),
            "price_per_unit": self.price_per_unit,
            "price_scaling": self.price_scaling,
        }
        if self.currency:
            told["currency"] = self.currency
        if self.token:
            told["token"] = self.token
        return told

    def doubts(self, orchestrator: str, listening: str | None = None) -> list[str]:
        """What is probably wrong with ``url`` for that orchestrator: sentences. ``listening`` is the address
        that the worker listens on."""
        theirs, ours = urlsplit(orchestrator).hostname or "", urlsplit(self.url).hostname or ""
        if is_loopback(ours) and not is_loopback(theirs):
            return [
                f"the orchestrator at {theirs} is told to call {self.url}, which there means itself: "
                "set CAPABILITY_URL to a URL at which it reaches this one"
            ]
        if listening is not None and is_loopback(listening) and not is_loopback(ours):
            return [f"{self.url} is registered, but this worker listens on {listening} alone"]
        return []


def whole(name: str, text: str) -> int:
    """The number that a variable holds; raises `InvalidInput` that names the variable."""
    try:
        return int(text.strip())
    except ValueError:
        raise InvalidInput(f"{name} must be a whole number, not {text[:60]!r}", field=name) from None


def names(text: str) -> list[str]:
    """The names in a variable that may hold several, with commas between them."""
    return [name for part in text.split(",") if (name := part.strip())]


def distinct(capabilities: Iterable[Capability]) -> tuple[Capability, ...]:
    """The capabilities as a tuple; raises `InvalidInput` when there is none or a name comes twice."""
    found = tuple(capabilities)
    known = [capability.name for capability in found]
    if not found:
        raise InvalidInput("there is no capability to register: set CAPABILITY_NAME", field="CAPABILITY_NAME")
    twice = next((name for name in known if known.count(name) > 1), None)
    if twice is not None:
        raise InvalidInput(f"the capability {twice!r} is named twice", field="CAPABILITY_NAME")
    return found


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except (ValueError, AttributeError):
        usable = False
    if not usable or parts.query or parts.fragment or "@" in parts.netloc:
        raise _wrong("url", "an http or https URL without query and credentials", url)
    return url.rstrip("/")


def _check_text(name: str, value: object, limit: int) -> None:
    if not isinstance(value, str) or len(value) > limit:
        raise _wrong(name, f"text of at most {limit} characters", value)


def _check_whole(name: str, value: object, least: int, most: int) -> None:
    # go-livepeer decodes into integers, and answers 1.5 or "1" with an error of its own language.
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _wrong(name, f"a whole number from {least} to {most}", value)


def _wrong(name: str, wanted: str, value: object) -> InvalidInput:
    variable = VARIABLES.get(name)
    where = f"{name} ({variable})" if variable else name
    return InvalidInput(f"a capability's {where} must be {wanted}, not {repr(value)[:80]}", field=name)

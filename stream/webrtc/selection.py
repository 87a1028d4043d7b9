"""What a WHIP URL asks for: a client such as OBS can be given nothing but a URL and a token.

Query: ``workflow``, ``processor``, ``width``, ``height``, ``max_framerate``, the trickle channels
``publish_url``, ``control_url``, ``events_url``, ``data_url``, and ``param.NAME=VALUE`` for any live
parameter; ``takeover=1`` takes the place of a publisher whose media arrives. Header ``X-Headrace-Params``:
the same parameters as one JSON object; the query goes before it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from stream.errors import InvalidInput
from stream.requests import StreamStart, parse_start

HEADER = "X-Headrace-Params"
MAX_HEADER = 8192
PARAMS = ("workflow", "processor", "width", "height", "max_framerate")
CHANNELS = ("publish_url", "control_url", "events_url", "data_url")
TAKEOVER = "takeover"
IGNORED = ("token", "access_token", "model_id", "wait", TAKEOVER)
PREFIX = "param."


def parse_selection(query: Iterable[tuple[str, str]], header: str | None) -> StreamStart:
    """A start request without a source, from a query's pairs and the header.

    Raises `InvalidInput` that names the part at fault.
    """
    params = _header_params(header)
    channels: dict[str, str] = {}
    seen: set[str] = set()
    for name, value in query:
        if name in seen:
            raise InvalidInput(f"{name[:80]} is given twice", field=name[:80] or "query")
        seen.add(name)
        if name.startswith(PREFIX) and len(name) > len(PREFIX):
            params[name.removeprefix(PREFIX)] = _value(value)
        elif name in PARAMS:
            params[name] = value
        elif name in CHANNELS:
            channels[name] = value
        elif name not in IGNORED:
            known = ", ".join((*PARAMS, *CHANNELS, TAKEOVER))
            raise InvalidInput(
                f"{name[:80]!r} is not known; there are {known}, and param.NAME for a parameter NAME",
                field=name[:80] or "query",
            )
    return parse_start({**channels, "params": params})


def parse_takeover(text: str | None) -> bool:
    """Whether a publisher asks for the place of one whose media arrives. Raises `InvalidInput`."""
    if text not in (None, "0", "1", "false", "true"):
        raise InvalidInput(f"{TAKEOVER} is 1 or 0, not {text[:40]!r}", field=TAKEOVER)
    return text in ("1", "true")


def _header_params(header: str | None) -> dict[str, Any]:
    if not header:
        return {}
    if len(header) > MAX_HEADER:
        raise InvalidInput(
            f"{HEADER} has {len(header)} characters; at most {MAX_HEADER} are taken", field=HEADER
        )
    try:
        found = json.loads(header, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        raise InvalidInput(f"{HEADER} is not JSON", field=HEADER) from None
    if not isinstance(found, dict):
        raise InvalidInput(f"{HEADER} must be a JSON object, not {type(found).__name__}", field=HEADER)
    return found


def _value(text: str) -> Any:
    """JSON where it is JSON, else the text itself: 0.5 is a number, hello a string."""
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        return text


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number

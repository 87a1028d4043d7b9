"""JSON as the control, events and data channels carry it. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from stream.errors import InvalidInput, TooLarge

# A gateway reads data lines of less than 64 KiB; a longer one has it read the same segment for ever.
MAX_LINE: Final = 64 * 1024 - 1
KEEPALIVE: Final = {"keep": "alive"}
EMPTY_BATCH: Final = b"[]\n"


def encode(value: Any, limit: int) -> bytes:
    """``value`` as ASCII JSON; raises `InvalidInput` on what is no JSON, `TooLarge` over ``limit`` bytes."""
    try:
        data = json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"not to be written as JSON: {error}") from None
    if len(data) > limit:
        raise TooLarge(f"the JSON is {len(data)} bytes long, over the limit of {limit}")
    return data


def encode_item(item: Any, max_line: int = MAX_LINE) -> bytes:
    """One item of the data channel, which must fit on a line of its own; raises as `encode`."""
    return encode(item, max_line - len(EMPTY_BATCH))


def batch_lines(items: Iterable[bytes], max_line: int = MAX_LINE) -> list[bytes]:
    """Encoded items, in their order, as lines that each hold a JSON array and ``max_line`` bytes at most."""
    lines: list[bytes] = []
    batch: list[bytes] = []
    size = len(EMPTY_BATCH)
    for item in items:
        if batch and size + len(item) > max_line:
            lines.append(b"[" + b",".join(batch) + b"]\n")
            batch, size = [], len(EMPTY_BATCH)
        batch.append(item)
        size += len(item) + 1
    if batch:
        lines.append(b"[" + b",".join(batch) + b"]\n")
    return lines


def decode_control(data: bytes) -> dict[str, Any] | None:
    """The object that a control segment holds, None for a keepalive; raises `InvalidInput` otherwise."""
    try:
        message = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"a control message is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise InvalidInput(f"a control message must be a JSON object, not {type(message).__name__}")
    return None if message == KEEPALIVE else message


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")

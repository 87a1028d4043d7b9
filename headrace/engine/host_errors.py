"""Errors on their way from the engine to the worker."""

from __future__ import annotations

import traceback
from typing import Any

from stream.errors import EngineError, HeadraceError, ProcessorError

MAX_MESSAGE = 2000
MAX_TRACEBACK = 4000


def describe(error: BaseException) -> dict[str, Any]:
    """An error as JSON data: code, message, field and details; a foreign one with its class and traceback.

    What a processor raises that is not one of our errors is a `ProcessorError` to the worker.
    """
    if isinstance(error, HeadraceError):
        data = error.as_dict()
        data["message"] = _cut(data["message"], MAX_MESSAGE)
        return data
    name = type(error).__name__
    text = "".join(traceback.format_exception(error, limit=-8))
    return {
        "code": ProcessorError.code,
        "message": _cut(f"{name}: {error}" if str(error) else name, MAX_MESSAGE),
        "details": [{"type": name, "traceback": text[-MAX_TRACEBACK:]}],
    }


def rebuild(data: object) -> HeadraceError:
    """The error that `describe` described; unknown codes become a `ProcessorError`."""
    if not isinstance(data, dict):
        return ProcessorError(f"the engine answered with an error that is a {type(data).__name__}")
    message, field = str(data.get("message", "no message")), data.get("field")
    if not isinstance(field, str):
        field = None
    kind = _by_code(HeadraceError).get(str(data.get("code")), ProcessorError)
    if issubclass(kind, EngineError):
        return EngineError(message, field=field)
    details = data.get("details")
    known = [part for part in details if isinstance(part, dict)] if isinstance(details, list) else []
    return kind(message, field=field, details=known)


def _by_code(base: type[HeadraceError]) -> dict[str, type[HeadraceError]]:
    """Every error class by its code; the first of a code that several share."""
    found = {base.code: base}
    for kind in base.__subclasses__():
        found = _by_code(kind) | found
    return found


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."

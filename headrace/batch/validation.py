"""From what came in to a checked request, or to an error that says what is wrong with which field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from headrace.batch.errors import ValidationFailed
from headrace.batch.fields import BAD_VALUE, Request
from stream.errors import HeadraceError, InvalidInput

R = TypeVar("R", bound=Request)

BOUNDS = {
    "greater_than": "gt",
    "greater_than_equal": "ge",
    "less_than": "lt",
    "less_than_equal": "le",
    "multiple_of": "multiple_of",
    "string_too_long": "max_length",
    "string_too_short": "min_length",
    "too_long": "max_length",
    "too_short": "min_length",
    "literal_error": "expected",
    "finite_number": "",
    BAD_VALUE: "",
}
"""Errors about values of the right type: answered 400. What has the wrong type is answered 422."""
WORDS = {
    "gt": "must be more than {}",
    "ge": "must be at least {}",
    "lt": "must be less than {}",
    "le": "must be at most {}",
    "multiple_of": "must be a multiple of {}",
    "expected": "must be {}",
}
SHOWN = 200
"""Characters of a value that an answer repeats."""


def parse_request(model: type[R], data: Mapping[str, Any]) -> R:
    """``data`` as ``model``. Raises `InvalidInput` (a value outside its bounds; names field, limit and value)
    or `ValidationFailed` (missing fields and wrong types; every problem at once)."""
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        raise as_answer(error) from None


def as_answer(error: ValidationError) -> HeadraceError:
    """The error that answers a failed validation."""
    problems = error.errors(include_url=False)
    shape = [problem for problem in problems if problem["type"] not in BOUNDS]
    if not shape:
        texts = [_words(problem) for problem in problems]
        return InvalidInput(" ".join(texts), field=_path(problems[0]))
    details = [_detail(problem) for problem in problems]
    text = "; ".join(f"{_path(problem)}: {problem['msg']}" for problem in shape[:10])
    return ValidationFailed(text, details, field=_path(shape[0]))


def _words(problem: ErrorDetails) -> str:
    """One problem of bounds as a sentence."""
    if problem["type"] == BAD_VALUE:
        return problem["msg"]
    field, value, context = _path(problem), problem["input"], problem.get("ctx", {})
    limit = BOUNDS[problem["type"]]
    if limit in ("max_length", "min_length"):
        unit = "characters" if isinstance(value, str) else "bytes" if isinstance(value, bytes) else "items"
        most = "at most" if limit == "max_length" else "at least"
        return f"{field} has {len(value)} {unit}; {most} {context[limit]} are taken."
    wanted = WORDS[limit].format(context[limit]) if limit else "must be a finite number"
    return f"{field} is {shown(value)}; it {wanted}."


def _detail(problem: ErrorDetails) -> dict[str, Any]:
    """A problem as FastAPI's clients know it."""
    detail: dict[str, Any] = {
        "type": problem["type"],
        "loc": ["body", *problem["loc"]],
        "msg": problem["msg"],
        "input": shown(problem["input"]),
    }
    if context := {k: v for k, v in problem.get("ctx", {}).items() if isinstance(v, str | int | float)}:
        detail["ctx"] = context
    return detail


def _path(problem: ErrorDetails) -> str:
    return ".".join(map(str, problem["loc"])) or problem.get("ctx", {}).get("field", "body")


def shown(value: Any) -> Any:
    """A value as an answer may repeat it: short, and JSON."""
    if isinstance(value, bool | int | None):
        return value if not isinstance(value, int) or abs(value) < 1 << 64 else "a very large number"
    if isinstance(value, float):
        return value if abs(value) != float("inf") and value == value else str(value)
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    text = (
        value
        if isinstance(value, str)
        else f"{type(value).__name__} of {len(value)}"
        if hasattr(value, "__len__")
        else type(value).__name__
    )
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"

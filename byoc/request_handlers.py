"""Batch work of a capability: methods that answer ``/process/request/...``, with JSON or events.

An orchestrator sends ``POST /process/request/{path}`` on as ``POST {url}/{path}``, with the body, its type
and the worker's token alone. Both paths are answered here: a request works with and without it.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError

from stream.errors import InvalidInput

Function = TypeVar("Function", bound=Callable[..., Any])

MARK: Final = "_headrace_request_handler"
PREFIX: Final = "/process/request"
PATH: Final = re.compile(r"/[A-Za-z0-9._~-]+(/[A-Za-z0-9._~-]+)*")
MAX_BODY: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class RequestRules:
    """What a handler answers and how much of it: ``concurrency`` requests at once, ``waiting`` more,
    ``timeout`` seconds for one, ``max_body`` bytes of its body."""

    path: str
    concurrency: int = 1
    waiting: int = 16
    timeout: float = 600.0
    max_body: int = MAX_BODY


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that is not JSON. ``metadata`` goes into the header ``X-Metadata``, the only one besides the
    type that comes through to the client's gateway."""

    body: bytes | str
    content_type: str = "application/octet-stream"
    metadata: str | None = None


def request_handler(
    path: str,
    *,
    concurrency: int = 1,
    waiting: int = 16,
    timeout: float = 600.0,
    max_body: int = MAX_BODY,
) -> Callable[[Function], Function]:
    """Have a method answer ``POST {path}``.

    It gets the body: as bytes where its parameter is annotated so, as the type that it is annotated with (a
    pydantic model, a dataclass, a list of them; checked, with every problem named), else as the JSON value.
    What it returns is the answer: any JSON value or pydantic model, a `Reply`, or bytes. An async generator
    answers with server-sent events, ended by ``[DONE]``. A plain function runs in a thread; it cannot be
    cancelled and holds its place until it returns. Others are cancelled when the client leaves or after
    ``timeout`` s. Raises `InvalidInput` for a path or number that cannot be.
    """
    if not PATH.fullmatch(path):
        raise InvalidInput(f"a request handler's path reads as /summarise, not {path!r}", field="path")
    for name, value, least in (
        ("concurrency", concurrency, 1),
        ("waiting", waiting, 0),
        ("max_body", max_body, 1),
    ):
        if value < least:
            raise InvalidInput(f"{name} must be at least {least}, not {value}", field=name)
    if timeout <= 0:
        raise InvalidInput(f"timeout must be more than 0 s, not {timeout:g}", field="timeout")
    rules = RequestRules(path, concurrency, waiting, timeout, max_body)

    def mark(function: Function) -> Function:
        setattr(function, MARK, rules)
        return function

    return mark


class RequestHandler:
    """One bound method with its rules, and how its argument is made of a body."""

    def __init__(self, method: Callable[..., Any], rules: RequestRules) -> None:
        self.method = method
        self.rules = rules
        self.streams = inspect.isasyncgenfunction(method)
        if inspect.isgeneratorfunction(method):
            raise InvalidInput(
                f"{method.__qualname__} yields: write it with `async def`, which answers with events",
                field="path",
            )
        self._wanted = _annotation(method)
        self._adapter = None if self._wanted in (None, Any, bytes) else _adapter(self._wanted, method)

    def argument(self, body: bytes, content_type: str) -> Any:
        """What the method is called with; raises `InvalidInput` that names every problem."""
        if self._wanted is bytes:
            return body
        if content_type and "json" not in content_type:
            raise InvalidInput(
                f"{self.rules.path} takes application/json, not {content_type[:80]!r}", field="Content-Type"
            )
        try:
            value = json.loads(body or b"{}")
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"the body is not JSON: {error}", field="body") from None
        return self._validated(value)

    def _validated(self, value: Any) -> Any:
        if self._adapter is None:
            return value
        try:
            return self._adapter.validate_python(value)
        except ValidationError as error:
            problems = [
                {"field": ".".join(map(str, p["loc"])) or "body", "message": p["msg"]} for p in error.errors()
            ]
            text = "; ".join(f"{p['field']}: {p['message']}" for p in problems)
            raise InvalidInput(text, field=problems[0]["field"], details=problems) from None

    def events(self, argument: Any) -> AsyncGenerator[Any, None]:
        """The method's generator, for one that `streams`."""
        found: AsyncGenerator[Any, None] = self.method(argument)
        return found


def handlers_of(instance: object) -> list[RequestHandler]:
    """The handlers among an object's methods; raises `InvalidInput` when two have one path."""
    found: dict[str, RequestHandler] = {}
    for name in dir(type(instance)):
        # Properties are not to be evaluated.
        rules = getattr(getattr(type(instance), name, None), MARK, None)
        if not isinstance(rules, RequestRules):
            continue
        if rules.path in found:
            raise InvalidInput(f"two request handlers answer {rules.path}", field="path")
        found[rules.path] = RequestHandler(getattr(instance, name), rules)
    return list(found.values())


def _annotation(method: Callable[..., Any]) -> Any:
    """The type of the first parameter; None without one. `InvalidInput` where it cannot be found."""
    parameters = list(inspect.signature(method).parameters.values())
    if not parameters:
        raise InvalidInput(f"{method.__qualname__} takes no body: give it a parameter", field="path")
    wanted = parameters[0].annotation
    if wanted is inspect.Parameter.empty:
        return None
    if not isinstance(wanted, str):
        return wanted
    try:
        # Alone: another annotation may name what is imported for type checkers only.
        return eval(wanted, inspect.unwrap(method).__globals__)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise InvalidInput(f"{method.__qualname__} takes a {wanted}: {error}", field="path") from None


def _adapter(wanted: Any, method: Callable[..., Any]) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(wanted)
    except (PydanticUserError, PydanticUndefinedAnnotation) as error:
        raise InvalidInput(
            f"{method.__qualname__} takes a {wanted!r}, which cannot be made of JSON: {error.message}",
            field="path",
        ) from None

"""What passes between a gateway, an orchestrator and a worker. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stream.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Answer:
    """What the orchestrator answers a gateway."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body, decoded; raises `ValueError`."""
        return json.loads(self.body)

    @property
    def events(self) -> list[str]:
        """The data of each server-sent event."""
        lines = self.text.splitlines()
        return [line.removeprefix("data:").strip() for line in lines if line.startswith("data:")]


@dataclass(frozen=True, slots=True)
class Call:
    """One call to a worker: the path, the status of its answer (None: there was none), and its body."""

    path: str
    status: int | None
    body: bytes


def json_object(body: bytes) -> dict[str, Any]:
    """A body that must be an object; raises `InvalidInput` in go-livepeer's words."""
    try:
        value = json.loads(body or b"{}")
    except ValueError:
        raise InvalidInput("Invalid JSON body", field="body") from None
    if not isinstance(value, dict):
        raise InvalidInput("Invalid JSON body", field="body")
    return value


def refusal(status: int, text: str) -> Answer:
    """An error as Go's servers answer it."""
    return Answer(status, f"{text}\n".encode(), {"Content-Type": "text/plain; charset=utf-8"})

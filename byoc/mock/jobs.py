"""What a gateway sends along with each job in the ``Livepeer`` header. Pure."""

from __future__ import annotations

import base64
import json
import uuid
from dataclasses import dataclass
from typing import Any

from stream.errors import InvalidInput

HEADER = "Livepeer"
BALANCE = "Livepeer-Balance"


@dataclass(frozen=True, slots=True)
class Job:
    """``request`` and ``parameters`` are JSON objects that travel as text; ``timeout`` is in seconds.

    ``id`` is the stream's, where there is one. Signatures and payments are left out.
    """

    capability: str
    id: str = ""
    request: str = "{}"
    parameters: str = "{}"
    timeout: int = 30

    @classmethod
    def parse(cls, header: str | None) -> Job:
        """The job in a header's value; raises `InvalidInput` in the gateway's words."""
        try:
            data = json.loads(base64.b64decode(header or "", validate=True))
            job = cls(
                capability=str(data.get("capability") or ""),
                id=str(data.get("id") or ""),
                request=data.get("request") or "",
                parameters=data.get("parameters") or "",
                timeout=int(data.get("timeout_seconds") or 0),
            )
        except (ValueError, AttributeError, TypeError) as error:
            raise InvalidInput(f"Unable to parse job request, err={error}", field=HEADER) from None
        if job.timeout == 0:
            raise InvalidInput(
                "no timeout_seconds set with request, timeout_seconds is required", field=HEADER
            )
        return job

    def header(self) -> str:
        """The value of the header."""
        told = {
            "id": self.id,
            "request": self.request,
            "parameters": self.parameters,
            "capability": self.capability,
            "timeout_seconds": self.timeout,
        }
        return base64.b64encode(json.dumps(told).encode()).decode()

    def details(self) -> dict[str, Any]:
        """``request``, decoded; raises `InvalidInput`."""
        return _object(self.request, "request details")

    def flags(self) -> dict[str, Any]:
        """``parameters``, decoded; raises `InvalidInput`."""
        return _object(self.parameters, "parameters")


def new_stream_id() -> str:
    return uuid.uuid4().hex[:16]


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"Unable to unmarshal job {what} err={error}", field=HEADER) from None
    if not isinstance(value, dict):
        raise InvalidInput(f"Unable to unmarshal job {what}: not an object", field=HEADER)
    return value

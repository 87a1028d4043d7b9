"""One hierarchy of errors, each with a stable code and the HTTP status that it is answered with.

Standard library only: the engine's host loads this module in foreign interpreters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class HeadraceError(Exception):
    """Base of every error that Headrace raises on purpose.

    ``code`` is for programs and stays the same between releases, the message is for people. ``field``
    names the setting, parameter or header at fault; ``details`` carries problems as data.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        details: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.details: list[dict[str, Any]] = [dict(d) for d in details]

    def as_dict(self) -> dict[str, Any]:
        """The error as JSON data: ``code``, ``message`` and, where known, ``field`` and ``details``."""
        data: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.field is not None:
            data["field"] = self.field
        if self.details:
            data["details"] = self.details
        return data


class InvalidInput(HeadraceError):
    """What the caller sent cannot be used; the message names the field, the limit and the value."""

    code = "invalid_input"
    status = 400


class InvalidWorkflow(InvalidInput):
    """A workflow that cannot run; ``details`` lists every problem at once."""

    code = "invalid_workflow"


class Unauthorized(HeadraceError):
    """The bearer token is missing or wrong."""

    code = "unauthorized"
    status = 401


class Forbidden(HeadraceError):
    """The request comes from where it may not: a page of another site, or under a foreign host name."""

    code = "forbidden"
    status = 403


class NotFound(HeadraceError):
    """The named session, stream, file or channel does not exist."""

    code = "not_found"
    status = 404


class MethodNotAllowed(HeadraceError):
    """The path is there, and takes other methods."""

    code = "method_not_allowed"
    status = 405


class Conflict(HeadraceError):
    """The request contradicts what is running (a stream id that is in use)."""

    code = "conflict"
    status = 409


class TooLarge(HeadraceError):
    """A body, picture or message over its limit."""

    code = "too_large"
    status = 413


class AtCapacity(HeadraceError):
    """Every slot is taken; try again later or elsewhere."""

    code = "at_capacity"
    status = 503


class NotInstalled(HeadraceError):
    """An optional package is missing; the message names the extra that brings it."""

    code = "not_installed"
    status = 501


class ClientLeft(HeadraceError):
    """The connection was closed before there was an answer. Nobody reads this one."""

    code = "client_left"
    status = 499


class SourceError(HeadraceError):
    """The input cannot be read: unreachable, gone, or not decodable."""

    code = "source_failed"
    status = 502


class SinkError(HeadraceError):
    """The output cannot be written."""

    code = "sink_failed"
    status = 502


class CodecError(HeadraceError):
    """A codec refused its settings or its data."""

    code = "codec_failed"
    status = 500


class ProcessorError(HeadraceError):
    """The user's processor or workflow raised, or returned something that is not a frame."""

    code = "processor_failed"
    status = 500


class EngineError(HeadraceError):
    """The processor is not there: its engine is still starting or loading, has crashed or hangs.

    ``progress`` runs from 0 to 1 where it is known.
    """

    code = "engine_unavailable"
    status = 503

    def __init__(self, message: str, *, field: str | None = None, progress: float | None = None) -> None:
        super().__init__(message, field=field)
        self.progress = progress

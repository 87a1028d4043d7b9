"""Errors that only the batch endpoints answer with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stream.errors import AtCapacity, EngineError, HeadraceError, InvalidInput


class ValidationFailed(InvalidInput):
    """A body of the wrong shape. ``details`` has one item per problem: ``type``, ``loc``, ``msg``, ``input``,
    as ai-runner's clients know them."""

    code = "validation_failed"
    status = 422

    def __init__(
        self, message: str, details: Sequence[Mapping[str, Any]], *, field: str | None = None
    ) -> None:
        super().__init__(message, field=field, details=details)


class UnsupportedMedia(InvalidInput):
    """A picture or sound in a format that cannot be read."""

    code = "unsupported_media"
    status = 415


class QueueFull(AtCapacity):
    """Too many requests wait already; ``retry_after``: seconds after which there may be room."""

    code = "queue_full"
    status = 429

    def __init__(self, message: str, *, retry_after: int, field: str | None = None) -> None:
        super().__init__(message, field=field)
        self.retry_after = retry_after


class Interrupted(EngineError):
    """The engine ended under a request, which may be sent again after ``retry_after`` seconds."""

    code = "engine_unavailable"
    status = 503

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class JobCancelled(HeadraceError):
    """The job was cancelled before it ended. Told of in its status, never in an answer."""

    code = "cancelled"
    status = 409

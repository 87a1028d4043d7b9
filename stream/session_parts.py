"""What a session is put together from: the faces that its parts show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from stream.errors import HeadraceError
from stream.mpegts import AccessUnit
from stream.pipeline import Decoding, PipelineSettings
from stream.processor import Emission

if TYPE_CHECKING:
    from stream.session import Session


class Source(Protocol):
    """Reads access units until its end; raises `SourceError` when it cannot.

    It may have an ``end_reason``, in words, and `KeySource`'s method.
    """

    async def run(self, put: Callable[[AccessUnit], None], tracks: Callable[[bool, bool], None]) -> None: ...


@runtime_checkable
class KeySource(Protocol):
    """A source that can be asked for a key picture."""

    def request_key(self) -> None: ...


class SideChannels(Protocol):
    """Control in, events and data out. `run` ends when the other side says that the stream is over, and
    returns how it did, in words."""

    async def run(self, session: Session) -> str: ...
    def event(self, event: dict[str, Any], kind: str) -> None: ...
    def data(self, emission: Emission) -> None: ...
    async def close(self) -> None: ...


class StreamDecoding(Decoding, Protocol):
    """The first stage of a live stream: `UnitDecoding` behind a `Source`, or one that makes its frames."""

    errors: int
    dropped: int
    decoder_name: str | None
    fallback_reason: str | None
    last_problem: str | None

    def end(self) -> None: ...


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """``input_timeout``: seconds without a picture or sound after which the session ends (None: never)."""

    pipeline: PipelineSettings = field(default_factory=PipelineSettings)
    input_timeout: float | None = 60.0
    on_stream_stop_timeout: float = 5.0


@dataclass(slots=True)
class Ending:
    """Why and how a session ended; ``error`` is None for a clean end."""

    reason: str
    error: HeadraceError | None = None

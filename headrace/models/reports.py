"""What is told of an entry of the cache: from its engine to the worker, from the worker to callers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrace.models.refs import ModelKey


@dataclass(frozen=True, slots=True)
class EntryReport:
    """One entry of a cache as it is told to others.

    ``state``: ``loading``, ``loaded`` or ``leaving``; ``progress`` from 0 to 1 and ``what`` is done while it
    loads. ``parts``: names and bytes of its pieces of memory, those that are shared by their files.
    ``last_used``: seconds of `time.time`. ``weights``: ``real``, ``random`` or ``substitute:NAME``, empty
    while it loads.
    """

    key: ModelKey
    state: str
    progress: float
    what: str
    parts: Mapping[str, int]
    leases: int
    pinned: bool
    last_used: float
    weights: str
    load_seconds: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "key": self.key.as_dict(),
            "state": self.state,
            "progress": self.progress,
            "what": self.what,
            "bytes": sum(self.parts.values()),
            "parts": dict(self.parts),
            "leases": self.leases,
            "pinned": self.pinned,
            "last_used": self.last_used,
            "weights": self.weights,
            "load_seconds": self.load_seconds,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EntryReport:
        """Raises KeyError, TypeError or ValueError for what is no entry."""
        return cls(
            key=ModelKey.from_dict(data["key"]),
            state=str(data["state"]),
            progress=float(data["progress"]),
            what=str(data["what"]),
            parts={str(name): int(size) for name, size in data["parts"].items()},
            leases=int(data["leases"]),
            pinned=bool(data["pinned"]),
            last_used=float(data["last_used"]),
            weights=str(data["weights"]),
            load_seconds=float(data["load_seconds"]),
        )

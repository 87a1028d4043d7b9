"""One model of the cache: what loading it gives, how far that is, and who wants it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from headrace.models.refs import ModelKey
from stream.errors import HeadraceError


@dataclass(slots=True)
class Loaded:
    """What a load gives: the model and what its memory is.

    ``parts``: names and bytes of the pieces of memory; empty: measured (`headrace.models.memory.parts_of`).
    ``weights``: ``real``, ``random`` or ``substitute:NAME``. ``close`` is called when it is unloaded.
    """

    model: Any
    parts: Mapping[str, int] = field(default_factory=dict)
    weights: str = "real"
    close: Callable[[], None] | None = None


class Gate(Protocol):
    """Who admits loads to the device when several processes share it. Called in the thread of the load."""

    def admit(self, key: ModelKey, size: int) -> None:
        """Return when ``size`` bytes may be taken; raises `ModelTooLarge` or `NoRoom`."""
        ...

    def settled(self, key: ModelKey) -> None:
        """The load has ended, well or badly, or the model is no longer in use, or has been unloaded."""
        ...


class LoadProgress:
    """What a load tells those who wait for it."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.fraction = 0.0
        self.what = "waiting for memory"
        self._changed = changed

    def __call__(self, fraction: float, what: str = "") -> None:
        """``fraction`` from 0 to 1; never shown as less than before."""
        self.fraction = max(self.fraction, min(1.0, fraction))
        self.what = what or self.what
        self._changed()


class Slot:
    """One entry from the first request for it to its unloading. Guarded by the cache's lock."""

    def __init__(self, key: ModelKey, size: int | Callable[[], int], changed: Callable[[], None]) -> None:
        self.key = key
        self.size = size
        self.progress = LoadProgress(changed)
        self.loaded: Loaded | None = None
        self.error: HeadraceError | None = None
        self.wanted = 0
        """Leases, and waiters that will have one."""
        self.pinned = False
        self.last_used = time.time()
        self.begun = time.monotonic()
        self.seconds = 0.0


class Lease:
    """The right to use a model until `release`; a context manager that gives the lease itself."""

    def __init__(self, give_back: Callable[[Slot], None], slot: Slot, loaded: Loaded) -> None:
        self._give_back = give_back
        self._slot: Slot | None = slot
        self.key = slot.key
        self.model: Any = loaded.model
        self.weights = loaded.weights

    def release(self) -> None:
        """Give it back; ``model`` is then None. Safe to call twice."""
        slot, self._slot = self._slot, None
        self.model = None
        if slot is not None:
            self._give_back(slot)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

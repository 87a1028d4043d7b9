"""Where one stage hands over to the next: the newest frame wins, encoded units keep their order. Pure.

Neither is thread-safe by itself; `stream.handoff` wraps them for threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Holds the newest ``limit`` items; what does not fit pushes the oldest out."""

    def __init__(self, limit: int = 1) -> None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        self._items: deque[T] = deque()
        self.limit = limit
        self.put_count = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> list[T]:
        """Add the newest; returns what was pushed out, oldest first."""
        self.put_count += 1
        self._items.append(item)
        pushed_out = []
        while len(self._items) > self.limit:
            pushed_out.append(self._items.popleft())
        self.dropped += len(pushed_out)
        return pushed_out

    def put_all(self, items: Iterable[T]) -> list[T]:
        """Add several that belong together: the limit counts them as one."""
        batch = list(items)
        before, self.limit = self.limit, max(self.limit, len(batch))
        pushed_out = [old for item in batch for old in self.put(item)]
        self.limit = before
        return pushed_out

    def take(self) -> T | None:
        """The oldest of those that are held, or None."""
        return self._items.popleft() if self._items else None


class Unit(Protocol):
    """What `UnitQueue` must know of an access unit."""

    @property
    def kind(self) -> str: ...
    @property
    def key(self) -> bool: ...
    @property
    def data(self) -> bytes: ...
    @property
    def received(self) -> int: ...


U = TypeVar("U", bound=Unit)


class UnitQueue(Generic[U]):
    """Access units on their way to a decoder that may be too slow for them.

    Order is kept. A picture can only be left out together with everything up to the next key picture, so
    when the queue holds more than ``max_units`` or ``max_bytes``, or its oldest picture has waited longer
    than ``max_age`` (ns) and a key picture waits behind it, all pictures before the newest key picture
    go; without one, all pictures go and none is taken until the next key picture.
    """

    def __init__(
        self, *, max_units: int = 240, max_bytes: int = 32 << 20, max_age: int = 1_000_000_000
    ) -> None:
        self._units: deque[U] = deque()
        self._bytes = 0
        self._max_units = max_units
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._wants_key = False
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._units)

    @property
    def size(self) -> int:
        """Bytes held."""
        return self._bytes

    @property
    def wants_key(self) -> bool:
        """Whether pictures are left out until a key picture comes."""
        return self._wants_key

    def put(self, unit: U) -> None:
        if self._wants_key and unit.kind == "video":
            if not unit.key:
                self.dropped += 1
                return
            self._wants_key = False
        self._units.append(unit)
        self._bytes += len(unit.data)
        if len(self._units) > self._max_units or self._bytes > self._max_bytes:
            self._shed()

    def take(self, now: int) -> U | None:
        if self._units and self._too_old(now):
            self._drop_before_newest_key()
        if not self._units:
            return None
        unit = self._units.popleft()
        self._bytes -= len(unit.data)
        return unit

    def _too_old(self, now: int) -> bool:
        oldest = next((unit for unit in self._units if unit.kind == "video"), None)
        return oldest is not None and now - oldest.received > self._max_age

    def _shed(self) -> None:
        self._drop_before_newest_key()
        if len(self._units) > self._max_units or self._bytes > self._max_bytes:
            self._keep(lambda index, unit: unit.kind != "video")
            self._wants_key = True
        while self._units and (len(self._units) > self._max_units or self._bytes > self._max_bytes):
            self._bytes -= len(self._units.popleft().data)
            self.dropped += 1

    def _drop_before_newest_key(self) -> None:
        keys = [i for i, unit in enumerate(self._units) if unit.kind == "video" and unit.key]
        if keys:
            newest = keys[-1]
            self._keep(lambda index, unit: unit.kind != "video" or index >= newest)

    def _keep(self, wanted: Callable[[int, U], bool]) -> None:
        kept = [unit for index, unit in enumerate(self._units) if wanted(index, unit)]
        self.dropped += len(self._units) - len(kept)
        self._units = deque(kept)
        self._bytes = sum(len(unit.data) for unit in kept)

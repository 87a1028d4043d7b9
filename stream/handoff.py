"""Hand-over between threads and the event loop, on the pure cores of `stream.mailbox`."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from stream.mailbox import Mailbox, Unit, UnitQueue

T = TypeVar("T")
U = TypeVar("U", bound=Unit)


class ToLoop(Generic[T]):
    """From one thread to one coroutine.

    Live, the newest wins and `put` never waits. Lossless, `put` waits for room, so that the thread is held
    back. ``on_arrival`` is called on the loop with the note of every item, taken or not: the note alone, so
    that a loop that stands still holds no frames. After `close` what is held is still taken, then `take`
    returns None; after `abort` at once.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        limit: int = 1,
        lossless: bool = False,
        on_arrival: Callable[[Any], None] | None = None,
    ) -> None:
        self._loop = loop
        self._on_arrival = on_arrival
        self._box: Mailbox[T] = Mailbox(limit)
        self._lossless = lossless
        self._room = threading.Condition()
        self._arrived = asyncio.Event()
        self._closed = False
        self._aborted = False

    @property
    def dropped(self) -> int:
        return self._box.dropped

    def put(self, item: T, note: Any = None) -> bool:
        """From the thread; ``note`` goes to ``on_arrival``. False when nothing is taken any more."""
        with self._room:
            if self._lossless:
                self._room.wait_for(lambda: self._aborted or len(self._box) < self._box.limit)
            if self._aborted or self._closed:
                return False
            self._box.put(item)
        self._wake(note)
        return True

    async def take(self) -> T | None:
        """The oldest that is held, when there is one; None at the end."""
        while True:
            with self._room:
                if self._aborted:
                    return None
                item = self._box.take()
                if item is not None:
                    self._room.notify_all()
                    return item
                if self._closed:
                    return None
                self._arrived.clear()
            await self._arrived.wait()

    def close(self) -> None:
        """From either side: nothing more will be put."""
        with self._room:
            self._closed = True
            self._room.notify_all()
        self._wake()

    def abort(self) -> None:
        """From either side: what is held is of no use any more."""
        with self._room:
            self._aborted = True
            self._room.notify_all()
        self._wake()

    def _wake(self, note: Any = None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._woken, note)
        except RuntimeError:
            # The loop has ended: nobody waits any more.
            pass

    def _woken(self, note: Any) -> None:
        self._arrived.set()
        if note is not None and self._on_arrival is not None:
            self._on_arrival(note)


class UnitsToThread(Generic[U]):
    """Access units of a live stream from the loop to a decoding thread; `put` never waits but sheds."""

    def __init__(self, limit: int = 240) -> None:
        self._queue: UnitQueue[U] = UnitQueue(max_units=limit)
        self._changed = threading.Condition()
        self._closed = False
        self._aborted = False

    @property
    def dropped(self) -> int:
        return self._queue.dropped

    @property
    def wants_key(self) -> bool:
        """Whether pictures are left out until a key picture comes."""
        return self._queue.wants_key

    def put(self, unit: U) -> None:
        with self._changed:
            if not (self._closed or self._aborted):
                self._queue.put(unit)
                self._changed.notify_all()

    def take(self) -> U | None:
        """From the thread: the next unit, when there is one; None at the end."""
        with self._changed:
            while not self._aborted:
                unit = self._queue.take(time.monotonic_ns())
                if unit is not None:
                    return unit
                if self._closed:
                    return None
                self._changed.wait()
        return None

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abort(self) -> None:
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

"""Hand-over between threads and the event loop, on the pure cores of `stream.mailbox`."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from stream.mailbox import Mailbox, Unit, UnitQueue

T = TypeVar("T")
U = TypeVar("U", bound=Unit)


class ToLoop(Generic[T]):
    """From one thread to one coroutine.

    Live, the newest wins and `put` never waits. Lossless, `put` waits for room, so that the thread is held
    back. ``on_arrival`` is called on the loop for every item, taken or not. After `close` what is held is
    still taken, then `take` returns None; after `abort` at once.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        limit: int = 1,
        lossless: bool = False,
        on_arrival: Callable[[T], None] | None = None,
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

    def put(self, item: T) -> bool:
        """From the thread. False when nothing is taken any more."""
        with self._room:
            if self._lossless:
                self._room.wait_for(lambda: self._aborted or len(self._box) < self._box.limit)
            if self._aborted or self._closed:
                return False
            self._box.put(item)
        self._wake(item)
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

    def _wake(self, item: T | None = None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._woken, item)
        except RuntimeError:
            # The loop has ended: nobody waits any more.
            pass

    def _woken(self, item: T | None) -> None:
        self._arrived.set()
        if item is not None and self._on_arrival is not None:
            self._on_arrival(item)


class UnitsToThread(Generic[U]):
    """Access units from the loop to a decoding thread.

    Live, `put` never waits and the queue sheds by itself. Lossless, `put_wait` waits for room.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, lossless: bool = False, limit: int = 240) -> None:
        self._loop = loop
        self._lossless = lossless
        self._limit = limit
        age = 1 << 62 if lossless else 1_000_000_000
        self._queue: UnitQueue[U] = UnitQueue(max_units=1 << 30 if lossless else limit, max_age=age)
        self._changed = threading.Condition()
        self._room = asyncio.Event()
        self._closed = False
        self._aborted = False

    @property
    def dropped(self) -> int:
        return self._queue.dropped

    def put(self, unit: U) -> None:
        with self._changed:
            if not (self._closed or self._aborted):
                self._queue.put(unit)
                self._changed.notify_all()

    async def put_wait(self, unit: U) -> None:
        while True:
            with self._changed:
                if self._aborted or len(self._queue) < self._limit:
                    break
                self._room.clear()
            await self._room.wait()
        self.put(unit)

    def take(self) -> U | None:
        """From the thread: the next unit, when there is one; None at the end."""
        with self._changed:
            while True:
                if self._aborted:
                    return None
                unit = self._queue.take(time.monotonic_ns())
                if unit is not None:
                    break
                if self._closed:
                    return None
                self._changed.wait()
        if self._lossless:
            self._wake_loop()
        return unit

    def _wake_loop(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._room.set)
        except RuntimeError:
            # The loop has ended: nobody waits any more.
            pass

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abort(self) -> None:
        with self._changed:
            self._aborted = True
            self._changed.notify_all()
        self._room.set()

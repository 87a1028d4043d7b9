"""Threads for requests, kept for a while when they have nothing to do, and the way back to the loop.

A new thread starts on whichever core is idle, whose caches hold nothing of the model, and what torch's
libraries keep by thread is made for it anew.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from stream.errors import AtCapacity

KEPT = 30.0
"""Seconds for which a thread waits for other work."""
_END = 0.5

Work = Callable[[], None]


def on_loop(loop: asyncio.AbstractEventLoop, work: Callable[..., object], *arguments: Any) -> bool:
    """Have ``work`` done on the loop, from any thread; False when that is closed: the engine is ending."""
    try:
        loop.call_soon_threadsafe(work, *arguments)
    except RuntimeError:
        return False
    return True


class HostThreads:
    """Starts work at once, each in a thread of its own: the one that was the last to finish, or a new one.

    Work must not raise. `start` may be called from any thread, and raises `AtCapacity` where the system gives
    no more threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Kept] = []
        self._closed = False

    def start(self, work: Work, name: str) -> None:
        with self._lock:
            kept = self._idle.pop() if self._idle else None
        if kept is None:
            kept = _Kept(self._rests, self._leaves)
            try:
                kept.thread.start()
            except RuntimeError as error:
                raise AtCapacity(f"no thread for {name!r}: {error}") from error
        kept.thread.name = name
        kept.take(work)

    def close(self) -> None:
        """End those that have nothing to do, now or when they have done it."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for kept in idle:
            kept.take(None)
        end = time.monotonic() + _END
        for kept in idle:
            kept.thread.join(max(0.0, end - time.monotonic()))

    def _rests(self, kept: _Kept) -> bool:
        """``kept`` is free; whether it is to wait for more."""
        with self._lock:
            if not self._closed:
                kept.thread.name = "waits for work"
                self._idle.append(kept)
            return not self._closed

    def _leaves(self, kept: _Kept) -> bool:
        """``kept`` has waited long enough; False when work is on its way to it."""
        with self._lock:
            if kept not in self._idle:
                return False
            self._idle.remove(kept)
            return True


class _Kept:
    """One of the threads."""

    def __init__(self, rests: Callable[[_Kept], bool], leaves: Callable[[_Kept], bool]) -> None:
        self._rests, self._leaves = rests, leaves
        self._work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self.take = self._work.put
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while True:
            try:
                work = self._work.get(timeout=KEPT)
            except queue.Empty:
                if self._leaves(self):
                    return
                continue
            if work is None:
                return
            work()
            del work  # and with it the request that it was for
            if not self._rests(self):
                return

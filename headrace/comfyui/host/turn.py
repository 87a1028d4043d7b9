"""The one execution lock of a ComfyUI process.

Its folders, its interrupt flag and its memory management are global, so one at a time runs nodes: a frame of
one of the streams, or a thread that prepares something beside them, which lets go between two nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from headrace.engine.home import NotNow
from stream.timeouts import TIMED_OUT, timeout

PATIENCE = 1.0
"""Seconds that a frame waits for a node that is being run beside it, or for a frame of another stream; then
it is left out, with the reason."""
_FIRST_LOOK = 0.001
_LOOK = 0.005


class Turn:
    """As a context manager it belongs to a thread, within which it is reentrant; `of_frame` is for the tasks
    of the thread of the frames. ``enter`` is called each time that it goes to somebody."""

    def __init__(self, enter: Callable[[], None]) -> None:
        self._lock = threading.RLock()
        self._frames = asyncio.Lock()
        """The other lock does not tell one task of a thread from another."""
        self._enter = enter
        self._since = 0.0
        self.frame_at = float("-inf")
        """When a frame was last worked on, `time.monotonic`."""

    def __enter__(self) -> Turn:
        self._lock.acquire()
        self._since = time.monotonic()
        self._entered()
        return self

    def _entered(self) -> None:
        try:
            self._enter()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exc_info: Any) -> None:
        self._lock.release()

    @contextlib.asynccontextmanager
    async def of_frame(self) -> AsyncIterator[None]:
        """Held for a frame, also while that awaits. Raises `NotNow` after `PATIENCE` seconds."""
        until = time.monotonic() + PATIENCE
        try:
            async with timeout(PATIENCE):
                await self._frames.acquire()
        except TIMED_OUT:
            raise NotNow(f"ComfyUI works on another stream's frame{self._held()}") from None
        try:
            await self._of_thread(until)
            try:
                yield
            finally:
                self.__exit__()
        finally:
            self._frames.release()

    async def _of_thread(self, until: float) -> None:
        look = _FIRST_LOOK
        while not self._lock.acquire(blocking=False):
            if time.monotonic() > until:
                raise NotNow(f"ComfyUI prepares something else{self._held()}")
            await asyncio.sleep(look)
            look = _LOOK
        self._since = self.frame_at = time.monotonic()
        self._entered()

    def _held(self) -> str:
        return f", for {time.monotonic() - self._since:.0f} s now; the picture stands still"

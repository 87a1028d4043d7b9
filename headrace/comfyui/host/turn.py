"""The one execution lock of a ComfyUI process.

Its folders, its interrupt flag and its memory management are global, so one thread at a time runs nodes:
that of the frames, or one that prepares something beside them, which lets go between two nodes.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

from headrace.engine.home import NotNow

PATIENCE = 1.0
"""Seconds that a frame waits for a node that is being run beside it; then it is left out, with the reason."""
_FIRST_LOOK = 0.001
_LOOK = 0.005


class Turn:
    """Reentrant for the thread that has it. ``enter`` is called each time that it goes to a thread."""

    def __init__(self, enter: Callable[[], None]) -> None:
        self._lock = threading.RLock()
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

    async def of_frame(self) -> Turn:
        """Wait for it on the loop of the frames. Raises `NotNow` after `PATIENCE` seconds.

        The caller then leaves by `__exit__`.
        """
        until, look = time.monotonic() + PATIENCE, _FIRST_LOOK
        while not self._lock.acquire(blocking=False):
            if time.monotonic() > until:
                held = time.monotonic() - self._since
                raise NotNow(
                    f"ComfyUI prepares something else, for {held:.0f} s now; the picture stands still"
                )
            await asyncio.sleep(look)
            look = _LOOK
        self.frame_at = time.monotonic()
        self._entered()
        return self

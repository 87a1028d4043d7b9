"""A long-running worker's memory: little for the collector to look at, and what sessions freed given back."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging

log = logging.getLogger(__name__)

DELAY = 2.0
"""Seconds after a session's end until its memory is given back: it lets go of the last of it by then."""


def settle() -> None:
    """Call when a program is up: what there is now stays, and no collection need look at it again.

    A full collection of a worker takes tens of milliseconds otherwise, in which no frame moves.
    """
    gc.collect()
    gc.freeze()


class HeapTrimmer:
    """Gives freed memory back to the system after sessions have ended. Belongs to the loop.

    glibc keeps what codecs have freed; after some hundred sessions that is more than the worker itself needs.
    """

    def __init__(self) -> None:
        self._due: asyncio.TimerHandle | None = None
        self._running: asyncio.Future[None] | None = None

    def session_ended(self, session: object) -> None:
        """Have memory given back a little later; several ends in a row count once."""
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(DELAY, self._trim)

    def close(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _trim(self) -> None:
        self._due = None
        # In a thread: it takes milliseconds, and holds no lock of Python's.
        self._running = asyncio.get_running_loop().run_in_executor(None, give_back)


def give_back() -> None:
    """Have glibc give the heap that nobody uses any more back to the system."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError) as error:
        # musl has none, and keeps nothing.
        log.debug("no malloc_trim: %s", error)

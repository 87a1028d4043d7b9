"""How the C library hands out memory in the worker."""

from __future__ import annotations

import ctypes
import logging

log = logging.getLogger(__name__)

_M_ARENA_MAX = -8


def bound_heaps() -> None:
    """Two heaps for all threads instead of eight for each core (mallopt(3)).

    Frames are allocated in one thread and freed in another. With a heap for each thread, what a session
    holds creeps up for a minute before it levels off, far above what it needs.
    """
    try:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
    except (OSError, AttributeError) as error:
        log.debug("heaps stay as they are: %s", error)

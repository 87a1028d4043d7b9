"""One thread at a time makes modules.

The libraries change torch for the whole process while they make a module: accelerate replaces
``Module.register_parameter`` and so puts parameters on the meta device, transformers and diffusers set the
default type. A module that another thread makes meanwhile would have no weights.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

_ALONE = threading.RLock()
_POLL = 0.1
"""Seconds between two looks at whether a waiter still wants to."""


@contextlib.contextmanager
def building(cancel: Callable[[], None] | None = None) -> Iterator[None]:
    """Make modules inside this block. ``cancel`` is called while it waits, and leaves it by raising."""
    while not _ALONE.acquire(timeout=_POLL):
        if cancel is not None:
            cancel()
    try:
        yield
    finally:
        _ALONE.release()

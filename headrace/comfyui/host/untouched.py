"""Looking at an installation without making folders in it, as some of its modules and classes do."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

_looking = threading.local()


def guard(directory: str) -> None:
    """From now on nothing makes a folder below ``directory`` while it only looks (`looking`)."""
    real, home = os.makedirs, directory.rstrip(os.sep) + os.sep

    def makedirs(name: Any, *arguments: Any, **named: Any) -> None:
        if not (getattr(_looking, "now", False) and os.path.abspath(os.fspath(name)).startswith(home)):
            real(name, *arguments, **named)

    os.makedirs = makedirs


@contextlib.contextmanager
def looking() -> Iterator[None]:
    """What the present thread does in here is no reason to make a folder."""
    before = getattr(_looking, "now", False)
    _looking.now = True
    try:
        yield
    finally:
        _looking.now = before

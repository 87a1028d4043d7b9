"""Who is told what a session says: its own side channels first, then whoever listens."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeAlias

from stream.processor import Emission

log = logging.getLogger(__name__)

Listener: TypeAlias = "Callable[[str, dict[str, Any] | Emission], None]"


class Listeners:
    """Callbacks of a session; belong to the loop. One that raises is told no more."""

    def __init__(self) -> None:
        self._callbacks: dict[object, Listener] = {}

    def add(self, callback: Listener) -> Callable[[], None]:
        """Tell ``callback`` from now on; what is returned ends it and may be called twice."""
        key = object()
        self._callbacks[key] = callback
        return lambda: self._drop(key)

    def tell(self, kind: str, what: dict[str, Any] | Emission) -> None:
        for key, callback in list(self._callbacks.items()):
            try:
                callback(kind, what)
            except Exception:  # the edge to a listener: the session goes on
                log.exception("a listener broke over %s and is told no more", kind)
                self._drop(key)

    def clear(self) -> None:
        self._callbacks.clear()

    def _drop(self, key: object) -> None:
        self._callbacks.pop(key, None)

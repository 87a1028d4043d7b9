"""States and errors of the parts of a stream."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Any

from byoc.state import LoopEvent

log = logging.getLogger(__name__)

ErrorCallback = Callable[[str, Exception | None], Coroutine[Any, Any, None]]
"""Gets a type of error (``connection_failed``, ...) and what was raised, if anything was."""


class ComponentState(Enum):
    INIT = "INIT"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    ERROR = "ERROR"
    SHUTDOWN = "SHUTDOWN"


class TrickleComponent:
    """Something with a state of its own, whose errors somebody may want to hear of."""

    def __init__(self, error_callback: ErrorCallback | None = None, component_name: str = "unknown") -> None:
        self.error_event = LoopEvent()
        self.shutdown_event = LoopEvent()
        self.error_callback = error_callback
        self.component_name = component_name
        self.component_state = ComponentState.INIT
        self.last_error: str | None = None
        self.last_activity: float = time.time()

    def _update_state(self, state: ComponentState) -> None:
        self.component_state, self.last_activity = state, time.time()

    async def _notify_error(self, error_type: str, exception: Exception | None = None) -> None:
        """Note an error and tell the callback; one that raises itself is only logged."""
        self.error_event.set()
        self._update_state(ComponentState.ERROR)
        self.last_error = f"{error_type}: {exception or 'unknown'}"
        log.error("%s: %s", self.component_name, self.last_error)
        if self.error_callback is not None:
            try:
                await self.error_callback(error_type, exception)
            except Exception:  # the edge to a callback that is not ours
                log.exception("the error callback of %s raised", self.component_name)

    def get_component_health(self) -> dict[str, Any]:
        return {
            "component": self.component_name,
            "state": self.component_state.value,
            "error": self.error_event.is_set(),
            "last_error": self.last_error,
            "last_activity": self.last_activity,
            "should_stop": self.error_event.is_set() or self.shutdown_event.is_set(),
        }

    async def shutdown(self) -> None:
        """Tell whoever looks that this is to end."""
        self._update_state(ComponentState.SHUTDOWN)
        self.shutdown_event.set()

"""How a server stands: the state that health checks and orchestrators see."""

from __future__ import annotations

import asyncio
import logging
from enum import Enum
from typing import Any

from stream.states import Health
from stream.status import pytrickle_state

log = logging.getLogger(__name__)


class PipelineState(Enum):
    """LOADING until the model is there, IDLE without a stream, OK with one, ERROR when nothing can run."""

    LOADING = "LOADING"
    IDLE = "IDLE"
    OK = "OK"
    ERROR = "ERROR"


class LoopEvent(asyncio.Event):
    """An event that may be set and cleared from any thread; those who wait do so in one loop."""

    def __init__(self) -> None:
        super().__init__()
        self._raised = False
        self._home: asyncio.AbstractEventLoop | None = None

    def is_set(self) -> bool:
        return self._raised

    def set(self) -> None:
        self._raised = True
        self._at_home(super().set)

    def clear(self) -> None:
        self._raised = False
        self._at_home(super().clear)

    async def wait(self) -> Any:
        self._home = asyncio.get_running_loop()
        return True if self._raised else await super().wait()

    def _at_home(self, function: Any) -> None:
        home = self._home
        try:
            here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if home is None or home is here or home.is_closed():
            function()
        else:
            home.call_soon_threadsafe(function)


class StreamState:
    """Model, streams and errors of one server, with PyTrickle's words. May be used from any thread."""

    def __init__(self) -> None:
        self.running_event = LoopEvent()
        self.shutdown_event = LoopEvent()
        self.error_event = LoopEvent()
        self.active_client = False
        self.active_streams = 0
        self.startup_complete = False
        self.error_message: str | None = None
        self._state = PipelineState.LOADING

    @property
    def state(self) -> PipelineState:
        return self._state

    @property
    def running(self) -> bool:
        return self.running_event.is_set() and not (self.shutdown_event.is_set() or self.is_error())

    @property
    def pipeline_ready(self) -> bool:
        return self._state in (PipelineState.IDLE, PipelineState.OK)

    def set_active_client(self, active: bool) -> None:
        self.active_client = active

    def update_active_streams(self, count: int) -> None:
        self.active_streams = max(0, int(count))

    def update_component_health(self, component_name: str, health_data: dict[str, Any]) -> None:
        """Note in the log what a part says of itself; a stream's trouble is not the server's."""
        if health_data.get("error"):
            log.debug("%s: %s", component_name, health_data["error"])

    def set_state(self, state: PipelineState) -> None:
        self._state = state
        if state is PipelineState.ERROR:
            self.shutdown_event.set()
            self.error_event.set()
        else:
            self.running_event.set()

    def set_startup_complete(self) -> None:
        """The model is loaded."""
        self.startup_complete = True
        if self._state is PipelineState.LOADING:
            self.set_state(PipelineState.IDLE)

    def set_error(self, message: str) -> None:
        """Nothing can run, and why."""
        log.error("%s", message)
        self.error_message = message
        self.set_state(PipelineState.ERROR)

    def clear_error(self) -> None:
        """Back to LOADING; nothing happens without an error."""
        if self.is_error():
            self.error_event.clear()
            self.shutdown_event.clear()
            self.error_message = None
            self.set_state(PipelineState.LOADING)

    def is_error(self) -> bool:
        return self.error_event.is_set()

    @property
    def health(self) -> Health:
        """What `GET /health` says, as far as the state knows."""
        if self.is_error():
            return Health.ERROR
        if self.active_streams > 0 or self.active_client:
            return Health.OK
        return Health.IDLE if self.pipeline_ready and self.startup_complete else Health.LOADING

    def get_state(self) -> dict[str, Any]:
        return {
            "status": str(self.health),
            "pipeline_ready": self.pipeline_ready,
            "shutdown_initiated": self.shutdown_event.is_set(),
            "error": self.is_error(),
        }

    def get_pipeline_state(self) -> dict[str, Any]:
        """The state object in the server's answers."""
        answer = pytrickle_state(
            self.health, self.active_streams, ready=self.pipeline_ready, error=self.error_message
        )
        return {**answer, "startup_complete": self.startup_complete, "pipeline_state": self._state.name}

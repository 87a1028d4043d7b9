"""What a session says, and who is told: its own side channels first, then whoever listens."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeAlias

from stream.errors import HeadraceError
from stream.processor import Emission, Params
from stream.session_parts import SideChannels

log = logging.getLogger(__name__)

Listener: TypeAlias = "Callable[[str, dict[str, Any] | Emission], None]"


EVENTS = "ai_stream_events"
"""The kind under which a gateway files them."""


class Voice:
    """The events and data of one session; belongs to the loop. A listener that raises is told no more.

    ``name`` is that of the pipeline, which some events carry.
    """

    def __init__(self, side: SideChannels) -> None:
        self.name = "headrace"
        self._side = side
        self.processor: dict[str, Any] = {}
        """What the processor has said of itself last, by events of the type ``processor``."""
        self._listeners: dict[object, Listener] = {}

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Tell ``listener`` from now on; what is returned ends it and may be called twice."""
        key = object()
        self._listeners[key] = listener
        return lambda: self._drop(key)

    # -- what there is to say --------------------------------------------------------------------------

    def event(self, event: dict[str, Any], kind: str = EVENTS) -> None:
        if event.get("type") == "processor":
            self.processor = {name: value for name, value in event.items() if name != "type"}
        self._side.event(event, kind)
        self._tell("event", event)

    def emitted(self, emission: Emission) -> None:
        """What a processor gave out."""
        if emission.kind != "event":
            self._side.data(emission)
            self._tell("data", emission)
        elif isinstance(emission.data, dict):
            self.event(emission.data)
        else:
            log.warning("an event must be a JSON object, not %s", type(emission.data).__name__)

    def error(self, error: HeadraceError) -> None:
        event = {"type": "error", "pipeline": self.name, "message": error.message, "time": time.time()}
        self.event({**event, "details": error.details} if error.details else event)

    def params_updated(self, params: Params, frame: int) -> None:
        moment = int(time.time() * 1000)
        self.event({"type": "params_updated", "timestamp": moment, "params": params, "frame": frame})
        self._tell("params", {"params": params, "frame": frame})

    def restarted(self, count: int, moment: float, logs: str) -> None:
        """The engine was restarted at ``moment`` (epoch seconds)."""
        self.event(
            {
                "type": "restart",
                "pipeline": self.name,
                "restart_count": count,
                "restart_time": int(moment * 1000),
                "restart_logs": logs,
            }
        )

    def ended(self, reason: str, error: HeadraceError | None) -> None:
        """The last that is said."""
        self.event({"type": "stream_stopped", "timestamp": int(time.time() * 1000), "reason": reason})
        self._tell("ended", {"reason": reason, "error": error.as_dict() if error is not None else None})
        self._listeners.clear()

    def _tell(self, kind: str, what: dict[str, Any] | Emission) -> None:
        for key, listener in list(self._listeners.items()):
            try:
                listener(kind, what)
            except Exception:  # the edge to a listener: the session goes on
                log.exception("a listener broke over %s and is told no more", kind)
                self._drop(key)

    def _drop(self, key: object) -> None:
        self._listeners.pop(key, None)

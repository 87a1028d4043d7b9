"""The channels of one stream, as a client is given them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from byoc.base import ComponentState, ErrorCallback, TrickleComponent
from byoc.fps_meter import SessionFps
from stream.errors import InvalidInput
from stream.processor import Emission
from stream.requests import StreamStart, parse_start

if TYPE_CHECKING:
    from byoc.sessions import ProcessorSession

log = logging.getLogger(__name__)


class TrickleProtocol(TrickleComponent):
    """URLs and settings of a stream's channels; `byoc.client.TrickleClient` opens them.

    ``width`` and ``height``: the size in which frames are handed to the processor (None: 512 x 512).
    ``heartbeat_interval`` in seconds. ``publisher_timeout`` and ``subscriber_timeout`` are taken and not
    needed: a channel that cannot be reached is tried for ten seconds, one that is silent does not end.
    """

    def __init__(
        self,
        subscribe_url: str | None = None,
        publish_url: str | None = None,
        control_url: str | None = "",
        events_url: str | None = "",
        data_url: str | None = None,
        width: int | None = None,
        height: int | None = None,
        max_framerate: float | None = None,
        heartbeat_interval: float = 10.0,
        publisher_timeout: float | None = None,
        subscriber_timeout: float | None = None,
        error_callback: ErrorCallback | None = None,
        detect_out_resolution: bool = True,
    ) -> None:
        super().__init__(error_callback, "protocol")
        self.subscribe_url = subscribe_url
        self.publish_url = publish_url
        self.control_url = control_url
        self.events_url = events_url
        self.data_url = data_url
        self.width = width
        self.height = height
        self.max_framerate = max_framerate
        self.heartbeat_interval = heartbeat_interval
        self.publisher_timeout = publisher_timeout
        self.subscriber_timeout = subscriber_timeout
        self.detect_out_resolution = detect_out_resolution
        self.fps_meter = SessionFps()
        self._session: ProcessorSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def urls(self) -> dict[str, str | None]:
        """The five channels by the names that a heartbeat has."""
        names = ("subscribe", "publish", "control", "events", "data")
        return {name: getattr(self, f"{name}_url") or None for name in names}

    def request(self, request_id: str) -> StreamStart:
        """The same as the body of a start; raises `InvalidInput` for a URL that is none."""
        urls = {f"{name}_url": url for name, url in self.urls.items()}
        return parse_start({**urls, "gateway_request_id": request_id})

    def serve(self, session: ProcessorSession) -> None:
        """Belong to that session from now on; on its loop."""
        self._session = self.fps_meter.session = session
        self._loop = asyncio.get_running_loop()
        self._update_state(ComponentState.RUNNING)

    async def emit_monitoring_event(
        self, event: dict[str, Any], queue_event_type: str = "ai_stream_events"
    ) -> None:
        """Send an event on the events channel, from any thread; nothing happens without a running stream."""
        session, loop = self._session, self._loop
        if session is not None and loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(session.tell, event, queue_event_type)

    async def publish_data(self, data: str) -> None:
        """Queue text for the data channel, from any thread."""
        session, loop = self._session, self._loop
        if session is not None and loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(session.emit, Emission("text", data))

    async def update_params(self, params: dict[str, Any]) -> None:
        """Take ``max_framerate`` over, if it is there; raises `InvalidInput`."""
        rate = params.get("max_framerate")
        if rate is None:
            return
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 1 <= rate <= 240:
            raise InvalidInput(f"max_framerate must be from 1 to 240, not {rate!r}", field="max_framerate")
        self.max_framerate = rate
        if self._session is not None:
            self._session.pipeline.limit_rate(rate)

    async def stop(self) -> None:
        """Ask the stream to end."""
        session, loop = self._session, self._loop
        self._update_state(ComponentState.STOPPED)
        if session is not None and loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(session.stop, "stopped")

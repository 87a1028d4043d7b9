"""The session of a stream that a container author's processor works on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from byoc.api import as_flag, checked_params
from byoc.hosted import HostedProcessor
from stream.codecs.h264_options import TRICKLE_QUALITY
from stream.codecs.video_encoder import VideoEncoderSettings
from stream.encoding_parts import EncodingSettings
from stream.errors import EngineError, HeadraceError, ProcessorError
from stream.frames import DEFAULT_HEIGHT, DEFAULT_WIDTH
from stream.hosts import HostRules
from stream.pipeline import PipelineSettings
from stream.processor import Emission, Params
from stream.requests import StreamStart
from stream.session import Session, SessionSettings
from stream.status import pytrickle_fps
from stream.trickle.live import TrickleSide, trickle_session

if TYPE_CHECKING:
    from byoc.client import TrickleClient

HEARTBEAT = "stream_heartbeat"
"""The kind under which heartbeats go."""
BUSY = 30.0
"""Seconds for which parameters wait for the frame that is at work."""


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """``verify_tls``: whether certificates of trickle servers are checked (orchestrators sign their own).
    ``input_timeout``: seconds without a picture or sound after which a stream ends. ``allowed_hosts``: where
    the channels may be (`stream.hosts.HostRules`). ``device``: where tensors are made, in place of the
    processor's ``tensor_device``."""

    verify_tls: bool = False
    input_timeout: float | None = 60.0
    allowed_hosts: Sequence[str] = ()
    video: VideoEncoderSettings = field(default_factory=lambda: VideoEncoderSettings(quality=TRICKLE_QUALITY))
    device: str | None = None


class ProcessorSession(Session):
    """Parameters come here whichever way they came in: over HTTP or by the control channel."""

    FIXED = ()
    """The processor may be told another size; frames keep that of the start."""
    client: TrickleClient

    async def update_params(self, params: Params) -> dict[str, Any]:
        """As `Session.update_params`, by the rules of `byoc.api.checked_params`. Once the processor has taken
        them, ``show_loading`` steers the overlay and ``max_framerate`` the rate. Raises `EngineError` when a
        frame has not been done within `BUSY` seconds."""
        checked = checked_params(params)
        show = as_flag("show_loading", checked["show_loading"]) if "show_loading" in checked else None
        overlay = self.client.loading_controller
        before = overlay.should_skip_processing()
        if show is not None:
            overlay.set_manual_loading(show)
        try:
            async with asyncio.timeout(BUSY) as deadline:
                applied = await super().update_params(checked)
        except (HeadraceError, TimeoutError) as error:
            if show is not None:
                overlay.set_manual_loading(before)
            if isinstance(error, TimeoutError) and deadline.expired():
                raise EngineError(f"the processor has been at one frame for over {BUSY:g} s") from None
            raise
        if "max_framerate" in checked:
            self.pipeline.limit_rate(checked["max_framerate"])
        return applied

    def emit(self, emission: Emission) -> None:
        """As if the processor had said it; on the loop."""
        self._voice.emitted(emission)

    def tell(self, event: dict[str, Any], kind: str) -> None:
        """Send an event under a kind of its own; on the loop."""
        self._voice.event(event, kind)


class ProcessorSide(TrickleSide):
    """Heartbeats are PyTrickle's; every other one is the status that a gateway keeps."""

    def __init__(self, request: StreamStart, client: TrickleClient, *, verify_tls: bool) -> None:
        super().__init__(
            request,
            verify_tls=verify_tls,
            data_interval=client.send_data_interval or 1 / 3,
            heartbeat_interval=client.protocol.heartbeat_interval / 2,
        )
        self._client = client
        self._status_next = False

    async def steer(self, params: Params, session: Session) -> None:
        handler = self._client.control_handler
        if handler is None:
            await super().steer(params, session)
            return
        try:
            await handler(params)
        except HeadraceError:
            raise
        except Exception as error:  # the edge to a handler that is not ours
            raise ProcessorError(f"the control handler raised {type(error).__name__}: {error}") from error

    def heartbeat(self) -> tuple[dict[str, Any], str] | None:
        status_next, self._status_next = self._status_next, not self._status_next
        session = self._client.session
        if status_next or session is None:
            return super().heartbeat()
        size = session.pipeline.settings.size or (DEFAULT_WIDTH, DEFAULT_HEIGHT)
        event = {
            "type": "heartbeat",
            "timestamp": int(time.time() * 1000),
            "urls": {name: url or "" for name, url in self._client.protocol.urls.items()},
            "dimensions": {"width": size[0], "height": size[1]},
            "fps": pytrickle_fps(session),
        }
        return event, HEARTBEAT


def processor_session(
    client: TrickleClient, hosted: HostedProcessor, params: Params, settings: StreamSettings
) -> ProcessorSession:
    """A session over the channels of ``client``, not yet started. Raises `InvalidInput`."""
    protocol, checked = client.protocol, checked_params(params)
    request = protocol.request(client.request_id)
    rules = HostRules(settings.allowed_hosts)
    for name, url in protocol.urls.items():
        if url:
            rules.check_url(url, f"{name}_url")
    rules.bind()
    session = trickle_session(
        client.request_id,
        request,
        hosted,
        SessionSettings(
            pipeline=PipelineSettings(
                width=protocol.width or DEFAULT_WIDTH,
                height=protocol.height or DEFAULT_HEIGHT,
                max_fps=protocol.max_framerate or client.frame_skip_config.target_fps,
                overlay=client.loading_controller.overlay_config.settings(),
                encoding=EncodingSettings(video=settings.video),
            ),
            input_timeout=settings.input_timeout,
        ),
        start_params=checked,
        verify_tls=settings.verify_tls,
        side=ProcessorSide(request, client, verify_tls=settings.verify_tls),
        make=ProcessorSession,
    )
    assert isinstance(session, ProcessorSession)
    session.client = client
    return session

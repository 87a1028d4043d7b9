"""What a client says on the data channel ``control``: ComfyStream's six messages and a few of our own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from headrace.server.switching import Rules, nodes_info, resize, schema_of, switch
from stream.errors import InvalidInput
from stream.pausing import Pausable
from stream.session import Session
from stream.session_feed import Feeds
from stream.webrtc.channels import (
    DataChannel,
    Message,
    NewsChannel,
    Request,
    RequestChannel,
    Timing,
    Timings,
    session_requests,
)

log = logging.getLogger(__name__)

CONTROL, DATA = "control", "data"


class Channels:
    """The data channels of one connection to ``session``; ``timings`` tells of the pictures that it gets."""

    def __init__(self, session: Session, rules: Rules, feeds: Feeds, timings: Timings | None = None) -> None:
        self._session = session
        self._rules = rules
        self._feeds = feeds
        self._timings = timings
        self._open: list[Callable[[], None]] = []
        self._closed = False

    def opened(self, label: str, channel: DataChannel) -> None:
        """The client has opened a channel; one of another label gets no answers."""
        if self._closed:
            return
        if label == CONTROL:
            timing = Timing(self._timings)
            control = RequestChannel(channel, requests(self._session, self._rules, timing))
            timing.outlet = control.outlet
            channel.on("close", timing.close)
            self._open += [control.close, timing.close]
        elif label == DATA:
            self._open.append(NewsChannel(channel, self._feeds.of(self._session)).close)
        else:
            log.info("a data channel %r was opened, which means nothing here", label[:60])

    def close(self) -> None:
        """The connection is over; safe to call twice."""
        self._closed = True
        while self._open:
            self._open.pop()()


def requests(session: Session, rules: Rules, timing: Timing) -> dict[str, Request]:
    """Every request of the control channel."""
    return {
        **session_requests(session, schema_of, timing),
        **_comfystream(session, rules),
        "switch_workflow": Request("workflow_switched", lambda message: _switch(session, message, rules)),
    }


def _comfystream(session: Session, rules: Rules) -> dict[str, Request]:
    async def get_nodes(message: Message) -> Message:
        return {"nodes": nodes_info(session)}

    async def update_prompts(message: Message) -> Message:
        prompts = message.get("prompts")
        if not isinstance(prompts, list | dict) or not prompts:
            raise InvalidInput("prompts is a list of workflows in API format", field="prompts")
        return await switch(session, prompts, rules)

    async def update_resolution(message: Message) -> Message:
        return dict(resize(session, message.get("width"), message.get("height")))

    async def pause(message: Message) -> Message:
        _held(session).pause()
        return {}

    async def resume(message: Message) -> Message:
        _held(session).resume()
        return {}

    async def stop(message: Message) -> Message:
        _held(session).stop()
        return {}

    return {
        "get_nodes": Request("nodes_info", get_nodes, flag=False),
        "update_prompts": Request("prompts_updated", update_prompts),
        "update_resolution": Request("resolution_updated", update_resolution),
        "pause_prompts": Request("prompts_paused", pause),
        "resume_prompts": Request("prompts_resumed", resume),
        "stop_prompts": Request("prompts_stopped", stop),
    }


async def _switch(session: Session, message: Message, rules: Rules) -> dict[str, Any]:
    workflow = message.get("workflow")
    if not isinstance(workflow, str | list | dict) or not workflow:
        raise InvalidInput("workflow is a bundled name, or a workflow in API format", field="workflow")
    return await switch(session, workflow, rules)


def _held(session: Session) -> Pausable:
    if not isinstance(session.processor, Pausable):
        raise InvalidInput("this session cannot be paused", field="type")
    return session.processor

"""What a client says on the data channel ``control``: ComfyStream's six messages and a few of our own."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

from headrace.server.specs import Specs
from headrace.server.switching import nodes_info, resize, schema_of, switch
from stream.errors import Forbidden, InvalidInput
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
ASKING = frozenset({"timing"})
"""Requests that change nothing of the session, beside those that begin with ``get_``."""


class Channels:
    """The data channels of one connection to ``session``: one of each label. ``timings`` tells of the
    pictures that it gets; one that does not ``steer`` may ask, but change nothing."""

    def __init__(
        self,
        session: Session,
        specs: Specs,
        feeds: Feeds,
        timings: Timings | None = None,
        *,
        steers: bool = True,
    ) -> None:
        self._session = session
        self._specs = specs
        self._feeds = feeds
        self._timings = timings
        self._steers = steers
        self._open: dict[str, tuple[DataChannel, list[Callable[[], None]]]] = {}
        self._closed = False

    def opened(self, label: str, channel: DataChannel) -> None:
        """The client has opened a channel; it is closed at once where there is no use for it."""
        before = self._open.get(label)
        if before is not None and before[0].readyState != "open":
            self._leave(label, before[0])
        if self._closed or label in self._open or label not in (CONTROL, DATA):
            log.info("a data channel %r was opened, which has no use or is there already", label[:60])
            channel.close()
            return
        self._open[label] = channel, self._control(channel) if label == CONTROL else self._data(channel)
        channel.on("close", lambda: self._leave(label, channel))

    def close(self) -> None:
        """The connection is over; safe to call twice."""
        self._closed = True
        for label, (channel, _) in list(self._open.items()):
            self._leave(label, channel)

    def _control(self, channel: DataChannel) -> list[Callable[[], None]]:
        timing = Timing(self._timings)
        known = requests(self._session, self._specs, timing)
        control = RequestChannel(channel, known if self._steers else only_asking(known))
        timing.outlet = control.outlet
        return [control.close, timing.close]

    def _data(self, channel: DataChannel) -> list[Callable[[], None]]:
        return [NewsChannel(channel, self._feeds.of(self._session)).close]

    def _leave(self, label: str, channel: DataChannel) -> None:
        known = self._open.get(label)
        if known is not None and known[0] is channel:
            del self._open[label]
            for close in known[1]:
                close()


def requests(session: Session, specs: Specs, timing: Timing) -> dict[str, Request]:
    """Every request of the control channel."""
    return {
        **session_requests(session, lambda session: schema_of(session, specs), timing),
        **_comfystream(session, specs),
        "switch_workflow": Request("workflow_switched", lambda message: _switch(session, message, specs)),
    }


def only_asking(known: Mapping[str, Request]) -> dict[str, Request]:
    """``known`` with a refusal in place of what changes the session."""

    async def refuse(message: Message) -> Message:
        raise Forbidden("this connection only watches: it may ask, but change nothing", field="type")

    return {
        name: request
        if name in ASKING or name.startswith("get_")
        else dataclasses.replace(request, answer=refuse, at_once=True)
        for name, request in known.items()
    }


def _comfystream(session: Session, specs: Specs) -> dict[str, Request]:
    async def get_nodes(message: Message) -> Message:
        return {"nodes": await asyncio.to_thread(nodes_info, session, specs)}

    async def update_prompts(message: Message) -> Message:
        prompts = message.get("prompts")
        if not isinstance(prompts, list | dict) or not prompts:
            raise InvalidInput("prompts is a list of workflows in API format", field="prompts")
        return await switch(session, prompts, specs)

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
        "get_nodes": Request("nodes_info", get_nodes, flag=False, at_once=True),
        "update_prompts": Request("prompts_updated", update_prompts),
        "update_resolution": Request("resolution_updated", update_resolution),
        "pause_prompts": Request("prompts_paused", pause, at_once=True),
        "resume_prompts": Request("prompts_resumed", resume, at_once=True),
        "stop_prompts": Request("prompts_stopped", stop, at_once=True),
    }


async def _switch(session: Session, message: Message, specs: Specs) -> dict[str, Any]:
    workflow = message.get("workflow")
    if not isinstance(workflow, str | list | dict) or not workflow:
        raise InvalidInput("workflow is a bundled name, or a workflow in API format", field="workflow")
    return await switch(session, workflow, specs)


def _held(session: Session) -> Pausable:
    if not isinstance(session.processor, Pausable):
        raise InvalidInput("this session cannot be paused", field="type")
    return session.processor

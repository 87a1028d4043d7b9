"""Handlers by their kind."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

log = logging.getLogger(__name__)

HandlerFn = Callable[..., Any]
HandlerKind = Literal["video", "audio", "model_loader", "param_updater", "stream_start", "stream_stop"]
KINDS: tuple[HandlerKind, ...] = get_args(HandlerKind)
MARK = "_trickle_handler_info"
"""The attribute by which a decorated function is known."""


@dataclass
class HandlerInfo:
    """What a decorator notes of a function."""

    handler_type: HandlerKind
    description: str | None = None
    signature: str | None = None


class HandlerRegistry:
    """The handlers of one object; the last of a kind counts."""

    def __init__(self) -> None:
        self._handlers: dict[HandlerKind, tuple[HandlerFn, HandlerInfo]] = {}

    @classmethod
    def of(cls, instance: object) -> HandlerRegistry:
        """The decorated methods of an object, but for those whose names begin with an underscore."""
        registry = cls()
        for name in dir(instance):
            # Properties are not to be evaluated.
            if name.startswith("_") or isinstance(getattr(type(instance), name, None), property):
                continue
            handler = getattr(instance, name)
            info = getattr(handler, MARK, None)
            if isinstance(info, HandlerInfo):
                registry.register(handler, info)
        return registry

    def register(self, handler: HandlerFn, info: HandlerInfo) -> None:
        before = self._handlers.get(info.handler_type)
        if before is not None:
            kind, old, new = info.handler_type, before[1].description, info.description
            log.warning("of two %s handlers the last counts: %s, not %s", kind, new, old)
        self._handlers[info.handler_type] = (handler, info)

    def get(self, handler_type: HandlerKind) -> HandlerFn | None:
        found = self._handlers.get(handler_type)
        return None if found is None else found[0]

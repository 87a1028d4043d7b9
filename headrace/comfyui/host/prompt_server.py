"""A stand-in for ComfyUI's web server, for packs that register routes with it or send messages by it.

Nothing listens and nobody is told; what packs do with it is counted.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from typing import Any

log = logging.getLogger(__name__)


class StandIn:
    """What ``PromptServer.instance`` is here. ``uses`` counts what packs have asked of it, by name."""

    def __init__(self, module: Any, execution: Any) -> None:
        self.uses: Counter[str] = Counter()
        self.client_id: str | None = None
        self.last_node_id: str | None = None
        self.last_prompt_id: str | None = None
        self.supports = ["custom_nodes_from_web"]
        self.sockets: dict[str, Any] = {}
        self.sockets_metadata: dict[str, Any] = {}
        self.on_prompt_handlers: list[Any] = []
        self.number = 0
        self.port = 0
        self.address = "127.0.0.1"
        self.web_root = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting = threading.Lock()
        web = getattr(module, "web", None)
        self.routes: Any = web.RouteTableDef() if web is not None else _Routes(self.uses)
        self.app: Any = web.Application() if web is not None else _Anything(self.uses, "app")
        self.prompt_queue: Any = _queue(execution, self)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """A loop that turns in a thread of its own, from the first time that somebody asks for it."""
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                run = self._loop.run_forever
                threading.Thread(target=run, name="prompt server of packs", daemon=True).start()
        return self._loop

    @property
    def messages(self) -> asyncio.Queue[Any]:
        return asyncio.Queue()

    def send_sync(self, event: Any, data: Any, sid: str | None = None) -> None:
        self.uses["send_sync"] += 1

    async def send(self, event: Any, data: Any, sid: str | None = None) -> None:
        self.uses["send"] += 1

    def send_progress_text(self, text: Any, node_id: Any, sid: str | None = None) -> None:
        self.uses["send_progress_text"] += 1

    def add_on_prompt_handler(self, handler: Any) -> None:
        self.on_prompt_handlers.append(handler)

    def add_routes(self) -> None:
        self.uses["add_routes"] += 1

    def queue_updated(self) -> None:
        self.uses["queue_updated"] += 1

    def get_queue_info(self) -> dict[str, Any]:
        return {"exec_info": {"queue_remaining": 0}}

    def trigger_on_prompt(self, json_data: Any) -> Any:
        return json_data

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.uses[name] += 1
        log.debug("a pack uses %s of the prompt server, which does nothing here", name)
        return _Anything(self.uses, name)


class _Anything:
    """Can be called, read from and decorated with; nothing comes of it."""

    def __init__(self, uses: Counter[str], name: str) -> None:
        self._uses = uses
        self._name = name

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        # As a decorator it leaves alone what it decorates.
        return arguments[0] if len(arguments) == 1 and callable(arguments[0]) and not named else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._uses[f"{self._name}.{name}"] += 1
        return _Anything(self._uses, f"{self._name}.{name}")


class _Routes(_Anything):
    """Route decorators without aiohttp."""

    def __init__(self, uses: Counter[str]) -> None:
        super().__init__(uses, "routes")


def _queue(execution: Any, server: StandIn) -> Any:
    made = getattr(execution, "PromptQueue", None)
    return _Anything(server.uses, "prompt_queue") if made is None else made(server)


def install(module: Any, execution: Any) -> StandIn:
    """Put a stand-in in the place of the server's one instance; ``module`` is ComfyUI's ``server``."""
    stand_in = StandIn(module, execution)
    module.PromptServer.instance = stand_in
    return stand_in

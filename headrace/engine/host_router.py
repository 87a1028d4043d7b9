"""The engine's side of the link: which message goes to which session."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from headrace.engine.home import Home
from headrace.engine.host_batch import OPS as BATCH_OPS
from headrace.engine.host_batch import BatchHost
from headrace.engine.host_calls import HostCalls
from headrace.engine.host_home import OP as HOME
from headrace.engine.host_home import HomeHost
from headrace.engine.host_memory import MemoryReports
from headrace.engine.host_models import OP as MODELS
from headrace.engine.host_models import ModelsHost
from headrace.engine.host_session import HostSession, Surroundings, collect_garbage
from headrace.engine.host_together import Companies
from headrace.engine.link import Link, LinkError, Message
from stream.errors import EngineError, HeadraceError, InvalidInput

if TYPE_CHECKING:
    import torch

WORKER_GONE = 1
"""Exit status after the link broke."""
DEVICE_LOST = 4
"""Exit status after an error that leaves the device beyond use."""

MAX_SESSIONS = 64
_FLUSH = 1.0


class Host:
    """Hands the worker's messages to the sessions, of which each is a task, and to the batch requests."""

    def __init__(
        self, link: Link, options: argparse.Namespace, device: torch.device, home: Home | None = None
    ) -> None:
        self._link = link
        self._options = options
        self._device = device
        self._sessions: dict[str, HostSession] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop: asyncio.Future[None] | None = None
        self._around: Surroundings | None = None
        self._batch: BatchHost | None = None
        self._models: ModelsHost | None = None
        self._home = home
        self._at_home: HomeHost | None = None

    async def run(self) -> None:
        """Serve until the worker says stop; raises what a session could not answer."""
        loop = asyncio.get_running_loop()
        self._stop = loop.create_future()
        self._around = Surroundings(
            link=self._link,
            device=self._device,
            threads=self._options.threads,
            call_limit=self._options.call_limit,
            open_limit=self._options.open_limit,
            calls=HostCalls(self._at_work),
            companies=Companies(),
            fatal=self._device_lost,
        )
        self._batch = BatchHost(self._link, self._device, self._options.threads, self._device_lost)
        self._link.start(loop, self._on_message, self._on_closed)
        self._models = ModelsHost(self._link, MemoryReports(self._link, self._device).now)
        if self._home is not None:
            self._at_home = HomeHost(self._link, self._home)
        await self._stop
        for session in self._sessions.values():
            session.close()
        self._batch.close()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=self._options.stop_limit)
            for task in late:
                task.cancel()

    def _on_message(self, message: Message) -> None:
        op, body = message.op, message.body
        if op == "stop":
            self._end()
        elif op == "ping":
            self._link.send({"op": "pong"})
        else:
            try:
                if op in BATCH_OPS and self._batch is not None:
                    self._batch.deliver(message)
                elif op == MODELS and self._models is not None:
                    self._models.deliver(message)
                elif op == HOME and self._at_home is not None:
                    self._at_home.deliver(message)
                else:
                    self._for_session(op, body, message)
            except HeadraceError as error:
                self._link.send({"op": "answer", "call": body.get("call"), "error": error.as_dict()})

    def _for_session(self, op: str, body: dict[str, Any], message: Message) -> None:
        name, call = body.get("session"), body.get("call")
        if not isinstance(name, str) or type(call) is not int:
            raise InvalidInput(f"message {op!r} without session or call", field="session")
        if op == "open":
            self._open(name, call, body)
        elif name in self._sessions:
            self._sessions[name].deliver(message)
        elif op == "close":
            self._link.send({"op": "answer", "call": call})
        else:
            raise EngineError(f"the engine has no session {name}")

    def _open(self, name: str, call: int, body: dict[str, Any]) -> None:
        if name in self._sessions:
            raise InvalidInput(f"session {name} is open already", field="session")
        if len(self._sessions) >= MAX_SESSIONS:
            raise EngineError(f"the engine has {MAX_SESSIONS} sessions; that is its limit")
        assert self._around is not None
        session = self._sessions[name] = HostSession(name, self._around)
        self._count_streams()
        task = asyncio.create_task(session.run(call, body), name=f"session {name}")
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(name, done))

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._sessions.pop(name, None)
        self._count_streams()
        error = None if task.cancelled() else task.exception()
        if error is not None and self._stop is not None and not self._stop.done():
            # A session answers its errors itself; this one could not, and the worker must not wait for it.
            self._stop.set_exception(error)
        elif not self._sessions:
            collect_garbage(self._device)

    def _at_work(self) -> None:
        with contextlib.suppress(LinkError):
            self._link.send({"op": "working"})

    def _count_streams(self) -> None:
        if self._models is not None:
            self._models.streams(len(self._sessions))

    def _end(self) -> None:
        if self._stop is not None and not self._stop.done():
            self._stop.set_result(None)

    def _on_closed(self, error: LinkError) -> None:
        """The worker is gone: nobody is left to tell, and nothing to save."""
        leave(WORKER_GONE, f"the engine ends: {error.message}")

    def _device_lost(self, reason: str) -> None:
        with contextlib.suppress(LinkError):
            self._link.send({"op": "fatal", "message": reason})
            self._link.flush(_FLUSH)
        leave(DEVICE_LOST, f"the device is beyond use: {reason}")


def leave(status: int, message: str) -> NoReturn:
    """Exit at once: the interpreter's own end may hang on a broken device or a foreign thread."""
    with contextlib.suppress(OSError, ValueError):
        if message:
            print(message, file=sys.stderr)  # noqa: T201 (the engine's log is its stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)

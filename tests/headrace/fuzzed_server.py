"""The worker's real HTTP application on a loop of its own, talked to over plain sockets."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import threading
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from aiohttp import web

from headrace.server.app import build_app
from headrace.server.worker import Worker
from headrace.settings import Settings

T = TypeVar("T")
Headers = Mapping[str, str | bytes]
NONE: Headers = {}
TIMEOUT = 20.0
MEANT = {"at_capacity", "engine_unavailable"}
"""Codes of answers with 5xx that are no fault of ours: there is no room, or no engine."""


@dataclass
class Answer:
    """Status and body of an answer; status 0 when the connection was closed without one."""

    status: int
    body: bytes

    @property
    def data(self) -> Any:
        return json.loads(self.body)

    def is_meant(self) -> bool:
        """Whether it is an answer that somebody thought of."""
        if self.status < 500:
            return True
        try:
            return self.data["code"] in MEANT
        except (ValueError, KeyError, TypeError):
            return False


class FuzzedServer:
    """A worker without an engine: sessions begin and wait for one."""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fuzzed server")
        self.worker: Worker
        self.port = 0

    def __enter__(self) -> FuzzedServer:
        self._thread.start()
        self.run(self._start())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(TIMEOUT)

    async def _start(self) -> None:
        self.worker = Worker(Settings(**{"capacity": 2, "port": 0, "hardware": "off", **self._settings}))
        self._runner = web.AppRunner(build_app(self.worker), access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]

    async def _stop(self) -> None:
        await self.worker.stop()
        await self._runner.cleanup()
        await self._loop.shutdown_default_executor()

    # -- asking ----------------------------------------------------------------------------------------

    def ask(self, method: str, path: str, body: bytes | None = None, headers: Headers = NONE) -> Answer:
        """A well-formed request with whatever body and headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            return Answer(response.status, response.read())
        except (http.client.HTTPException, ConnectionError):
            return Answer(0, b"")
        finally:
            connection.close()

    def send(self, data: bytes, *, end: bool = True) -> Answer:
        """Any bytes; with ``end`` our side of the connection is closed after them."""
        received = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT) as connection:
            try:
                connection.sendall(data)
                if end:
                    connection.shutdown(socket.SHUT_WR)
                while (end or b"\r\n\r\n" not in received) and (part := connection.recv(65536)):
                    received += part
            except ConnectionError:
                pass
        head, _, body = received.partition(b"\r\n\r\n")
        words = head.split(maxsplit=2)
        status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
        return Answer(status, body)

    def post(self, path: str, value: Any, **headers: str | bytes) -> Answer:
        body = json.dumps(value).encode()
        return self.ask("POST", path, body, {"Content-Type": "application/json", **headers})

    # -- what is left ----------------------------------------------------------------------------------

    def end_sessions(self) -> None:
        """Stop every session, as a caller would."""

        async def stop() -> None:
            table = self.worker.table
            for session in table:
                session.stop("the example is over")
            for session in table:
                assert await table.wait_ended(session.id)

        self.run(stop())

    def tasks(self) -> set[str]:
        """Names of the tasks on the server's loop, but for the one that asks and open connections'."""

        async def names() -> set[str]:
            every = asyncio.all_tasks() - {asyncio.current_task()}
            return {repr(task) for task in every if "RequestHandler" not in repr(task)}

        return self.run(names())


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))

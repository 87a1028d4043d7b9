"""The program under check, as a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from stream.errors import InvalidInput, ProcessorError

TAIL = 200
LONGEST_LINE = 64 << 10
POLL = 0.05
KILL = 2.0
ANSWER = aiohttp.ClientTimeout(total=2)


class Program:
    """A running command that answers at `url`."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, http: aiohttp.ClientSession) -> None:
        self.url = url
        self.lines: deque[str] = deque(maxlen=TAIL)
        """The last lines that it wrote."""
        self._process = process
        self._http = http

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.returncode

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        if self.status is None:
            return "not"
        if self.status < 0:
            return f"by {signal.Signals(-self.status).name}"
        return f"with {self.status}" + (" though nobody asked it to" if self.status == 0 else "")

    async def read(self) -> None:
        """Keep what it writes, until it ends."""
        assert self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:
                # Longer than a line may be; what was read of it is gone.
                continue
            if not line:
                return
            self.lines.append(line.decode("utf-8", "replace").rstrip())

    async def health(self) -> str | None:
        """What ``/health`` says; None without an answer."""
        try:
            async with self._http.get(f"{self.url}/health", timeout=ANSWER) as answer:
                return str((await answer.json())["status"])
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError):
            return None

    async def stream_report(self) -> dict[str, Any]:
        """What ``/stream/status`` says of the session that runs; empty where it says nothing of one."""
        try:
            async with self._http.get(f"{self.url}/stream/status", timeout=ANSWER) as answer:
                session = (await answer.json())["session"]
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError):
            return {}
        return session if isinstance(session, dict) else {}

    async def until(self, *wanted: str, timeout: float) -> str:
        """Wait until its health is one of ``wanted``. Raises `ProcessorError` when it ends before, or takes
        longer than ``timeout`` s."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        while (health := await self.health()) not in wanted:
            if self.status is not None:
                raise ProcessorError(f"the program ended {self.ending}")
            if loop.time() > end:
                said = f"is {health}"
                if health is None:
                    said = "does not answer (it must listen where PORT says, or be checked with --port)"
                raise ProcessorError(f"after {timeout:g} s {self.url}/health {said}")
            await asyncio.sleep(POLL)
        assert health is not None
        return health

    def tail(self, count: int = 25) -> str:
        return "\n".join(list(self.lines)[-count:])

    async def end(self, timeout: float) -> float | None:
        """Send SIGTERM; the seconds until it has ended, None when that takes longer than ``timeout``."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        if self.status is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout):
                await self._process.wait()
        except TimeoutError:
            return None
        return loop.time() - begun


@asynccontextmanager
async def running(
    command: Sequence[str], folder: Path, port: int, environment: Mapping[str, str]
) -> AsyncIterator[Program]:
    """The command in ``folder``, with ``environment`` on top of ours; it and its children end with the block.
    Raises `InvalidInput` when there is no such command."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=LONGEST_LINE,
            start_new_session=True,
        )
    except OSError as error:
        raise InvalidInput(f"{command[0]} cannot be run: {error.strerror}", field="command") from None
    async with aiohttp.ClientSession() as http:
        program = Program(process, f"http://127.0.0.1:{port}", http)
        reading = asyncio.create_task(program.read())
        try:
            yield program
        finally:
            if await program.end(KILL) is None or process.returncode is None:
                _kill_all(process)
                await process.wait()
            _kill_all(process)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


def _kill_all(process: asyncio.subprocess.Process) -> None:
    """The whole group of the process, which has its own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass

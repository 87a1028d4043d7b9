"""One engine process, from its spawn to its reaping: link, log and exit notice, all on the loop."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable
from pathlib import Path

from headrace.engine.launch import Launched, launch
from headrace.engine.link import Link, LinkError, Message
from headrace.engine.settings import EngineSettings
from stream.errors import EngineError

log = logging.getLogger(__name__)

KEPT_LINES = 50
"""Last lines of an engine's log that are kept for the report of its end."""
MAX_LINE = 4000
_PIPE_SIZE = 1024 * 1024
_READ = 64 * 1024
_READS_PER_WAKE = 8
_LAST_WAIT = 3.0


class Child:
    """A running engine. ``exited`` is done, with the return code, when the process is reaped."""

    def __init__(self, process: subprocess.Popen[bytes], link: Link, name: str) -> None:
        loop = asyncio.get_running_loop()
        self.pid = process.pid
        self.link = link
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.exited: asyncio.Future[int] = loop.create_future()
        self._loop = loop
        self._name = name
        self._process = process
        self._partial = b""
        assert process.stdout is not None
        self._pipe = process.stdout.fileno()
        os.set_blocking(self._pipe, False)
        with contextlib.suppress(OSError):  # over the user's allowance: the usual 64 KiB do as well
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        self._pidfd = os.pidfd_open(process.pid)
        loop.add_reader(self._pipe, self._log_readable)
        loop.add_reader(self._pidfd, self._exit_readable)

    @classmethod
    def spawn(
        cls,
        settings: EngineSettings,
        on_message: Callable[[Message], None],
        on_closed: Callable[[LinkError], None],
        launched: Launched | None = None,
    ) -> Child:
        """Start an engine, or take the one that is ``launched``; it says ``ready`` or ``failed`` by the link.

        Raises `EngineError` as `launch` does.
        """
        process, ours = (launched or launch(settings)).take()
        try:
            child = cls(process, Link(ours), settings.name)
        except OSError as error:
            process.kill()
            process.communicate()
            ours.close()
            raise EngineError(f"engine {settings.name} cannot be watched: {error}") from error
        child.link.start(child._loop, on_message, on_closed)
        return child

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the engine and, when it is SIGKILL, to whatever it has started."""
        if self.exited.done():
            return
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self.pid, number)
            os.kill(self.pid, number)

    async def wait(self, timeout: float) -> bool:
        """Whether the process has ended within ``timeout`` seconds."""
        await asyncio.wait({self.exited}, timeout=timeout)
        return self.exited.done()

    def end_now(self) -> None:
        """Kill and reap without a loop to wait on; blocks until the kernel has done it."""
        self.signal(signal.SIGKILL)
        if not self.exited.done():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_LAST_WAIT)
            self._ended()

    def abandon(self) -> None:
        """Free everything although the process is still there, in the hands of a kernel that waits."""
        if not self.exited.done():
            self._ended()

    def last_lines(self) -> list[str]:
        """The end of its log, up to this moment."""
        self._read_log()
        return list(self._lines)

    def resident_bytes(self) -> int:
        """Resident memory in bytes; 0 when the process is gone."""
        try:
            pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        except (OSError, IndexError):
            return 0
        return 0 if self.exited.done() else int(pages) * os.sysconf("SC_PAGE_SIZE")

    def _exit_readable(self) -> None:
        # Before the process is reaped its group's number cannot have been given to another.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._process.poll() is not None:
            self._ended()

    def _ended(self) -> None:
        """Take the rest of the log and free everything."""
        self._read_log()
        if self._partial:
            self._line(self._partial)
            self._partial = b""
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._close_log()
        self.link.close()
        code = self._process.returncode
        if not self.exited.done():
            self.exited.set_result(-signal.SIGKILL if code is None else code)

    def _close_log(self) -> None:
        stdout = self._process.stdout
        if stdout is not None and not stdout.closed:
            self._loop.remove_reader(self._pipe)
            stdout.close()

    def _log_readable(self) -> None:
        if self._read_log():
            self._close_log()

    def _read_log(self) -> bool:
        """Log what the pipe holds, but not for ever; whether the pipe has ended."""
        stdout = self._process.stdout
        if stdout is None or stdout.closed:
            return True
        for _ in range(_READS_PER_WAKE):
            try:
                data = os.read(self._pipe, _READ)
            except BlockingIOError:
                return False
            if not data:
                return True
            *lines, self._partial = (self._partial + data).split(b"\n")
            for line in lines:
                self._line(line)
            if len(self._partial) > MAX_LINE:
                self._partial = _shown(self._partial)
            while len(self._partial) > MAX_LINE:
                self._line(self._partial[:MAX_LINE])
                self._partial = self._partial[MAX_LINE:]
        return False

    def _line(self, line: bytes) -> None:
        text = _shown(line)[:MAX_LINE].decode(errors="replace").rstrip()
        self._lines.append(text)
        log.info("[%s %d] %s", self._name, self.pid, text)


def _shown(line: bytes) -> bytes:
    """What a terminal would show of a line: progress bars go back to its start and write it anew."""
    return line.rstrip(b"\r").rpartition(b"\r")[2]


def why(code: int) -> str:
    """A return code in words: ``was killed by SIGKILL`` or ``exited with status 1``."""
    if code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
    return f"exited with status {code}"

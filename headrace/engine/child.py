"""One engine process, from its spawn to its reaping: link, log and exit notice, all on the loop."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

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
_BOOTSTRAP = Path(__file__).with_name("bootstrap.py")
_LAST_WAIT = 3.0
# What a host keeps for itself of the limits, so that it answers before its guardian loses patience.
_SOFT = 0.8


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
    ) -> Child:
        """Start an engine; it says ``ready`` or ``failed`` through the link.

        Raises `EngineError` when the interpreter cannot be started or this is not the main thread, whose end
        the engine takes for the worker's.
        """
        if threading.current_thread() is not threading.main_thread():
            raise EngineError("an engine must be started from the main thread: it ends with the one that did")
        ours, theirs = Link.sockets()
        try:
            process = subprocess.Popen(
                command(settings, theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                env=environment(settings),
                # A group of its own: what a processor starts can be ended with it.
                process_group=0,
            )
        except OSError as error:
            ours.close()
            raise EngineError(f"engine {settings.name} cannot be started: {error}") from error
        finally:
            theirs.close()
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


def command(settings: EngineSettings, fd: int) -> list[str]:
    """The command line of an engine whose end of the link is ``fd``."""
    foreign = settings.python is not None
    paths = settings.extra_path
    if paths is None:
        paths = () if foreign else (os.getcwd(),)
    return [
        *(settings.python or (sys.executable,)),
        str(_BOOTSTRAP),
        *(["--foreign"] if foreign else []),
        f"--fd={fd}",
        f"--parent={os.getpid()}",
        f"--device={settings.device}",
        f"--threads={settings.threads}",
        f"--nice={settings.nice}",
        f"--call-limit={settings.call_timeout * _SOFT}",
        f"--open-limit={settings.open_timeout * _SOFT}",
        f"--stop-limit={settings.stop_timeout / 4}",
        *([f"--home={json.dumps(dict(settings.home))}"] if settings.home is not None else []),
        *(f"--path={os.path.abspath(path)}" for path in paths),
        # Another torch may not understand how ours hands memory on.
        *(f"--holder={kind}={prefix}" for kind, prefix in settings.holders.items() if not foreign),
    ]


def environment(settings: EngineSettings) -> dict[str, str]:
    """The worker's environment with what an engine needs; a foreign interpreter keeps to its own packages."""
    env = dict(os.environ)
    if settings.python is not None:
        for name in ("PYTHONPATH", "PYTHONHOME"):
            env.pop(name, None)
    env["PYTHONUNBUFFERED"] = "1"
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        env.setdefault(name, str(settings.threads))
    # Pictures as tensors come and go thirty times a second; without these, glibc fetches their pages from
    # the kernel every time.
    env.setdefault("MALLOC_MMAP_THRESHOLD_", str(32 * 1024 * 1024))
    env.setdefault("MALLOC_TRIM_THRESHOLD_", str(128 * 1024 * 1024))
    return env | dict(settings.env)


def why(code: int) -> str:
    """A return code in words: ``was killed by SIGKILL`` or ``exited with status 1``."""
    if code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
    return f"exited with status {code}"

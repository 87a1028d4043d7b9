"""The start of an engine's process: its command line, its environment, its end of the link.

Light to import, so that an engine can be on its way before those who will watch it are.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

from headrace.engine.link import Link
from headrace.engine.settings import EngineSettings
from stream.errors import EngineError

_BOOTSTRAP = Path(__file__).with_name("bootstrap.py")
_LAST_WAIT = 3.0
# What a host keeps for itself of the limits, so that it answers before its guardian loses patience.
_SOFT = 0.8


class Launched:
    """An engine's process and our end of its link, until somebody takes them to watch over them.

    As a context it ends what nobody has taken.
    """

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self._process = process
        self._sock = sock
        self._taken = False

    def take(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """From now on the caller's, once."""
        assert not self._taken, "an engine that somebody watches already"
        self._taken = True
        return self._process, self._sock

    def end(self) -> None:
        """Kill and reap it, unless it was taken; safe to call twice."""
        if self._taken:
            return
        self._taken = True
        self._sock.close()
        # Before it is reaped its group's number cannot have been given to another.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_WAIT)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()


def launch(settings: EngineSettings) -> Launched:
    """Start an engine's process.

    Raises `EngineError` when the interpreter cannot be started or this is not the main thread, whose end the
    engine takes for the worker's.
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
    return Launched(process, ours)


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

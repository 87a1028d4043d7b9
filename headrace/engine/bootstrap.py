"""Starts the engine's host, in the worker's interpreter or in a foreign one.

Run by file path, so that neither the repository nor the worker's packages need to be on ``sys.path``. With
``--foreign`` they are kept off it: `RoomFinder` then lends the interpreter the few modules that the host
needs, by name, and nothing beside them.

Standard library only, and readable by old interpreters, so that one which is too old can say so.
"""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from types import ModuleType

OLDEST_PYTHON = (3, 10)

LENT_MODULES = (
    "stream.batching",
    "stream.errors",
    "stream.frames",
    "stream.heap",
    "stream.pictures",
    "stream.processor",
    "stream.results",
    "stream.samples",
    "stream.stretches",
    "stream.tensors",
    "stream.typed",
    "stream.timeouts",
    "headrace.batch.contract",
    "headrace.batch.errors",
    "headrace.batch.runner",
    "headrace.batch.turns",
)
LENT_ROOMS = (
    "workflows",
    "headrace.engine",
    "headrace.batch.pipelines",
    "headrace.comfyui.host",
    "headrace.models",
    "headrace.nodes",
)
"""Packages of which every module is lent."""
LENT_PARENTS = ("headrace.batch", "headrace.comfyui")
"""Packages that are lent for the sake of some of their modules."""
ROOMS = ("stream", "workflows", "headrace")

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class RoomFinder(importlib.abc.MetaPathFinder):
    """Finds the lent modules below ``root``, and refuses the rest of the rooms that they belong to."""

    def __init__(self, root: str) -> None:
        self._root = root

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        room = fullname.partition(".")[0]
        if room not in ROOMS:
            return None
        whole = any(fullname == name or fullname.startswith(name + ".") for name in LENT_ROOMS)
        lent = whole or fullname == room or fullname in LENT_MODULES or fullname in LENT_PARENTS
        if not lent:
            raise ModuleNotFoundError(f"{fullname} is not lent to this interpreter", name=fullname)
        base = os.path.join(self._root, *fullname.split("."))
        init = os.path.join(base, "__init__.py")
        if os.path.isfile(init):
            # No search path, so that every module of the package comes by way of this finder.
            return importlib.util.spec_from_file_location(
                fullname, init, submodule_search_locations=[base] if whole else []
            )
        if os.path.isfile(base + ".py"):
            return importlib.util.spec_from_file_location(fullname, base + ".py")
        raise ModuleNotFoundError(f"there is no module {fullname}", name=fullname)


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when the thread that started it ends (prctl(2)).

    ``parent`` is the process id of the worker; if it died before the kernel was asked, this process exits.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, "prctl: " + os.strerror(number))
    if parent and os.getppid() != parent:
        os._exit(0)


def refuse(fd: int, code: str, message: str) -> None:
    """Tell the guardian why there will be no engine: the link's own format, without the link."""
    body = json.dumps({"op": "failed", "error": {"code": code, "message": message}})
    try:
        socket.socket(fileno=fd).send(b"\0" + body.encode())
    except OSError as error:
        sys.stderr.write(f"{message} (and the worker cannot be told: {error})\n")


def _link_fd(arguments: Sequence[str]) -> int:
    """The value of ``--fd``, before anything is there that could parse it."""
    prefix = "--fd="
    return int(next(part[len(prefix) :] for part in arguments if part.startswith(prefix)))


def main(arguments: Sequence[str]) -> int:
    """Make Headrace importable as asked, then run the host with ``arguments``."""
    fd = _link_fd(arguments)
    if sys.version_info < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        refuse(
            fd,
            "not_installed",
            f"{sys.executable} is Python {sys.version.split()[0]}; the engine needs {wanted}",
        )
        return 3
    here = os.path.dirname(os.path.abspath(__file__))
    root = os.path.dirname(os.path.dirname(here))
    # Python puts the folder of the script first, where our module names would hide others.
    sys.path[:] = [entry for entry in sys.path if not entry or os.path.abspath(entry) != here]
    if "--foreign" in arguments:
        sys.meta_path.insert(0, RoomFinder(root))
    elif root not in sys.path:
        sys.path.insert(0, root)
    from headrace.engine import host

    return host.main([argument for argument in arguments if argument != "--foreign"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

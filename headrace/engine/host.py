"""The engine's process: `python -m headrace.engine.host --fd N`.

It imports torch before it says that it is ready, then serves sessions over the link until the worker tells
it to stop, closes the link or dies. One event loop in the main thread runs all Python of the frame path.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from headrace.engine.bootstrap import die_with_parent
from headrace.engine.home import Home, open_home, step
from headrace.engine.link import Link, LinkError
from stream.errors import EngineError, HeadraceError, NotInstalled

if TYPE_CHECKING:
    import torch

NOT_READY = 3
"""Exit status of an engine that could not get ready and has said why."""
_FLUSH = 1.0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="headrace.engine.host", description="The engine's process.")
    parser.add_argument("--fd", type=int, required=True, help="the link, an open SEQPACKET socket")
    parser.add_argument("--parent", type=int, default=0, help="process id of the worker")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--nice", type=int, default=0)
    parser.add_argument("--path", action="append", default=[], help="a folder with modules of processors")
    parser.add_argument("--home", help="the installation that the engine lives in, JSON")
    parser.add_argument("--holder", action="append", default=[], help="who holds weights: cuda=ADDRESS")
    parser.add_argument("--call-limit", type=float, default=4.0, help="seconds for one call of a processor")
    parser.add_argument("--open-limit", type=float, default=270.0, help="seconds of loading without progress")
    parser.add_argument("--stop-limit", type=float, default=2.0, help="seconds for closing all sessions")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an engine to the end of its process; returns the exit status where it could not get ready."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    die_with_parent(options.parent)
    # The terminal sends Ctrl-C to everybody; the worker decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with contextlib.suppress(PermissionError):
        os.nice(options.nice)
    sys.path.extend(path for path in options.path if path not in sys.path)
    link = Link.from_fd(options.fd)
    try:
        home = open_home(options.home)
        ready, device = prepare(options, home)
        link.send(ready)
    except HeadraceError as error:
        with contextlib.suppress(LinkError):
            link.send({"op": "failed", "error": error.as_dict()})
            link.flush(_FLUSH)
        return NOT_READY
    import torch

    from headrace.engine.host_router import Host, leave  # imported by `prepare`, as torch is

    with torch.inference_mode():
        asyncio.run(Host(link, options, device, home).run())
    link.close()
    # Threads of a library, or a model that loads, and the interpreter's own end do not go together.
    still = [thread.name for thread in threading.enumerate() if thread.daemon]
    return leave(0, f"the engine ends beside the threads {', '.join(still)}" if still else "")


def prepare(options: argparse.Namespace, home: Home | None) -> tuple[dict[str, Any], torch.device]:
    """Import what the engine needs, start its ``home`` and choose its device; the message that says so.

    Raises `NotInstalled` or `EngineError`.
    """
    begun = time.monotonic()
    step(home, "before_torch")
    for package in ("torch", "numpy"):
        try:
            __import__(package)
        except ModuleNotFoundError as error:
            if error.name != package:
                raise EngineError(f"{package} cannot be imported: {error}") from error
            raise NotInstalled(
                f"{package} is not installed for {sys.executable}; the engine needs it: "
                "pip install 'headrace[engine]'"
            ) from error
        except (ImportError, OSError) as error:
            raise EngineError(f"{package} cannot be imported: {error}") from error
    import torch

    from headrace.engine import host_router, host_session, processors  # noqa: F401 (before the word that it is ready)
    from headrace.engine.device import choose_device, device_name, wanted_format

    torch.set_num_threads(options.threads)
    device = step(home, "after_torch") or choose_device(options.device)
    if device.type == "cuda":
        torch.zeros(1, device=device)  # the context, so that no frame waits for it
    host_session.warm_up(device)
    processors.live_in(home)
    _share_weights(options.holder, device)
    # What is imported stays; a collection in the frame path need not look at it.
    gc.collect()
    gc.freeze()
    ready = {
        "op": "ready",
        "pid": os.getpid(),
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "device": str(device),
        "device_name": device_name(device),
        "pixel_format": wanted_format(device),
        "import_seconds": round(time.monotonic() - begun, 3),
    }
    return ready, device


def _share_weights(holders: Sequence[str], device: torch.device) -> None:
    """Let whatever loads weights in this process get them from the device's holder, where it has one."""
    prefixes = dict(entry.split("=", 1) for entry in holders)
    if device.type in prefixes:
        from headrace.models import sharing

        sharing.use(sharing.address_of(prefixes[device.type], str(device)))


if __name__ == "__main__":
    sys.exit(main())

"""What the commands that run until they are done or stopped have in common."""

from __future__ import annotations

import asyncio
import importlib.util
import signal
import sys
from collections.abc import Coroutine
from typing import Any

from stream.errors import InvalidInput, NotInstalled


def require_engine() -> None:
    """Raise `NotInstalled` when torch, which the engine needs, is not there."""
    if importlib.util.find_spec("torch") is None:
        raise NotInstalled("the engine needs torch, which is not installed: pip install 'headrace[engine]'")


async def until_signal(work: Any) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await work(stop)


def announce(url: str) -> None:
    # Standard output, so that a script can wait for the line; logs go to standard error.
    sys.stdout.write(f"headrace listens on {url}\n")
    sys.stdout.flush()


def run(work: Coroutine[Any, Any, None]) -> None:
    import uvloop

    try:
        uvloop.run(work)
    except OSError as error:
        raise InvalidInput(f"cannot start: {error}") from error


def log_at(level: str, log_format: str = "text") -> None:
    from stream.logs import configure

    configure(level, log_format)

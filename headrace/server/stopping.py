"""How a worker comes to its end: a signal asks, a second one insists, and a clock has the last word."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Coroutine, Mapping
from typing import Any, Final

log = logging.getLogger(__name__)

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
LIMIT: Final = 10.0
"""Seconds from the first signal to the end of the process, whatever hangs."""
SESSIONS: Final = 5.5
"""Seconds of these for the sessions to put out what they have, finish their segments and close channels."""
ENGINE: Final = 3.0
"""Seconds for the engine to go."""
FAILED: Final = 1


async def each_step(steps: Mapping[str, Coroutine[Any, Any, Any]]) -> None:
    """Take steps of the stop by their names, at the same time; what one raises keeps no other back."""
    results = await asyncio.gather(*steps.values(), return_exceptions=True)
    for name, result in zip(steps, results, strict=True):
        if isinstance(result, BaseException):
            log.error("stopping %s failed", name, exc_info=result)


class StopSignal:
    """Set by SIGINT or SIGTERM. A second one ends the process at once, as does the clock after `LIMIT` s.

    The engine notices the end of its link and goes by itself.
    """

    def __init__(self) -> None:
        self._asked = asyncio.Event()

    def listen(self) -> None:
        """Take the signals from now on."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._signalled, number)

    async def wait(self) -> None:
        await self._asked.wait()

    def _signalled(self, number: signal.Signals) -> None:
        if self._asked.is_set():
            _end(f"{number.name} again: ending at once", 128 + number)
        log.info("%s: streams are finished first; a second signal ends at once", number.name)
        self._asked.set()
        # A thread, because the loop may be what hangs.
        clock = threading.Timer(LIMIT, _end, (f"not done within {LIMIT:g} s: ending anyway", FAILED))
        clock.daemon = True
        clock.name = "stop clock"
        clock.start()


def _end(words: str, status: int) -> None:
    log.warning(words)
    logging.shutdown()
    os._exit(status)

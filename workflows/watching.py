"""What changes by itself: nodes are asked now and then whether what they read is still the same
(IS_CHANGED)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from stream.errors import HeadraceError
from workflows.beside import run_beside
from workflows.compiler import Program
from workflows.plan import Plan
from workflows.running import Change, Running

log = logging.getLogger(__name__)

ASK_EVERY = 2.0
"""Seconds after which nodes are asked again."""


class Watch:
    """Asks in a thread, beside the frames."""

    def __init__(self) -> None:
        self._found: Change | None = None
        self._asking: asyncio.Task[None] | None = None
        self._ask_at = 0.0

    def look(self, running: Running) -> Change | None:
        """What the nodes of ``running`` have said last, if that is to be put in force; and ask again, if it
        is time."""
        now = time.monotonic()
        found, self._found = self._found, None
        if found is not None and found.fits(running):
            return found
        if now >= self._ask_at and (self._asking is None or self._asking.done()):
            if self._ask_at:
                self._asking = asyncio.create_task(self._ask(running))
            self._ask_at = now + ASK_EVERY
        return None

    async def _ask(self, running: Running) -> None:
        bases = [(plan, plan.program) for plan in running.plans]
        try:
            found = await run_beside(lambda: _rechecked(bases))
        except HeadraceError as error:
            log.warning("what has changed by itself is not taken: %s", error.message)
            return
        if found:
            self._found = Change(running, {}, programs=tuple(found))

    async def end(self) -> None:
        """Ask no more for now, nor heed what was said."""
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        self._found = None


async def _rechecked(bases: Sequence[tuple[Plan, Program]]) -> list[tuple[Plan, Program, Program]]:
    found = []
    for plan, base in bases:
        program = await plan.recheck()
        if program is not None:
            found.append((plan, base, program))
    return found

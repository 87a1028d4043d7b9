"""Waiting in a `BatchQueue`: the tasks that its tickets stand for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from headrace.batch.queue import BatchQueue, Ticket
from stream.errors import HeadraceError


class Line:
    """Lets those in whose turn it is. Belongs to the loop."""

    def __init__(self, queue: BatchQueue) -> None:
        self.queue = queue
        self._turns: dict[Ticket, asyncio.Future[None]] = {}

    @asynccontextmanager
    async def place(self, ticket: Ticket, queued: Callable[[], None] | None = None) -> AsyncIterator[Ticket]:
        """Wait for a place and keep it; ``queued`` is told when the waiting begins. Raises `QueueFull`."""
        self.queue.put(ticket, time.monotonic())
        if queued is not None:
            queued()
        turn = self._turns[ticket] = asyncio.get_running_loop().create_future()
        try:
            self._pump()
            await turn
            yield ticket
        finally:
            self._turns.pop(ticket, None)
            self.queue.done(ticket, time.monotonic(), measured=False)
            self._pump()

    def refuse(self, error: HeadraceError) -> None:
        """Have everybody who waits get ``error``."""
        for turn in self._turns.values():
            if not turn.done():
                turn.set_exception(error)

    def _pump(self) -> None:
        """Let in who has a place now."""
        for ticket in self.queue.take(time.monotonic()):
            turn = self._turns.get(ticket)
            if turn is not None and not turn.done():
                turn.set_result(None)

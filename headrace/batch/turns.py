"""Who may use the device next: whole jobs one at a time, and short slices of others between their steps.

`TurnOrder` decides, without threads; `DeviceTurns` lets threads wait for its decisions.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator

from headrace.batch.contract import Job

Scope = Callable[[], contextlib.AbstractContextManager[object]]


class TurnOrder:
    """In the order of asking; a job that holds the device keeps other jobs out, but not slices.

    A *hold* lasts for a job's whole computation. Between two of its steps its holder may `pause`: slices that
    wait already go before it. A holder that goes on again comes before slices that were asked for later, so
    neither side starves the other.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._slices: deque[int] = deque()
        self._holds: deque[int] = deque()
        self._paused: tuple[int, int] | None = None
        """The ticket of the holder that lets others through, and its place in the order."""
        self._using: int | None = None
        self._holder: int | None = None

    @property
    def using(self) -> int | None:
        """The ticket that has the device at the moment."""
        return self._using

    @property
    def waiting_slices(self) -> int:
        return len(self._slices)

    def ask(self, *, hold: bool) -> int:
        """A new ticket; `using` becomes it when its turn has come."""
        ticket = next(self._numbers)
        (self._holds if hold else self._slices).append(ticket)
        self._grant()
        return ticket

    def pause(self, ticket: int) -> bool:
        """The holder lets slices through, if some wait; whether it must now wait for its next turn."""
        if self._using != ticket or ticket != self._holder or not self._slices:
            return False
        self._paused = (ticket, next(self._numbers))
        self._using = None
        self._grant()
        return True

    def leave(self, ticket: int) -> None:
        """Give the device back, or stop waiting for it."""
        for queue in (self._slices, self._holds):
            if ticket in queue:
                queue.remove(ticket)
        if self._paused is not None and self._paused[0] == ticket:
            self._paused = None
        if self._holder == ticket:
            self._holder = None
        if self._using == ticket:
            self._using = None
        self._grant()

    def _grant(self) -> None:
        if self._using is not None:
            return
        candidates: list[tuple[int, int]] = []
        if self._slices:
            candidates.append((self._slices[0], self._slices[0]))
        if self._paused is not None:
            candidates.append((self._paused[1], self._paused[0]))
        elif self._holder is None and self._holds:
            candidates.append((self._holds[0], self._holds[0]))
        if not candidates:
            return
        ticket = min(candidates)[1]
        self._using = ticket
        if self._paused is not None and self._paused[0] == ticket:
            self._paused = None
        elif self._slices and self._slices[0] == ticket:
            self._slices.popleft()
        else:
            self._holds.popleft()
            self._holder = ticket


class DeviceTurns:
    """`headrace.batch.contract.Turns` for the threads of an engine.

    ``scope`` is entered around every use of the device (a CUDA stream); ``settle`` is called between two
    steps of a holder and bounds the work that it has in flight.
    """

    def __init__(
        self, scope: Scope = contextlib.nullcontext, settle: Callable[[], None] | None = None
    ) -> None:
        self._order = TurnOrder()
        self._changed = threading.Condition()
        self._scope = scope
        self._settle = settle
        self._mine = threading.local()

    @contextlib.contextmanager
    def hold(self, job: Job | None = None) -> Iterator[None]:
        with self._use(job, hold=True) as ticket:
            self._mine.ticket = ticket
            try:
                yield
            finally:
                self._mine.ticket = None

    @contextlib.contextmanager
    def slice(self, job: Job | None = None) -> Iterator[None]:
        with self._use(job, hold=False):
            yield

    def breathe(self) -> None:
        ticket = getattr(self._mine, "ticket", None)
        if ticket is None:
            return
        if self._settle is not None:
            self._settle()
        with self._changed:
            if self._order.pause(ticket):
                self._changed.notify_all()
                # Slices are short, and the holder comes right after those that wait now.
                self._changed.wait_for(lambda: self._order.using == ticket)

    @contextlib.contextmanager
    def _use(self, job: Job | None, *, hold: bool) -> Iterator[int]:
        with self._changed:
            ticket = self._order.ask(hold=hold)
            try:
                with contextlib.nullcontext() if job is None else job.waking(self._wake):
                    self._changed.wait_for(
                        lambda: self._order.using == ticket or (job is not None and job.cancelled)
                    )
                if job is not None:
                    job.check()
            except BaseException:
                self._leave(ticket)
                raise
        try:
            with self._scope():
                yield ticket
        finally:
            with self._changed:
                self._leave(ticket)

    def _leave(self, ticket: int) -> None:
        self._order.leave(ticket)
        self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

"""The queue in front of a batch engine: bounded, fair, and aware of what can run together.

Plain Python without clocks of its own; times are seconds of whatever clock the caller has.

A ticket belongs to a *lane* (pipeline and model, for which durations are measured), to a *client* (in whose
turn it is taken) and perhaps to a *group* (requests that the engine computes together: up to ``together`` of
them run in one place).
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from headrace.batch.errors import QueueFull

FIRST_GUESS = 5.0
"""Seconds that a request is taken to run while none of its lane has been measured."""
SMOOTHING = 0.3
MOST_LANES = 256
"""Lanes whose durations are remembered."""
LONGEST_RETRY = 600


@dataclass(eq=False, slots=True)
class Ticket:
    """One request's place. ``number`` is given by the queue and grows."""

    lane: str
    client: str = ""
    group: Hashable | None = None
    number: int = field(default=0, init=False)
    started: float | None = field(default=None, init=False)


class Durations:
    """How long requests of each lane take: a running mean, newer ones weighing more."""

    def __init__(self) -> None:
        self._means: OrderedDict[str, float] = OrderedDict()

    def add(self, lane: str, seconds: float) -> None:
        mean = self._means.pop(lane, seconds)
        self._means[lane] = mean + SMOOTHING * (max(seconds, 0.0) - mean)
        if len(self._means) > MOST_LANES:
            self._means.popitem(last=False)

    def known(self, lane: str) -> bool:
        return lane in self._means

    def of(self, lane: str) -> float:
        """The mean in seconds; `FIRST_GUESS` for a lane that has none."""
        return self._means.get(lane, FIRST_GUESS)


class BatchQueue:
    """Who waits, who runs and who is next.

    ``limit`` waiting at most; ``places`` run at once; ``together`` of one group share a place.
    """

    def __init__(self, limit: int, places: int, together: int = 1) -> None:
        if min(limit, places, together) < 1:
            raise ValueError("a queue has room, places and company for one at least")
        self.limit, self.places, self.together = limit, places, together
        self.durations = Durations()
        self._waiting: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._running: set[Ticket] = set()
        self._numbers = 0

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def running(self) -> int:
        return len(self._running)

    def in_use(self, lane: str) -> int:
        """Requests of a lane that run."""
        return sum(ticket.lane == lane for ticket in self._running)

    def waiting_in(self, lane: str) -> int:
        return sum(ticket.lane == lane for line in self._waiting.values() for ticket in line)

    # -- in, next, out ---------------------------------------------------------------------------------

    def put(self, ticket: Ticket, now: float) -> None:
        """Line up. Raises `QueueFull`."""
        self.check_room(now)
        self._numbers += 1
        ticket.number = self._numbers
        self._waiting.setdefault(ticket.client, deque()).append(ticket)

    def check_room(self, now: float) -> None:
        """Raise `QueueFull`, with the time after which there is likely room, when nobody can line up."""
        if self.waiting >= self.limit:
            seconds = self.retry_after(now)
            text = f"{self.waiting} requests wait, and {self.limit} may; try again in {seconds} s"
            raise QueueFull(text, retry_after=seconds)

    def take(self, now: float) -> list[Ticket]:
        """Everything that may start now. Clients take turns; one client's requests keep their order, but for
        those that join a group that runs already."""
        started = list(self._joining(now))
        while self._places_taken() < self.places and self._waiting:
            client, line = next(iter(self._waiting.items()))
            ticket = line.popleft()
            self._waiting.pop(client)
            if line:
                self._waiting[client] = line
            started.append(self._start(ticket, now))
            started += self._joining(now)
        return started

    def done(self, ticket: Ticket, now: float, *, measured: bool = True) -> None:
        """A ticket that ran, or waited no longer, is gone; safe to call twice. Only what ended by itself is
        ``measured``."""
        if ticket in self._running:
            self._running.remove(ticket)
            if measured and ticket.started is not None:
                self.durations.add(ticket.lane, now - ticket.started)
            return
        line = self._waiting.get(ticket.client)
        if line is not None and ticket in line:
            line.remove(ticket)
            if not line:
                del self._waiting[ticket.client]

    # -- times -----------------------------------------------------------------------------------------

    def expected(self, now: float) -> float:
        """Seconds until everything that runs and waits is done, as far as can be told."""
        left = sum(self._left(ticket, now) / self._share(ticket) for ticket in self._running)
        line = (ticket for tickets in self._waiting.values() for ticket in tickets)
        ahead = sum(self.durations.of(ticket.lane) / self._share(ticket) for ticket in line)
        return (left + ahead) / self.places

    def retry_after(self, now: float) -> int:
        """Whole seconds after which half of what waits has likely begun: 1 to `LONGEST_RETRY`."""
        return min(max(1, math.ceil(self.expected(now) / 2)), LONGEST_RETRY)

    def _left(self, ticket: Ticket, now: float) -> float:
        # What has run longer than its like is taken to need as long again as it overran.
        elapsed = now - (now if ticket.started is None else ticket.started)
        return abs(self.durations.of(ticket.lane) - elapsed)

    def _share(self, ticket: Ticket) -> int:
        return 1 if ticket.group is None else self.together

    # -- places ----------------------------------------------------------------------------------------

    def _start(self, ticket: Ticket, now: float) -> Ticket:
        ticket.started = now
        self._running.add(ticket)
        return ticket

    def _groups(self) -> dict[Hashable, int]:
        counts: dict[Hashable, int] = {}
        for ticket in self._running:
            if ticket.group is not None:
                counts[ticket.group] = counts.get(ticket.group, 0) + 1
        return counts

    def _places_taken(self) -> int:
        single = sum(ticket.group is None for ticket in self._running)
        return single + sum(math.ceil(count / self.together) for count in self._groups().values())

    def _joins(self, ticket: Ticket) -> bool:
        """Whether a group of its own runs that has room."""
        count = 0 if ticket.group is None else self._groups().get(ticket.group, 0)
        return count % self.together != 0

    def _joining(self, now: float) -> Iterator[Ticket]:
        """Start what shares the place of a group that runs."""
        while (ticket := self._next_joining()) is not None:
            self._remove(ticket)
            yield self._start(ticket, now)

    def _next_joining(self) -> Ticket | None:
        line = sorted((t for tickets in self._waiting.values() for t in tickets), key=lambda t: t.number)
        first = next((ticket for ticket in line if self._joins(ticket)), None)
        # A group that others always join keeps its place for ever: not past who waits for one so long.
        if first is None or first.number - line[0].number > self.limit:
            return None
        return first

    def _remove(self, ticket: Ticket) -> None:
        line = self._waiting[ticket.client]
        line.remove(ticket)
        if not line:
            del self._waiting[ticket.client]

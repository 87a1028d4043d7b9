"""When an engine counts as hung and how soon it is started again: decisions without clocks or processes.

Every method takes the present moment in seconds of a monotonic clock where it needs one.
"""

from __future__ import annotations

from typing import Literal

CallKind = Literal["call", "open"]


class Backoff:
    """How long to wait before the next start.

    The delay doubles from ``first`` to ``ceiling`` and begins anew after an engine that was ready for at
    least ``stable_after`` seconds. After ``attempts`` ends in a row without having been ready, the engine
    counts as failed; it is then tried again at the pace of ``ceiling``.
    """

    def __init__(self, first: float, ceiling: float, stable_after: float, attempts: int) -> None:
        self._first = first
        self._ceiling = ceiling
        self._stable_after = stable_after
        self._attempts = attempts
        self._delay = first
        self._never_ready = 0

    @property
    def failed(self) -> bool:
        return self._never_ready >= self._attempts

    def ended(self, ready_for: float | None) -> float:
        """An engine ended that had been ready for so many seconds (None: never); the delay in seconds."""
        if ready_for is None:
            self._never_ready += 1
        else:
            self._never_ready = 0
            if ready_for >= self._stable_after:
                self._delay = self._first
        if self.failed:
            return self._ceiling
        delay = self._delay
        self._delay = min(self._delay * 2, self._ceiling)
        return delay


class Watch:
    """Finds out that an engine hangs.

    An engine that owes answers and has given none for ``call_timeout`` seconds hangs: a result, an
    acknowledgement or an error is an answer, a pong or a line of text is not, because a loop that still
    turns may wait for ever. Its word that calls have kept the loop is as good as one: each of them has a
    limit of its own over there. While a session opens, ``open_timeout`` holds instead and any message counts:
    loading weights may keep the interpreter's lock for long.
    """

    def __init__(self, call_timeout: float, open_timeout: float) -> None:
        self._call_timeout = call_timeout
        self._open_timeout = open_timeout
        self._sent: dict[int, float] = {}
        self._opening: set[int] = set()
        self._heard = float("-inf")
        self._answered = float("-inf")

    @property
    def outstanding(self) -> int:
        return len(self._sent)

    @property
    def opening(self) -> bool:
        return bool(self._opening)

    def sent(self, call: int, kind: CallKind, now: float) -> None:
        self._sent[call] = now
        if kind == "open":
            self._opening.add(call)

    def heard(self, now: float) -> None:
        """A message of any kind arrived."""
        self._heard = max(self._heard, now)

    def answered(self, call: int, now: float) -> None:
        self.heard(now)
        self._answered = max(self._answered, now)
        self._sent.pop(call, None)
        if call in self._opening:
            self._opening.discard(call)
            # Whatever waited behind the opening gets its full time from here.
            self._sent = {other: max(then, now) for other, then in self._sent.items()}

    def working(self, now: float) -> None:
        """Calls have kept its loop, and have let go of it since."""
        self.heard(now)
        self._answered = max(self._answered, now)

    def excuse(self, seconds: float) -> None:
        """The worker itself was late by so much (stopped, suspended, blocked): nobody's fault over there."""
        self._sent = {call: then + seconds for call, then in self._sent.items()}
        self._heard += seconds
        self._answered += seconds

    def silent_for(self, now: float) -> float:
        """Seconds without the kind of message that would count; 0 when nothing is owed."""
        if not self._sent:
            return 0.0
        last = self._heard if self._opening else self._answered
        return now - max(last, min(self._sent.values()))

    def limit(self) -> float:
        return self._open_timeout if self._opening else self._call_timeout

    def hung(self, now: float) -> bool:
        return self.silent_for(now) > self.limit()

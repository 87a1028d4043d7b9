"""Which segment a subscriber asks for next, decided from the server's answers alone.

No sockets and no event loop here; time is handed in, in seconds of any clock that only goes forward.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from stream.trickle.protocol import CURRENT, NEXT, RING_SIZE

# A pause before the third answer without a segment in a row, doubled with each further one.
FIRST_PAUSE: Final = 0.02
LONGEST_PAUSE: Final = 0.2
NOT_FOUND_PAUSE: Final = 0.25

# An answer that took longer was held back by the server until something happened.
PARKED: Final = 1.0


@dataclass(frozen=True, slots=True)
class Deliver:
    """A segment has come; ``skipped`` segments before it were missed."""

    seq: int
    skipped: int


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask for the cursor's ``wanted`` after ``pause`` seconds."""

    pause: float


@dataclass(frozen=True, slots=True)
class Ended:
    """The channel has come to its end."""


@dataclass(frozen=True, slots=True)
class Failed:
    """There is no point in going on."""

    reason: str


Verdict = Deliver | Ask | Ended | Failed


class Cursor:
    """Follows one channel.

    ``wanted`` is the number to ask for. A 404 ends a channel that was seen before; one that was never seen
    has ``grace`` seconds to appear. The channel may answer 470 for ``patience`` seconds on end.

    Numbers may go backwards: far when a publisher starts anew, by a few when segments are begun out of order.
    The server then points at a segment that it still has and that was read already; it is not read again.
    Nor is one that was closed without a byte: the server goes on pointing at the first of those in a row.
    """

    def __init__(self, start: int, now: float, *, grace: float, patience: float) -> None:
        if start < CURRENT:
            raise ValueError(f"a start of {start} has no meaning")
        self.wanted = start
        self.seen = False
        self._grace = grace
        self._patience = patience
        self._begun = now
        self._fruitless = 0
        self._missing_since: float | None = None
        self._last: int | None = None
        self._recent: deque[int] = deque(maxlen=RING_SIZE)
        self._first_empty: int | None = None
        """Of the segments without a byte that came last, one after the other."""

    def channel_exists(self) -> None:
        """The server holds a request open, so the channel is there."""
        self.seen = True

    def not_found(self, now: float) -> Verdict:
        """404: no such channel."""
        if self.seen:
            return Ended()
        if now - self._begun < self._grace:
            return Ask(NOT_FOUND_PAUSE)
        return Failed("the channel does not exist (404)")

    def missing(self, latest: int | None, *, waited: float, now: float) -> Verdict:
        """470: the channel has no such segment and goes on at ``latest`` (None when it did not say).

        ``waited``: seconds from the request to the answer.
        """
        self.seen = True
        left_out = self._is_left_out(latest)
        if self._missing_since is None or waited > PARKED or left_out:
            self._missing_since = now
        elif now - self._missing_since > self._patience:
            return Failed(f"the channel has answered 470 for {self._patience:g} s, last for {self.wanted}")
        if latest is None or latest < 0:
            self.wanted = NEXT
        elif latest not in self._recent and not left_out:
            newest = latest - 1
            # The newest that was written, so that the last message is not lost and a picture comes at once.
            unread = newest >= 0 and newest not in self._recent
            self.wanted = newest if unread and newest != self.wanted else latest
        elif self._last is not None:
            self.wanted = self._last + 1
        return Ask(self._pause(waited))

    def empty(self, seq: int, *, closed: bool, waited: float) -> Verdict:
        """200 without a byte: the end of the channel when it says so, otherwise a segment left out."""
        self.seen = True
        self._missing_since = None
        if closed:
            return Ended()
        if self._first_empty is None or self._last is None or seq != self._last + 1:
            self._first_empty = seq
        self._passed(seq)
        return Ask(self._pause(waited))

    def begun(self, seq: int) -> Deliver | Ask:
        """200 with bytes: segment ``seq`` is there; it is not for delivery when it was read already."""
        self.seen = True
        self._missing_since = None
        if seq in self._recent:
            self.wanted = seq + 1
            return Ask(self._pause(0.0))
        self._fruitless = 0
        self._first_empty = None
        skipped = 0 if self._last is None else max(seq - self._last - 1, 0)
        self._passed(seq)
        return Deliver(seq, skipped)

    def _is_left_out(self, latest: int | None) -> bool:
        """Whether the server points at segments closed without a byte: nothing was written since."""
        if latest is None or self._first_empty is None or self._last is None:
            return False
        return self._first_empty <= latest <= self._last

    def _passed(self, seq: int) -> None:
        if self._last is not None and seq < self._last and seq not in self._recent:
            # A publisher that starts anew displaces what it had written under these numbers, except for
            # those of the first round: a server keeps the old segment and discards the new one.
            kept = [number for number in self._recent if seq < number < seq + RING_SIZE]
            self._recent.clear()
            self._recent.extend(kept)
        if seq not in self._recent:
            self._recent.append(seq)
        self._last = seq
        self.wanted = seq + 1

    def _pause(self, waited: float) -> float:
        self._fruitless = 1 if waited > PARKED else self._fruitless + 1
        if self._fruitless < 3:
            return 0.0
        return min(FIRST_PAUSE * 2.0 ** (self._fruitless - 3), LONGEST_PAUSE)

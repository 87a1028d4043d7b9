"""How often and how long to try again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Pauses that double from ``first`` to ``longest`` seconds while failures go on, for ``limit`` seconds.

    Pure: time is handed in. What held for ``lasting`` seconds counts as a success.
    """

    limit: float
    first: float = 0.1
    longest: float = 2.0
    lasting: float = 5.0
    failures: int = 0
    _since: float = 0.0

    def succeeded(self) -> None:
        self.failures = 0

    def failed(self, now: float, *, held: float = 0.0) -> float | None:
        """Seconds to wait before the next try; None when it has gone on for too long.

        ``held``: for how long the thing that has now failed had worked.
        """
        if held >= self.lasting:
            self.failures = 0
        if self.failures == 0:
            self._since = now
        self.failures += 1
        pause = min(self.first * 2.0 ** (self.failures - 1), self.longest)
        return pause if now - self._since + pause <= self.limit or self.failures == 1 else None

"""What batch requests came to: counts and times, for `/metrics`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

BOUNDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Upper bounds of the histograms in seconds."""


class Times:
    """A histogram over `BOUNDS`."""

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        index = next((i for i, bound in enumerate(BOUNDS) if seconds <= bound), len(BOUNDS))
        self.buckets[index] += 1
        self.sum += seconds

    def cumulative(self) -> Sequence[int]:
        return list(accumulate(self.buckets))


class BatchFigures:
    """Counts of answers and errors by pipeline and outcome, and the times of those that were answered."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.waited: dict[str, Times] = {}
        self.ran: dict[str, Times] = {}

    def answered(self, pipeline: str, waited: float, ran: float) -> None:
        self.ended(pipeline, "ok")
        self.waited.setdefault(pipeline, Times()).add(waited)
        self.ran.setdefault(pipeline, Times()).add(ran)

    def ended(self, pipeline: str, outcome: str) -> None:
        self.outcomes[pipeline, outcome] += 1

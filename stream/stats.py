"""Figures of a session: latency histograms and frame rates. Pure; the caller hands in the moments."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import ClassVar

from stream.frames import Timeline


class Histogram:
    """Durations in seconds in buckets that grow by a fixed ratio, so that its size never grows.

    Percentiles are interpolated within a bucket and are right to within 10 %.
    """

    RATIO: ClassVar[float] = 2**0.25
    BOUNDS: ClassVar[list[float]] = [1e-4 * (2**0.25) ** i for i in range(81)]  # 0.1 ms to 105 s

    def __init__(self) -> None:
        self.buckets = [0] * (len(self.BOUNDS) + 1)
        self.count = 0
        self.sum = 0.0
        self.max = 0.0

    def add(self, seconds: float) -> None:
        seconds = max(0.0, seconds)
        self.buckets[bisect_left(self.BOUNDS, seconds)] += 1
        self.count += 1
        self.sum += seconds
        self.max = max(self.max, seconds)

    def percentile(self, percent: float) -> float | None:
        """Seconds below which ``percent`` % of the durations lie; None before the first."""
        if not self.count:
            return None
        wanted = self.count * percent / 100
        seen = 0
        for index, number in enumerate(self.buckets):
            if number and seen + number >= wanted:
                low = self.BOUNDS[index - 1] if index else 0.0
                high = self.BOUNDS[index] if index < len(self.BOUNDS) else self.max
                return min(low + (high - low) * (wanted - seen) / number, self.max)
            seen += number
        return self.max

    def summary(self) -> dict[str, float | int | None]:
        """``count`` and p50, p95, p99, max in milliseconds."""

        def ms(value: float | None) -> float | None:
            return None if value is None else round(value * 1000, 3)

        return {
            "count": self.count,
            "p50_ms": ms(self.percentile(50)),
            "p95_ms": ms(self.percentile(95)),
            "p99_ms": ms(self.percentile(99)),
            "max_ms": ms(self.max) if self.count else None,
        }


class LatencyBook:
    """One histogram for each stage of a frame's way, and one for all of it, from `Timeline` stamps."""

    # name: (from, to)
    STAGES: ClassVar[dict[str, tuple[str, str]]] = {
        "decode": ("received", "decoded"),
        "wait": ("decoded", "taken"),
        "process": ("taken", "processed"),
        "encode": ("processed", "encoded"),
        "age_when_taken": ("received", "taken"),
        "received_to_encoded": ("received", "encoded"),
    }
    SENT_STAGES: ClassVar[dict[str, tuple[str, str]]] = {
        "send": ("encoded", "sent"),
        "total": ("received", "sent"),
    }

    def __init__(self) -> None:
        self.stages = {name: Histogram() for name in (*self.STAGES, *self.SENT_STAGES)}

    def add(self, timeline: Timeline) -> None:
        """Count every stage up to the encoder whose two ends were stamped."""
        self._add(self.STAGES, timeline)

    def add_sent(self, timeline: Timeline) -> None:
        """Count the stages that end when a sink has sent the frame."""
        self._add(self.SENT_STAGES, timeline)

    def _add(self, stages: dict[str, tuple[str, str]], timeline: Timeline) -> None:
        for name, (start, end) in stages.items():
            begun, done = getattr(timeline, start), getattr(timeline, end)
            if begun and done:
                self.stages[name].add((done - begun) / 1e9)

    def summary(self) -> dict[str, dict[str, float | int | None]]:
        return {name: histogram.summary() for name, histogram in self.stages.items() if histogram.count}


class RateMeter:
    """Events a second over a sliding window (10 s, at most ``max_samples`` events).

    ``last`` is the moment of the last event, ``since`` that of the first one after a ``silence`` (s).
    """

    def __init__(self, window: float = 10.0, max_samples: int = 1200, silence: float = 2.0) -> None:
        self._window = int(window * 1e9)
        self._silence = int(silence * 1e9)
        self._moments: deque[int] = deque(maxlen=max_samples)
        self.count = 0
        self.last: int | None = None
        self.since: int | None = None

    def tick(self, moment: int) -> None:
        if self.last is None or moment - self.last > self._silence:
            self.since = moment
        self._moments.append(moment)
        self.count += 1
        self.last = moment

    def rate(self, now: int) -> float:
        """Events per second, from the intervals within the window; 0 when fewer than two lie in it."""
        while self._moments and now - self._moments[0] > self._window:
            self._moments.popleft()
        if len(self._moments) < 2:
            return 0.0
        intervals = len(self._moments) - 1
        span = self._moments[-1] - self._moments[0]
        # Silence counts once it is longer than the events themselves were apart.
        silence = now - self._moments[-1]
        if silence > 2 * span / intervals:
            span += silence
        return intervals / (span / 1e9) if span > 0 else 0.0

"""The batch endpoints' families at `/metrics`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from headrace.batch.figures import BOUNDS, Times
from headrace.batch.front import Front


class BatchCollector(Collector):
    """Reads a `Front` when it is scraped; for the loop's thread."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def collect(self) -> Iterator[Metric]:
        service = self._front.service
        queue, figures = service.queue, service.figures
        yield GaugeMetricFamily("headrace_batch_waiting", "Batch requests that wait.", queue.waiting)
        yield GaugeMetricFamily("headrace_batch_running", "Batch requests that run.", queue.running)
        yield GaugeMetricFamily("headrace_batch_queue_limit", "Batch requests that may wait.", queue.limit)
        yield GaugeMetricFamily(
            "headrace_batch_expected_wait_seconds",
            "Time until all batch requests are done, as far as can be told.",
            queue.expected(time.monotonic()),
        )
        yield GaugeMetricFamily(
            "headrace_batch_upload_bytes", "Uploads held in memory.", self._front.budget.held
        )
        yield GaugeMetricFamily("headrace_batch_media_bytes", "Files kept for URLs.", self._front.media.held)
        yield GaugeMetricFamily(
            "headrace_batch_jobs", "Jobs that run or can be asked for.", len(self._front.jobs)
        )
        outcomes = CounterMetricFamily(
            "headrace_batch_requests",
            "Batch requests that ended, by outcome: ok, or the error's code.",
            labels=("pipeline", "outcome"),
        )
        for (pipeline, outcome), count in figures.outcomes.items():
            outcomes.add_metric((pipeline, outcome), count)
        yield outcomes
        yield _histogram(
            "headrace_batch_wait_seconds", "Time in the queue of what was answered.", figures.waited
        )
        yield _histogram(
            "headrace_batch_run_seconds", "Time in the engine of what was answered.", figures.ran
        )


def _histogram(name: str, text: str, times: Mapping[str, Times]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=("pipeline",))
    bounds = [*(f"{bound:g}" for bound in BOUNDS), "+Inf"]
    for pipeline, seen in times.items():
        buckets = list(zip(bounds, seen.cumulative(), strict=True))
        family.add_metric((pipeline,), buckets, sum_value=seen.sum)
    return family

"""``GET /metrics``: the figures of every session and engine as Prometheus text.

Nothing is counted twice: what the sessions count for themselves is read when somebody asks. The text of the
sessions is put together here, because a hundred families of histograms take prometheus-client ten
milliseconds of the event loop and this one; ``Metrics.registry`` is an ordinary registry for everything else.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from stream.exposition import Page, label
from stream.session import Session
from stream.states import State
from stream.stats import Histogram, LatencyBook
from stream.table import SessionTable

THINNING: Final = 4
"""Every fourth bound of `stream.stats.Histogram` is told: they double, from 0.1 ms to 105 s."""
BOUNDS: Final = tuple(Histogram.BOUNDS[::THINNING])
ENDED_SHOWN: Final = 120.0
"""Seconds for which an ended session's totals are still told, so that the last scrape sees them."""
MAX_ENDED: Final = 64
ENGINE_STATES: Final = ("stopped", "starting", "ready", "restarting", "failed")

Labels = tuple[tuple[str, str], ...]
CounterKey = tuple[str, Labels]

HELP: Final[Mapping[str, str]] = {
    "headrace_sessions": "Sessions by state.",
    "headrace_session_capacity": "Sessions that may run at once.",
    "headrace_sessions_started_total": "Sessions begun.",
    "headrace_sessions_ended_total": "Sessions ended, by outcome: clean or error.",
    "headrace_session_age_seconds": "Time since the session began (all in one: of the oldest).",
    "headrace_frames_in_total": "Pictures decoded.",
    "headrace_frames_out_total": "Pictures encoded, repeated and overlaid ones among them.",
    "headrace_frames_dropped_total": "Pictures dropped, by reason: rate (cap on the frame rate), "
    "busy (a newer one came before the processor was free), encoder (it was behind).",
    "headrace_frames_repeated_total": "Pictures shown again because no new one came.",
    "headrace_frames_overlaid_total": "Pictures put out with a notice in place of a result.",
    "headrace_frames_failed_total": "Pictures that the processor failed on.",
    "headrace_frames_withheld_total": "Pictures for which the processor returned nothing.",
    "headrace_audio_frames_in_total": "Stretches of sound decoded.",
    "headrace_audio_frames_dropped_total": "Stretches of sound dropped.",
    "headrace_units_dropped_total": "Encoded units dropped, by place: decoder (before it) or sink.",
    "headrace_decode_errors_total": "Encoded units that could not be decoded.",
    "headrace_received_bytes_total": "Bytes of media received.",
    "headrace_sent_bytes_total": "Bytes of media sent.",
    "headrace_stage_seconds": "Time of a picture in each stage; total: last byte in to last byte out.",
    "headrace_fps": "Pictures a second over ten seconds: input, processed, output.",
    "headrace_av_skew_seconds": "Lead of the sound over the picture in what was last put out "
    "(all in one: the largest).",
    "headrace_engine_state": "1 for the state that the engine is in.",
    "headrace_engine_restarts_total": "Restarts of the engine.",
    "headrace_engine_queue_depth": "Calls that the engine has not answered yet.",
    "headrace_engine_resident_bytes": "Memory of the engine's process.",
}


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """What is told of one engine; ``queue_depth`` is the number of open calls."""

    name: str
    state: str
    restarts: int
    queue_depth: int
    resident_bytes: int


@dataclass(slots=True)
class StageTotals:
    """A thinned histogram: numbers for each of `BOUNDS` and for what is above, and the sum in seconds."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    sum: float = 0.0

    @classmethod
    def of(cls, histogram: Histogram) -> StageTotals:
        # One copy first: the encoding thread goes on counting.
        counted = histogram.buckets.copy()
        ends = [*range(0, len(Histogram.BOUNDS), THINNING), len(counted) - 1]
        cumulative = list(accumulate(counted))
        upto = [cumulative[end] for end in ends]
        return cls([upto[0], *(b - a for a, b in pairwise(upto))], histogram.sum)

    def add(self, other: StageTotals) -> None:
        self.buckets = [a + b for a, b in zip(self.buckets, other.buckets, strict=True)]
        self.sum += other.sum


@dataclass(slots=True)
class Totals:
    """Everything that only grows, of one session or of several."""

    counters: dict[CounterKey, int] = field(default_factory=dict)
    stages: dict[str, StageTotals] = field(default_factory=dict)

    def add(self, other: Totals) -> None:
        for key, value in other.counters.items():
            self.counters[key] = self.counters.get(key, 0) + value
        for name, stage in other.stages.items():
            self.stages.setdefault(name, StageTotals()).add(stage)


@dataclass(slots=True)
class Gauges:
    """Everything that comes and goes, of one session."""

    age: float
    fps: dict[str, float]
    av_skew: float | None


def totals_of(session: Session) -> Totals:
    """The totals of a session as they stand."""
    figures = session.pipeline.figures
    counts = figures.counts
    counters: dict[CounterKey, int] = {
        ("headrace_frames_in_total", ()): counts.frames_in,
        ("headrace_frames_out_total", ()): counts.frames_out,
        ("headrace_frames_dropped_total", (("reason", "rate"),)): counts.dropped_rate,
        ("headrace_frames_dropped_total", (("reason", "busy"),)): counts.dropped_busy,
        ("headrace_frames_dropped_total", (("reason", "encoder"),)): counts.dropped_encoder,
        ("headrace_frames_dropped_total", (("reason", "away"),)): counts.dropped_away,
        ("headrace_frames_repeated_total", ()): counts.repeated,
        ("headrace_frames_overlaid_total", ()): counts.overlaid,
        ("headrace_frames_failed_total", ()): counts.failed,
        ("headrace_frames_withheld_total", ()): counts.withheld,
        ("headrace_audio_frames_in_total", ()): counts.audio_in,
        ("headrace_audio_frames_dropped_total", ()): session.pipeline.audio_dropped,
        ("headrace_units_dropped_total", (("where", "decoder"),)): session.decoding.dropped,
        ("headrace_units_dropped_total", (("where", "sink"),)): session.units_dropped,
        ("headrace_decode_errors_total", ()): session.decoding.errors,
        ("headrace_received_bytes_total", ()): session.bytes_received,
        ("headrace_sent_bytes_total", ()): session.bytes_sent,
    }
    stages = {name: StageTotals.of(histogram) for name, histogram in figures.latency.stages.items()}
    return Totals(counters, stages)


def gauges_of(session: Session) -> Gauges:
    """The momentary figures of a session."""
    figures, now = session.pipeline.figures, time.monotonic_ns()
    fps = {
        "input": figures.input_rate.rate(now),
        "processed": figures.result_rate.rate(now),
        "output": figures.output_rate.rate(now),
    }
    return Gauges(time.monotonic() - session.started, fps, figures.av_skew(now))


class Metrics:
    """The metrics of a program with sessions.

    ``per_session`` false adds all sessions up, those that have ended included, so that no label grows with
    their number. Otherwise each has its own series, for `ENDED_SHOWN` seconds beyond its end.
    """

    def __init__(
        self,
        table: SessionTable,
        *,
        version: str,
        per_session: bool = True,
        engines: Callable[[], Iterable[EngineFigures]] = tuple,
    ) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Gauge("version", "Version of the program.", ("app", "version"), registry=self.registry).labels(
            "headrace", version
        ).set(1)
        self._table = table
        self._per_session = per_session
        self._engines = engines
        self._past = Totals()
        self._ended: OrderedDict[str, tuple[float, Totals]] = OrderedDict()
        self._outcomes = {"clean": 0, "error": 0}
        table.on_ended.append(self._session_ended)

    def register(self, app: web.Application) -> None:
        """Add ``GET /metrics``."""
        app.router.add_get("/metrics", self.answer)

    async def answer(self, request: web.Request) -> web.Response:
        body = self.text().encode() + generate_latest(self.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    def text(self) -> str:
        """The figures of sessions and engines in Prometheus' text format 0.0.4."""
        page = Page(HELP, BOUNDS)
        self._write_table(page)
        gauges = {session.id: gauges_of(session) for session in self._table}
        if self._per_session:
            labelled = {label("session", name): figures for name, figures in gauges.items()}
            self._write_totals(page, {label("session", name): t for name, t in self._totals()})
        else:
            labelled = {"": _together(list(gauges.values()))} if gauges else {}
            total = Totals()
            for _, totals in self._totals():
                total.add(totals)
            self._write_totals(page, {"": total})
        self._write_gauges(page, labelled)
        self._write_engines(page)
        return page.text()

    # -- whose totals ----------------------------------------------------------------------------------

    def _totals(self) -> Iterator[tuple[str, Totals]]:
        """The totals to be told: of each live session, and of those that have ended."""
        for session in self._table:
            yield session.id, totals_of(session)
        if not self._per_session:
            yield "", self._past
            return
        self._forget_ended()
        for name, (_, totals) in self._ended.items():
            yield name, totals

    def _session_ended(self, session: Session) -> None:
        failed = session.ending is not None and session.ending.error is not None
        self._outcomes["error" if failed else "clean"] += 1
        if self._per_session:
            self._ended[session.id] = (time.monotonic(), totals_of(session))
            self._ended.move_to_end(session.id)
            self._forget_ended()
        else:
            self._past.add(totals_of(session))

    def _forget_ended(self) -> None:
        now = time.monotonic()
        running = {session.id for session in self._table}
        for name, (ended, _) in list(self._ended.items()):
            if name in running or now - ended > ENDED_SHOWN or len(self._ended) > MAX_ENDED:
                del self._ended[name]

    # -- the page --------------------------------------------------------------------------------------

    def _write_table(self, page: Page) -> None:
        states = self._table.states()
        page.family("headrace_sessions", "gauge", {label("state", str(s)): states.count(s) for s in State})
        page.family("headrace_session_capacity", "gauge", {"": self._table.capacity})
        started = len(states) + sum(self._outcomes.values())
        page.family("headrace_sessions_started_total", "counter", {"": started})
        outcomes = {label("outcome", name): count for name, count in self._outcomes.items()}
        page.family("headrace_sessions_ended_total", "counter", outcomes)

    def _write_totals(self, page: Page, totals: Mapping[str, Totals]) -> None:
        families: dict[str, dict[str, float]] = {}
        for whose, figures in totals.items():
            for (name, labels), value in figures.counters.items():
                parts = [whose, *(label(key, text) for key, text in labels)]
                families.setdefault(name, {})[",".join(filter(None, parts))] = value
        for name, samples in families.items():
            page.family(name, "counter", samples)
        stages = {
            ",".join(filter(None, [whose, label("stage", stage)])): figures.stages[stage]
            for stage in (*LatencyBook.STAGES, *LatencyBook.SENT_STAGES)
            for whose, figures in totals.items()
            if stage in figures.stages
        }
        page.histograms("headrace_stage_seconds", stages)

    def _write_gauges(self, page: Page, gauges: Mapping[str, Gauges]) -> None:
        page.family("headrace_session_age_seconds", "gauge", {whose: g.age for whose, g in gauges.items()})
        fps = {
            ",".join(filter(None, [whose, label("of", of)])): value
            for whose, figures in gauges.items()
            for of, value in figures.fps.items()
        }
        page.family("headrace_fps", "gauge", fps)
        skew = {whose: g.av_skew for whose, g in gauges.items() if g.av_skew is not None}
        page.family("headrace_av_skew_seconds", "gauge", skew)

    def _write_engines(self, page: Page) -> None:
        engines = {label("engine", engine.name): engine for engine in self._engines()}
        states = {
            f"{whose},{label('state', state)}": int(engine.state == state)
            for whose, engine in engines.items()
            for state in ENGINE_STATES
        }
        page.family("headrace_engine_state", "gauge", states)
        page.family("headrace_engine_restarts_total", "counter", {w: e.restarts for w, e in engines.items()})
        page.family("headrace_engine_queue_depth", "gauge", {w: e.queue_depth for w, e in engines.items()})
        page.family(
            "headrace_engine_resident_bytes", "gauge", {w: e.resident_bytes for w, e in engines.items()}
        )


def _together(gauges: list[Gauges]) -> Gauges:
    """One set of figures for all sessions: rates are added up, of ages and skews the largest counts."""
    skews = [g.av_skew for g in gauges if g.av_skew is not None]
    return Gauges(
        max(g.age for g in gauges),
        {of: sum(g.fps[of] for g in gauges) for of in gauges[0].fps},
        max(skews, key=abs) if skews else None,
    )

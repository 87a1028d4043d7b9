"""Figures at /metrics: well formed, true, and never falling."""

import asyncio
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from quiet_session import quiet_session as session

from stream.errors import SourceError
from stream.metrics import BOUNDS, HELP, EngineFigures, Metrics, StageTotals
from stream.stats import Histogram
from stream.status import session_report
from stream.table import SessionTable


class Broken:
    """A source that fails after it has delivered so many bytes."""

    bytes_received = 4711

    async def run(self, put, tracks):
        raise SourceError("the channel is gone")


def table():
    return SessionTable(8, session_report)


def samples(metrics):
    """Every sample by its name and labels."""
    found = {}
    for family in text_string_to_metric_families(metrics.text()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"{key} is told twice"
            found[key] = sample.value
    return found


def value(metrics, name, **labels):
    return samples(metrics).get((name, tuple(sorted(labels.items()))))


async def stop(sessions, one):
    one.stop("test")
    assert await sessions.wait_ended(one.id)
    await asyncio.sleep(0)


@given(st.lists(st.floats(0, 500), max_size=200))
def test_thinned_histograms_keep_every_duration_in_its_place(durations):
    histogram = Histogram()
    for seconds in durations:
        histogram.add(seconds)
    totals = StageTotals.of(histogram)
    for index, bound in enumerate(BOUNDS):
        assert sum(totals.buckets[: index + 1]) == sum(seconds <= bound for seconds in durations)
    assert sum(totals.buckets) == len(durations)
    assert math.isclose(totals.sum, sum(durations), abs_tol=1e-9)


@pytest.mark.parametrize("per_session", [True, False])
async def test_every_family_is_well_formed_and_has_a_meaning(per_session):
    sessions = table()
    engine = EngineFigures("live", "ready", 3, 2, 1_000_000)
    metrics = Metrics(sessions, version="1.2.3", per_session=per_session, engines=lambda: [engine])
    one = session('id "quoted" \\ and\nbroken')
    sessions.add(one)
    one.pipeline.figures.latency.stages["process"].add(0.25)
    families = {family.name: family for family in text_string_to_metric_families(metrics.text())}
    told = {name if kind.type != "counter" else f"{name}_total" for name, kind in families.items()}
    assert told == set(HELP)
    assert value(metrics, "headrace_engine_state", engine="live", state="ready") == 1
    assert value(metrics, "headrace_engine_restarts_total", engine="live") == 3
    label = {"session": one.id} if per_session else {}
    assert value(metrics, "headrace_stage_seconds_sum", stage="process", **label) == 0.25
    assert value(metrics, "headrace_stage_seconds_bucket", stage="process", le="0.2048", **label) == 0
    assert value(metrics, "headrace_stage_seconds_bucket", stage="process", le="0.4096", **label) == 1
    await stop(sessions, one)


async def test_each_session_has_its_own_series_and_leaves_them_for_a_last_scrape(monkeypatch):
    sessions = table()
    metrics = Metrics(sessions, version="1")
    one, two = session("one"), session("two")
    for each, frames in ((one, 10), (two, 20)):
        sessions.add(each)
        each.pipeline.figures.counts.frames_in = frames
        each.pipeline.figures.counts.dropped_busy = frames // 2
    assert value(metrics, "headrace_frames_in_total", session="one") == 10
    assert value(metrics, "headrace_frames_dropped_total", session="two", reason="busy") == 10
    await stop(sessions, one)
    assert value(metrics, "headrace_frames_in_total", session="one") == 10
    assert value(metrics, "headrace_session_age_seconds", session="one") is None
    monkeypatch.setattr("stream.metrics.ENDED_SHOWN", -1.0)
    assert value(metrics, "headrace_frames_in_total", session="one") is None
    assert value(metrics, "headrace_frames_in_total", session="two") == 20
    await stop(sessions, two)


async def test_a_session_that_comes_again_replaces_what_was_left_of_it():
    sessions = table()
    metrics = Metrics(sessions, version="1")
    for frames in (10, 3):
        one = session("one")
        sessions.add(one)
        one.pipeline.figures.counts.frames_in = frames
        assert value(metrics, "headrace_frames_in_total", session="one") == frames
        await stop(sessions, one)


async def test_without_the_label_totals_never_fall_when_sessions_come_and_go():
    sessions = table()
    metrics = Metrics(sessions, version="1", per_session=False)
    seen = [samples(metrics)]
    running = []
    for number in range(3):
        one = session(str(number))
        sessions.add(one)
        running.append(one)
        one.pipeline.figures.counts.frames_in = 10
        one.pipeline.figures.latency.stages["decode"].add(0.01)
        seen.append(samples(metrics))
    for one in running:
        await stop(sessions, one)
        seen.append(samples(metrics))
    assert not [key for key in seen[-1] if "session" in dict(key[1])]
    totals = [key for key in seen[-1] if key[0].endswith(("_total", "_bucket", "_count", "_sum"))]
    assert totals
    for key in totals:
        told = [page[key] for page in seen if key in page]
        assert all(before <= after for before, after in pairwise(told)), key
    assert value(metrics, "headrace_frames_in_total") == 30
    assert value(metrics, "headrace_stage_seconds_count", stage="decode") == 3
    assert value(metrics, "headrace_sessions_started_total") == 3
    assert value(metrics, "headrace_sessions_ended_total", outcome="clean") == 3


async def test_states_and_outcomes_are_counted():
    sessions = table()
    metrics = Metrics(sessions, version="1")
    broken = session("broken", Broken())
    sessions.add(broken)
    assert value(metrics, "headrace_sessions_started_total") == 1
    assert await sessions.wait_ended("broken")
    await asyncio.sleep(0)
    assert value(metrics, "headrace_sessions_ended_total", outcome="error") == 1
    assert value(metrics, "headrace_received_bytes_total", session="broken") == 4711
    assert value(metrics, "headrace_session_capacity") == 8


async def test_the_skew_is_told_while_sound_and_picture_go_out(monkeypatch):
    sessions = table()
    metrics = Metrics(sessions, version="1")
    one = session("one")
    sessions.add(one)
    figures = one.pipeline.figures
    assert value(metrics, "headrace_av_skew_seconds", session="one") is None
    now = 10**12
    monkeypatch.setattr("stream.metrics.time.monotonic_ns", lambda: now)
    figures.video_out, figures.audio_out = 90_000, 81_000
    figures.output_rate.tick(now)
    figures.audio_out_rate.tick(now - 10**9)
    assert value(metrics, "headrace_av_skew_seconds", session="one") == pytest.approx(-0.1)
    now += 3 * 10**9
    assert value(metrics, "headrace_av_skew_seconds", session="one") is None
    await stop(sessions, one)

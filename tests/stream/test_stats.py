import math

from hypothesis import given
from hypothesis import strategies as st

from stream.frames import Timeline
from stream.stats import Histogram, LatencyBook, RateMeter


@given(st.lists(st.floats(1e-3, 100), min_size=1, max_size=300), st.sampled_from([50.0, 95.0, 99.0]))
def test_percentiles_are_right_to_within_a_bucket(values, percent):
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    exact = sorted(values)[math.ceil(percent / 100 * len(values)) - 1]
    estimate = histogram.percentile(percent)
    assert exact / Histogram.RATIO <= estimate <= exact * Histogram.RATIO
    assert estimate <= histogram.max


def test_an_empty_histogram_has_no_percentile():
    assert Histogram().percentile(50) is None
    assert Histogram().summary()["p50_ms"] is None


def test_only_stages_with_both_ends_stamped_are_counted():
    book = LatencyBook()
    book.add(Timeline(received=1_000_000, decoded=2_000_000, processed=9_000_000))
    assert set(book.summary()) == {"decode"}
    assert book.summary()["decode"]["p50_ms"] == 1.0


@given(st.floats(1, 120), st.integers(50, 1000))
def test_a_steady_rate_is_measured(fps, count):
    meter = RateMeter()
    for i in range(count):
        meter.tick(int(i * 1e9 / fps))
    assert abs(meter.rate(int((count - 1) * 1e9 / fps)) - fps) < 0.02 * fps


def test_a_rate_falls_when_events_stop():
    meter = RateMeter()
    for i in range(100):
        meter.tick(int(i * 1e9 / 30))
    last = int(99 * 1e9 / 30)
    assert meter.rate(last + int(3e9)) < 20
    assert meter.rate(last + int(11e9)) == 0


def test_what_comes_again_after_a_silence_is_known_to_have_begun_then():
    meter = RateMeter(silence=2.0)
    moments = [0, 1, 3, 6, 7, 10]
    begun = []
    for second in moments:
        meter.tick(second * 10**9)
        begun.append(None if meter.since is None else meter.since // 10**9)
    assert begun == [0, 0, 0, 6, 6, 10]

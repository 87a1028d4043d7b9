"""What a viewer's connection carries: growth, congestion, the lower rendition and the way back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stream.renditions import BitrateRange
from stream.webrtc.bitrate import (
    BELOW,
    RETURN,
    ReceiveLimit,
    ReceiveSettings,
    SentRate,
    ViewerLimits,
    ViewerRate,
)

LIMITS = ViewerLimits(BitrateRange(2_000_000, 500_000, 6_000_000), BitrateRange(300_000, 100_000, 600_000))

events = st.lists(
    st.tuples(
        st.sampled_from(["estimate", "loss"]),
        st.integers(0, 20_000_000),
        st.floats(0, 1),
        st.floats(0, 3),
    ),
    max_size=120,
)


@given(events)
def test_the_bitrate_stays_within_the_limits_of_its_rendition(
    events: list[tuple[str, int, float, float]],
) -> None:
    rate, now = ViewerRate(LIMITS), 0.0
    for kind, bits, fraction, passed in events:
        now += passed
        before = rate.target
        if kind == "estimate":
            rate.estimate(bits, int(bits * fraction * 2), now)
        else:
            rate.loss(fraction, bits, now)
        highest = LIMITS.low.highest if rate.low else LIMITS.main.highest
        assert LIMITS.low.lowest <= rate.target <= highest
        assert rate.target <= max(before * 1.09, LIMITS.main.lowest), "it never leaps up"


@given(st.integers(120_000, 6_000_000), st.integers(500_000, 6_000_000), st.booleans())
def test_an_estimate_that_falls_below_what_was_sent_is_obeyed_at_once(
    bits: int, sent: int, first: bool
) -> None:
    rate = ViewerRate(LIMITS)
    if not first:
        rate.estimate(7_000_000, sent, 0.5)
    rate.estimate(bits, sent, 1.0)
    if bits < 0.89 * sent:
        assert rate.target <= max(bits, LIMITS.low.lowest)
    elif bits >= sent:
        assert rate.target >= LIMITS.main.start


def test_a_picture_that_begins_to_move_is_no_congestion() -> None:
    """The estimate of a still picture is low, and grows by 8 % a second while two megabits pass."""
    rate = ViewerRate(LIMITS)
    now, bits = 0.0, 160_000.0
    for _ in range(10):
        now += 1
        rate.estimate(int(bits), 100_000, now)
    for _ in range(30):
        now += 1
        rate.estimate(int(bits), 2_000_000, now)
        rate.loss(0.0, 2_000_000, now)
        bits *= 1.08
    assert rate.target >= LIMITS.main.start
    rate.estimate(1_700_000, 2_000_000, now + 1)
    assert rate.target >= LIMITS.main.start, "it still grows"
    rate.estimate(1_445_000, 2_000_000, now + 2)
    assert rate.target <= 1_445_000, "now it falls"


def test_a_limit_that_the_receiver_states_is_kept() -> None:
    """A receiver that says the same again and again means it."""
    rate = ViewerRate(LIMITS)
    for step in range(60):
        rate.estimate(900_000, rate.target, step * 0.5)
        assert step == 0 or rate.target <= 1_100_000
    assert rate.target >= 800_000


def test_a_still_picture_is_no_congestion() -> None:
    """A browser that gets 60 kbit/s cannot know that more would pass, and says about that."""
    rate = ViewerRate(LIMITS)
    for second in range(60):
        rate.estimate(62_000, 60_000, float(second))
        rate.loss(0.0, 60_000, second + 0.5)
    assert rate.target == LIMITS.main.start
    assert not rate.low


def test_heavy_loss_is_a_brake_and_light_loss_is_none() -> None:
    rate = ViewerRate(LIMITS)
    rate.loss(0.05, 2_000_000, 1.0)
    assert rate.target == LIMITS.main.start
    rate.loss(0.2, 2_000_000, 2.0)
    assert rate.target == 1_800_000


def test_a_clear_connection_reaches_the_limit() -> None:
    rate = ViewerRate(LIMITS)
    for step in range(120):
        rate.estimate(rate.target * 2, rate.target, step * 0.5)
    assert rate.target == LIMITS.main.highest


def test_what_is_not_sent_is_not_counted_on() -> None:
    """Others hold the shared rendition low: nothing is learnt of this connection."""
    rate = ViewerRate(LIMITS)
    for step in range(120):
        rate.estimate(900_000, 600_000, step * 0.5)
    assert rate.target == LIMITS.main.start


def slow(rate: ViewerRate, begin: float, seconds: float, bits: int = 200_000) -> float:
    """The connection carries ``bits``, and what is sent is what the rendition has at least."""
    now = begin
    while now < begin + seconds:
        floor = LIMITS.low.lowest if rate.low else LIMITS.main.lowest
        rate.estimate(bits, max(rate.target, floor), now)
        now += 0.5
    return now


def test_who_stays_below_the_floor_moves_to_the_lower_rendition() -> None:
    rate = ViewerRate(LIMITS)
    slow(rate, 0.0, BELOW - 0.5)
    assert not rate.low
    slow(rate, BELOW - 0.5, 3.0)
    assert rate.low
    assert rate.target <= 240_000


def test_one_bad_second_does_not_move_anybody() -> None:
    rate = ViewerRate(LIMITS)
    rate.estimate(150_000, 2_000_000, 0.0)
    for step in range(1, 40):
        rate.estimate(5_000_000, LIMITS.main.lowest, step * 0.5)
    assert not rate.low


def test_the_way_back_waits_longer_each_time_it_fails() -> None:
    rate = ViewerRate(LIMITS)
    now, waits = slow(rate, 0.0, 6.0), []
    for _ in range(4):
        left = now
        while rate.low:
            now += 0.5
            rate.estimate(2 * rate.target, rate.target, now)
            assert now - left < 400
        waits.append(now - left)
        assert rate.target >= LIMITS.main.lowest
        now = slow(rate, now, 6.0)
        assert rate.low
    assert waits == sorted(waits)
    assert waits[0] < RETURN + 1
    assert waits[-1] > 5 * waits[0]


@given(events)
def test_nobody_moves_back_and_forth(events: list[tuple[str, int, float, float]]) -> None:
    rate, now = ViewerRate(LIMITS), 0.0
    for kind, bits, fraction, passed in events:
        now += passed
        if kind == "estimate":
            rate.estimate(bits, max(bits * 2, 600_000), now)
        else:
            rate.loss(fraction, bits, now)
    assert rate.moves <= 2 + 2 * now / RETURN


def test_the_sent_rate_is_that_of_the_last_second() -> None:
    rate = SentRate()
    for index in range(100):
        rate.add(1250, index / 50)
    assert rate.bits(2.0) == 500_000
    assert rate.bits(3.5) == 0


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 30_000_000), st.floats(0, 1), st.floats(0, 2)), max_size=100
    )
)
def test_what_a_publisher_may_send_stays_within_the_limits(
    steps: list[tuple[bool, int, float, float]],
) -> None:
    limit, now = ReceiveLimit(ReceiveSettings(start=2_000_000, lowest=300_000, highest=8_000_000)), 0.0
    for overused, arriving, fraction, passed in steps:
        now += passed
        limit.delay(overused, arriving, now)
        limit.loss(fraction, arriving, now)
        told = limit.due(now)
        assert 300_000 <= limit.bits <= 8_000_000
        assert told is None or told == limit.bits


def test_a_publisher_is_told_its_start_at_once_and_may_send_more_soon() -> None:
    limit = ReceiveLimit(ReceiveSettings(start=2_500_000, lowest=300_000, highest=8_000_000))
    assert limit.due(10.0) == 2_500_000
    assert limit.due(10.1) is None
    for step in range(1, 21):
        limit.due(10.0 + step * 0.5)
    assert limit.bits == 8_000_000


def test_one_pause_of_ours_is_no_congestion_and_three_in_a_second_are() -> None:
    limit = ReceiveLimit(ReceiveSettings(start=2_500_000, lowest=300_000, highest=8_000_000))
    limit.delay(True, 1_000_000, 1.0)
    limit.delay(True, 1_000_000, 5.0)
    assert limit.bits == 2_500_000
    limit.delay(True, 1_000_000, 5.2)
    limit.delay(True, 1_000_000, 5.4)
    assert limit.bits == 850_000

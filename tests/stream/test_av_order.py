from dataclasses import dataclass
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from stream.av_order import FOLLOW, SETTLE, AvOrder
from stream.clock import TICKS

MS = TICKS // 1000
PICTURE, SOUND = 3000, 1800


@dataclass
class Picture:
    pts: int
    is_result: bool = True


@dataclass
class Sound:
    pts: int
    length: int = SOUND


Order = AvOrder[Picture, Sound]


@dataclass
class Stretch:
    """What happens for ``length`` seconds: pictures of that kind leave ``lag`` seconds after their time."""

    length: float
    lag: float
    is_result: bool = True
    fps: float = 30


def simulate(plan: list[Stretch], *, offset: int = 0) -> tuple[Order, list[tuple[int, int]]]:
    """Play a plan in steps of a millisecond; when each sound left, and its time."""
    order: Order = AvOrder()
    pictures, begin = [], 0.0
    for stretch in plan:
        for index in range(int(stretch.length * stretch.fps)):
            time = begin + index / stretch.fps
            leaves = int((time + stretch.lag) * TICKS)
            pictures.append((leaves, Picture(int(time * TICKS), stretch.is_result)))
        begin += stretch.length
    pictures.sort(key=lambda each: each[0])
    heard: list[tuple[int, int]] = []
    next_sound = 0
    for now in range(0, int((begin + 3) * TICKS), MS):
        while next_sound <= now and next_sound < begin * TICKS:
            order.put_sound(Sound(next_sound))
            next_sound += SOUND
        while pictures and pictures[0][0] <= now:
            order.put_pictures([pictures.pop(0)[1]])
        while (item := order.next(now + offset)) is not None:
            if isinstance(item, Sound):
                heard.append((now, item.pts))
    return order, heard


def delays(heard: list[tuple[int, int]], *, after: float = 0) -> list[tuple[int, int]]:
    return [(now, now - pts) for now, pts in heard if now >= after * TICKS]


def assert_steady(heard: list[tuple[int, int]], *, after: float) -> None:
    """The delay changes slowly: no sound is held back, and none let go in a burst."""
    for (before, first), (now, second) in pairwise(delays(heard, after=after)):
        assert abs(second - first) <= FOLLOW * (now - before) + 3 * MS
        assert 10 * MS <= now - before <= 35 * MS


lags = st.floats(0, 0.9)


@given(lags, lags, st.floats(0.2, 4), st.booleans(), st.integers(-(10**9), 10**9))
def test_a_notice_or_a_repeat_neither_drops_sound_nor_lets_it_go_in_a_burst(
    lag, lag_after, away, repeats, offset
):
    away_fps = 2.5 if repeats else 30.0
    plan = [Stretch(SETTLE + 2, lag), Stretch(away, 0, is_result=False, fps=away_fps), Stretch(3, lag_after)]
    order, heard = simulate(plan, offset=offset)
    assert order.dropped_audio == 0
    assert [pts for _, pts in heard] == list(range(0, len(heard) * SOUND, SOUND))
    assert len(heard) * SOUND >= (SETTLE + 2 + away + 3) * TICKS
    assert_steady(heard, after=SETTLE + lag + 0.1)


@given(lags, lags)
def test_the_delay_of_the_sound_follows_that_of_the_results(lag, lag_after):
    needed = abs(lag - lag_after) / FOLLOW
    _, heard = simulate([Stretch(SETTLE + 1, lag), Stretch(needed + 3, lag_after)])
    late = [delay for now, delay in delays(heard, after=SETTLE + 1 + needed + lag_after + 1.5)]
    assert late
    assert all(abs(delay - lag_after * TICKS) < 45 * MS for delay in late)


@given(st.floats(0.03, 0.9))
def test_a_model_slower_than_the_pictures_has_its_sound_with_them(lag):
    _, heard = simulate([Stretch(4, lag, fps=min(30.0, 1 / lag))])
    assert all(abs(delay - lag * TICKS) < 45 * MS for _, delay in delays(heard, after=lag + 0.2))


def test_one_call_that_hung_does_not_interrupt_the_sound():
    plan = [Stretch(SETTLE + 1, 0.05), Stretch(0.04, 3.0), Stretch(6, 0.05)]
    _, heard = simulate(plan)
    assert_steady(heard, after=SETTLE + 0.2)


def test_a_timeline_that_jumps_takes_the_sound_along():
    plan = [Stretch(SETTLE + 1, 0.05), Stretch(6, 1.8)]
    _, heard = simulate(plan)
    assert abs(delays(heard)[-1][1] - 1.8 * TICKS) < 100 * MS


def test_before_there_is_a_result_sound_leaves_with_the_notices():
    order, heard = simulate([Stretch(3, 0, is_result=False)])
    assert order.dropped_audio == 0
    assert max(delay for _, delay in delays(heard)) < 45 * MS


def test_without_pictures_sound_waits_for_nothing():
    order: Order = AvOrder()
    order.expects_video = False
    order.put_sound(Sound(0))
    assert order.next(0) == Sound(0)


def test_it_says_when_the_next_sound_is_due():
    order: Order = AvOrder()
    order.put_sound(Sound(9000))
    assert order.wait(0) is None
    order.put_pictures([Picture(0)])
    assert order.next(500) == Picture(0)
    assert order.wait(500) == 9000
    assert order.next(9499) is None
    assert order.next(9500) == Sound(9000)


steps = st.lists(st.sampled_from("vast"), max_size=300)


@given(steps, st.sampled_from([None, True]))
def test_sound_is_bounded_in_order_and_accounted_for(plan, expects):
    order: Order = AvOrder(max_sound=1.0)
    order.expects_video = expects
    sounds, out, video, now = 0, [], 0, 0
    for step in plan:
        now += 900
        if step == "a":
            order.put_sound(Sound(sounds * SOUND))
            sounds += 1
        elif step == "v":
            order.put_pictures([Picture(video * PICTURE)])
            video += 1
        elif (item := order.next(now)) is not None:
            out.append(item)
    while (item := order.next(now, ending=True)) is not None:
        out.append(item)
    heard = [item.pts for item in out if isinstance(item, Sound)]
    assert heard == sorted(heard)
    assert len(heard) + order.dropped_audio == sounds
    seen = [item.pts for item in out if isinstance(item, Picture)]
    assert seen == sorted(seen)
    assert len(seen) + order.dropped_video == video


def test_sound_is_not_starved_by_an_encoder_that_is_slower_than_the_pictures():
    order: Order = AvOrder()
    heard = []
    for i in range(600):
        order.put_pictures([Picture(i * PICTURE)])
        order.put_sound(Sound(i * PICTURE, PICTURE))
        item = order.next(i * PICTURE)
        if isinstance(item, Sound):
            heard.append(item)
    assert len(heard) > 250
    assert len(heard) + order.dropped_audio > 500


def test_sound_that_nobody_takes_is_bounded():
    order: Order = AvOrder(max_sound=1.0)
    order.put_pictures([Picture(0)])
    order.next(0)
    for i in range(500):
        order.put_sound(Sound(90_000 + i * SOUND))
    assert order.dropped_audio == 400


def test_lossless_sound_leaves_once_the_picture_of_its_time_has_left():
    order: Order = AvOrder(lossless=True)
    order.put_sound(Sound(0))
    order.put_sound(Sound(1800))
    assert order.next(10**9) is None
    order.put_pictures([Picture(1000)])
    assert order.next(10**9) == Picture(1000)
    assert order.next(10**9) == Sound(0)
    assert order.next(10**9) is None
    assert order.next(10**9, ending=True) == Sound(1800)


def test_lossless_nothing_is_dropped_and_full_sound_leaves_before_the_first_picture():
    order: Order = AvOrder(max_sound=1.0, lossless=True)
    for i in range(60):
        order.put_sound(Sound(i * SOUND))
    assert order.sound_is_full
    assert order.next(0) == Sound(0)
    assert order.dropped_audio == 0

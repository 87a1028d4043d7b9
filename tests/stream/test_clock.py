import itertools

from hypothesis import given
from hypothesis import strategies as st

from stream.clock import TICKS, EvenRate, Monotonic, SessionClock

SECOND = 1_000_000_000


def test_a_source_that_runs_on_keeps_its_own_timestamps():
    clock = SessionClock()
    for i in range(1000):
        assert clock.map(126_000 + i * 3000, i * SECOND // 30) == 126_000 + i * 3000
    assert clock.jumps == 0


@given(st.integers(0, 1 << 33), st.integers(0, 1 << 33), st.floats(0, 100))
def test_after_a_jump_the_timeline_goes_on_by_the_time_that_passed(first, second, passed):
    clock = SessionClock()
    clock.map(first, 0)
    moment = int(passed * SECOND)
    out = clock.map(second, moment)
    if clock.jumps:
        assert out == first + max(moment * TICKS // SECOND, TICKS // 30)
    else:
        assert out == second
        assert -TICKS <= second - first <= (passed + 10) * TICKS + 1


def test_sound_and_pictures_keep_their_distance_over_a_restart_of_the_source():
    clock = SessionClock()
    clock.map(10_000_000, 0)
    clock.map(10_000_500, 0)
    video = clock.map(126_000, SECOND)
    audio = clock.map(126_900, SECOND)
    assert audio - video == 900
    assert clock.jumps == 1


def test_stragglers_from_before_a_jump_do_not_throw_the_clock_back():
    clock = SessionClock()
    clock.map(10_000_000, 0)
    after = clock.map(0, SECOND // 30)
    straggler = clock.map(10_000_900, SECOND // 30)
    assert straggler == 10_000_900
    assert clock.map(3000, SECOND // 15) == after + 3000
    assert clock.jumps == 1


def test_a_source_that_jumps_there_and_back_is_no_straggler():
    clock, out = SessionClock(), []
    for i in range(180):
        pts = 90_000_000 if 60 <= i < 120 else 0
        out.append(clock.map(pts + i * 3000, i * SECOND // 30))
    assert clock.jumps == 2
    assert all(2900 < b - a < 3100 for a, b in itertools.pairwise(out))


def _fed(deliveries: list[tuple[float, int]]) -> tuple[SessionClock, list[int], list[int]]:
    """Pictures and sound with such timestamps at such moments (s): the clock, and where both lie."""
    clock, pictures, sounds = SessionClock(), [], []
    for moment, pts in deliveries:
        pictures.append(clock.map_picture(pts, int(moment * SECOND)))
        sounds.append(clock.map(pts - 900, int(moment * SECOND)))
    return clock, pictures, sounds


@given(st.floats(1.6, 60), st.integers(0, 1 << 33))
def test_a_pause_in_which_the_sources_own_time_stands_still_is_time_that_passed(pause, first):
    moments = [i / 30 + (pause if i >= 60 else 0) for i in range(150)]
    clock, pictures, sounds = _fed([(m, first + i * 3000) for i, m in enumerate(moments)])
    assert clock.jumps == 1
    for index in (*range(60), *range(100, 150)):
        assert abs(pictures[index] - first - moments[index] * TICKS) < 100
        assert pictures[index] - sounds[index] == 900


@given(st.floats(0.6, 20), st.booleans())
def test_a_source_that_is_held_up_and_makes_good_for_it_keeps_its_own_timestamps(stall, own_gap):
    """A stall of the network, after which everything comes at once; or pictures that were not there."""
    moments = [i / 30 for i in range(150 + int(stall * 30))]
    until = moments[60] + stall
    if own_gap:
        deliveries = [(m, i * 3000) for i, m in enumerate(moments) if not moments[60] <= m < until]
    else:
        deliveries = [(m if i < 60 else max(m, until), i * 3000) for i, m in enumerate(moments)]
    clock, pictures, _ = _fed(deliveries)
    assert clock.jumps == 0
    assert pictures == [pts for _, pts in deliveries]


def test_segments_that_come_in_one_piece_are_no_pause():
    clock, pictures, _ = _fed([(i // 60 * 2.0, i * 3000) for i in range(600)])
    assert clock.jumps == 0
    assert pictures == [i * 3000 for i in range(600)]


def test_reordered_sound_slightly_behind_pictures_is_no_jump():
    clock = SessionClock()
    clock.map(1_000_000, 0)
    assert clock.map(1_000_000 - TICKS // 2, 0) == 1_000_000 - TICKS // 2
    assert clock.jumps == 0


@given(st.lists(st.integers(-(1 << 40), 1 << 40)))
def test_monotonic_output_only_ever_increases(wanted):
    out = Monotonic()
    got = [out.next(pts) for pts in wanted]
    assert all(a < b for a, b in itertools.pairwise(got))
    assert all(g >= w for g, w in zip(got, wanted, strict=True))


def _kept(source_fps: float, cap: float, seconds: int = 20) -> list[int]:
    rate = EvenRate(cap)
    frames = [round(i * TICKS / source_fps) for i in range(int(source_fps * seconds))]
    return [pts for pts in frames if rate.keeps(pts)]


@given(st.floats(5, 120), st.floats(1, 120))
def test_a_rate_cap_keeps_as_many_frames_as_it_may(source, cap):
    kept = len(_kept(source, cap)) / 20
    assert kept <= cap * 1.05 + 0.2
    assert kept >= min(source, cap) * 0.65 - 0.2


def test_halving_a_rate_drops_every_other_frame():
    kept = _kept(60, 30)
    assert {b - a for a, b in itertools.pairwise(kept)} == {3000}


def test_a_cap_above_the_source_drops_nothing():
    assert len(_kept(30, 30)) == 600
    assert len(_kept(24, 30)) == 480


def test_a_rate_cap_survives_a_jump_of_the_source():
    rate = EvenRate(30)
    assert rate.keeps(10_000_000)
    assert rate.keeps(0)
    assert rate.keeps(90_000_000)

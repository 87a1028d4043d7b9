from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.policy import Backoff, Watch

FIRST, CEILING, STABLE, ATTEMPTS = 0.1, 5.0, 30.0, 4


def backoff() -> Backoff:
    return Backoff(FIRST, CEILING, STABLE, ATTEMPTS)


ends = st.lists(st.none() | st.floats(0, 100), max_size=40)


@given(ends=ends)
def test_a_delay_is_never_shorter_than_the_first_nor_longer_than_the_ceiling(
    ends: list[float | None],
) -> None:
    policy = backoff()
    assert all(FIRST <= policy.ended(ready_for) <= CEILING for ready_for in ends)


def test_delays_double_up_to_the_ceiling() -> None:
    policy = backoff()
    delays = [policy.ended(1.0) for _ in range(8)]
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert not policy.failed


@given(ends=ends)
def test_a_stable_engine_is_restarted_as_if_it_were_the_first_time(ends: list[float | None]) -> None:
    policy = backoff()
    for ready_for in ends:
        policy.ended(ready_for)
    assert policy.ended(STABLE) == FIRST
    assert not policy.failed


@given(ends=ends)
def test_only_ends_in_a_row_that_were_never_ready_count_as_failure(ends: list[float | None]) -> None:
    policy = backoff()
    in_a_row = 0
    for ready_for in ends:
        delay = policy.ended(ready_for)
        in_a_row = in_a_row + 1 if ready_for is None else 0
        assert policy.failed == (in_a_row >= ATTEMPTS)
        if policy.failed:
            assert delay == CEILING


def watch() -> Watch:
    return Watch(call_timeout=5, open_timeout=300)


def test_an_engine_that_owes_nothing_never_hangs() -> None:
    w = watch()
    assert not w.hung(1e9)
    w.sent(1, "call", 0)
    w.answered(1, 1)
    assert not w.hung(1e9)


def test_silence_counts_from_the_call_and_not_from_the_idle_time_before_it() -> None:
    w = watch()
    w.heard(0)
    w.sent(1, "call", 1000)
    assert not w.hung(1005)
    assert w.hung(1005.1)


def test_an_answer_to_one_call_gives_the_others_their_full_time() -> None:
    w = watch()
    w.sent(1, "call", 0)
    w.sent(2, "call", 0)
    w.answered(1, 4)
    assert not w.hung(8.9)
    assert w.hung(9.1)


def test_talk_that_is_no_answer_does_not_excuse_a_call() -> None:
    w = watch()
    w.sent(1, "call", 0)
    for second in range(1, 6):
        w.heard(second)
    assert w.hung(5.1)


def test_an_engine_whose_loop_is_kept_by_calls_does_not_hang_and_one_that_falls_silent_does() -> None:
    w = watch()
    w.sent(1, "call", 0)
    for second in range(4, 40, 4):
        w.working(second)
    assert not w.hung(40.9)
    assert w.hung(41.1)


def test_any_sign_of_life_counts_while_a_session_opens() -> None:
    w = watch()
    w.sent(1, "open", 0)
    w.sent(2, "call", 0)
    assert not w.hung(299)
    w.heard(299)
    assert not w.hung(598)
    assert w.hung(600)


def test_calls_that_waited_behind_an_opening_get_their_full_time_after_it() -> None:
    w = watch()
    w.sent(1, "open", 0)
    w.sent(2, "call", 0)
    w.answered(1, 100)
    assert not w.hung(104.9)
    assert w.hung(105.1)


@given(
    events=st.lists(st.tuples(st.sampled_from(["call", "open", "heard", "answer"]), st.floats(0, 10))),
    asleep=st.floats(0, 1e6),
)
def test_time_in_which_the_worker_itself_stood_still_is_nobodys_fault(
    events: list[tuple[str, float]], asleep: float
) -> None:
    w, now, calls = watch(), 0.0, []
    for number, (event, later) in enumerate(events):
        now += later
        if event == "heard":
            w.heard(now)
        elif event == "answer":
            if calls:
                w.answered(calls.pop(0), now)
        else:
            w.sent(number, "open" if event == "open" else "call", now)
            calls.append(number)
    assert w.outstanding == len(calls)
    before = w.silent_for(now)
    w.excuse(asleep)
    assert abs(w.silent_for(now + asleep) - before) < 1e-3

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stream.states import Counters, Health, State, session_state, worker_health

STEADY = Counters(
    now=100.0,
    started=0.0,
    ready=True,
    ready_since=1.0,
    last_input=99.99,
    input_fps=24.0,
    first_output=1.1,
    last_output=99.97,
    output_fps=24.0,
)


def _stream(fps: float, seconds: float, out_of: int = 1) -> set[State]:
    """The states of a stream sampled every 50 ms, with a result for one in ``out_of`` frames."""
    seen = set()
    for step in range(1, int(seconds * 20)):
        now = 1.0 + step / 20
        frames = int((now - 1.0) * fps)
        results = frames // out_of
        counters = replace(
            STEADY,
            now=now,
            last_input=1.0 + frames / fps if frames else None,
            input_fps=fps,
            first_output=1.0 + out_of / fps if results else None,
            last_output=1.0 + results * out_of / fps if results else None,
            output_fps=fps / out_of,
        )
        seen.add(session_state(counters))
    return seen


def test_a_perfect_24_fps_stream_is_online_from_its_first_result_to_its_end():
    assert _stream(24, 60) - {State.LOADING} == {State.ONLINE}


def test_a_12_fps_camera_that_the_model_keeps_up_with_is_not_degraded():
    assert _stream(12, 30) - {State.LOADING} == {State.ONLINE}


def test_a_60_fps_camera_with_a_model_that_makes_20_is_not_degraded():
    assert _stream(60, 30, out_of=3) - {State.LOADING} == {State.ONLINE}


def test_a_model_that_makes_5_of_30_fps_is_degraded():
    assert State.DEGRADED_INFERENCE in _stream(30, 30, out_of=6)


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({}, State.ONLINE),
        ({"last_input": 97.0}, State.DEGRADED_INPUT),
        ({"last_input": None, "last_output": None, "first_output": None}, State.DEGRADED_INPUT),
        ({"last_output": 97.0}, State.DEGRADED_INFERENCE),
        ({"last_output": 80.0}, State.ERROR),
        ({"last_output": 80.0, "last_work": 99.9, "work_since": 99.5}, State.ONLINE),
        ({"last_output": 80.0, "last_work": 99.9, "work_since": 97.0}, State.DEGRADED_INFERENCE),
        ({"last_output": 80.0, "last_work": 80.0, "work_since": 2.0}, State.DEGRADED_INPUT),
        ({"last_error": 95.0}, State.DEGRADED_INFERENCE),
        ({"last_error": 70.0}, State.ONLINE),
        ({"last_restart": 50.0}, State.DEGRADED_INFERENCE),
        ({"ready": False}, State.DEGRADED_INFERENCE),
        ({"ready": False, "last_output": None, "first_output": None}, State.LOADING),
        ({"fatal": True}, State.ERROR),
        ({"ended": True}, State.OFFLINE),
        ({"fatal": True, "ended": True}, State.ERROR),
    ],
)
def test_each_state_has_its_reason(change, state):
    assert session_state(replace(STEADY, **change)) is state


moment = st.none() | st.floats(0, 200)


@given(
    st.builds(
        Counters,
        now=st.floats(100, 200),
        started=st.floats(0, 100),
        ready=st.booleans(),
        ready_since=moment,
        has_input=st.booleans(),
        last_input=moment,
        last_work=moment,
        work_since=moment,
        input_fps=st.floats(0, 240),
        first_output=moment,
        last_output=moment,
        output_fps=st.floats(0, 240),
        last_error=moment,
        last_restart=moment,
        fatal=st.booleans(),
        ended=st.booleans(),
    )
)
@example(Counters(now=100.0, started=0.0, ready=True, has_input=False))
def test_any_counters_have_a_state_and_a_fatal_error_always_shows(counters):
    state = session_state(counters)
    assert (state is State.ERROR) >= counters.fatal


@pytest.mark.parametrize(
    ("states", "ready", "failed", "health"),
    [
        ([], True, False, Health.IDLE),
        ([], False, False, Health.LOADING),
        ([], False, True, Health.ERROR),
        ([State.LOADING], False, False, Health.OK),
        ([State.ONLINE, State.ERROR], True, False, Health.OK),
        ([State.ERROR], True, False, Health.ERROR),
        ([State.OFFLINE], True, False, Health.IDLE),
    ],
)
def test_health_is_busy_with_any_stream_that_works(states, ready, failed, health):
    assert worker_health(states, engine_ready=ready, engine_failed=failed) is health

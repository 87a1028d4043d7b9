"""The state of a session as a pure function of its counters and the clock.

The words are ai-runner's. Unlike there, a stream that is merely slow is not degraded: what counts is whether
results keep up with the input, whatever its rate, and each limit has room enough not to flap.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

INPUT_SILENCE = 2.0
"""Seconds without input after which it is degraded."""
OUTPUT_SILENCE = 2.0
"""Seconds without a result, while input flows, after which inference is degraded."""
OUTPUT_DEAD = 10.0
"""Seconds without a result, while input flows and the processor is ready, after which it is an error."""
KEEPING_UP = 0.8
"""Share of the input's rate (at most `ENOUGH_FPS`) that results must reach."""
ENOUGH_FPS = 10.0
ERROR_MEMORY = 15.0
RESTART_MEMORY = 60.0
WARM_UP = 5.0
"""Seconds after the first result in which its rate does not count yet."""


class State(StrEnum):
    """LOADING: no result yet. OFFLINE: ended, or never begun. The others say what they mean."""

    LOADING = "LOADING"
    ONLINE = "ONLINE"
    DEGRADED_INPUT = "DEGRADED_INPUT"
    DEGRADED_INFERENCE = "DEGRADED_INFERENCE"
    OFFLINE = "OFFLINE"
    ERROR = "ERROR"


class Health(StrEnum):
    """What `GET /health` says: IDLE is ready and free, OK is busy (go-livepeer depends on this)."""

    LOADING = "LOADING"
    IDLE = "IDLE"
    OK = "OK"
    ERROR = "ERROR"


@dataclass(frozen=True, slots=True)
class Counters:
    """What a session knows of itself at the moment ``now``. Moments in seconds of one monotonic clock.

    Work is the input that results are made from: pictures, or sound where there are none; it has come
    without a break from ``work_since`` to ``last_work``.
    """

    now: float
    started: float
    ready: bool = False
    ready_since: float | None = None
    has_input: bool = True
    last_input: float | None = None
    last_work: float | None = None
    work_since: float | None = None
    input_fps: float = 0.0
    first_output: float | None = None
    last_output: float | None = None
    output_fps: float = 0.0
    last_error: float | None = None
    last_restart: float | None = None
    fatal: bool = False
    ended: bool = False


def session_state(c: Counters) -> State:
    """The state that ``c`` amounts to."""
    if c.fatal:
        return State.ERROR
    if c.ended:
        return State.OFFLINE
    if not c.ready and c.last_output is None:
        return State.LOADING
    input_age = _age(c.now, c.last_input)
    if c.has_input and (input_age is None or input_age > INPUT_SILENCE):
        waited = c.now - max(c.started, c.ready_since or c.started)
        return State.LOADING if input_age is None and waited <= INPUT_SILENCE else State.DEGRADED_INPUT
    if c.has_input and not _within(c.now, c.last_work or c.now, INPUT_SILENCE):
        return State.DEGRADED_INPUT
    return _inference_state(c)


def _inference_state(c: Counters) -> State:
    moments = (c.ready_since, c.last_output, c.work_since)
    waiting_since = max([c.started, *(moment for moment in moments if moment is not None)])
    silent = c.now - waiting_since
    if c.ready and silent > OUTPUT_DEAD:
        return State.ERROR
    if c.last_output is None and silent <= OUTPUT_SILENCE:
        return State.LOADING
    remembered = (
        _within(c.now, c.last_error, ERROR_MEMORY)
        or _within(c.now, c.last_restart, RESTART_MEMORY)
        or not c.ready
    )
    if silent > OUTPUT_SILENCE or remembered or _lags(c):
        return State.DEGRADED_INFERENCE
    return State.ONLINE


def _lags(c: Counters) -> bool:
    if c.first_output is None or c.now - c.first_output < WARM_UP:
        return False
    return c.output_fps < min(ENOUGH_FPS, KEEPING_UP * c.input_fps)


def worker_health(sessions: Iterable[State], *, engine_ready: bool, engine_failed: bool = False) -> Health:
    """The health of a worker from the states of its sessions and of its engine."""
    states = [state for state in sessions if state is not State.OFFLINE]
    if states:
        return Health.ERROR if all(state is State.ERROR for state in states) else Health.OK
    if engine_failed:
        return Health.ERROR
    return Health.IDLE if engine_ready else Health.LOADING


def _age(now: float, moment: float | None) -> float | None:
    return None if moment is None else now - moment


def _within(now: float, moment: float | None, seconds: float) -> bool:
    return moment is not None and now - moment <= seconds

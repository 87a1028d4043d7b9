"""How a session stands: the moments from which its state follows."""

from __future__ import annotations

import time

from stream.figures import Figures
from stream.states import Counters, State, session_state


class Standing:
    """Moments in the life of one session, in seconds of the monotonic clock."""

    def __init__(self) -> None:
        self.started_at = time.time()
        """Epoch seconds, as all that end in ``_at``."""
        self.started = time.monotonic()
        self.changed_at = self.started_at
        self.ready_since: float | None = None
        self.restarted: float | None = None
        self.fatal = False
        self.ended = False
        self._state = State.LOADING

    def state(self, counters: Counters) -> State:
        """What the counters amount to; notes when that has changed."""
        state = session_state(counters)
        if state is not self._state:
            self._state, self.changed_at = state, time.time()
        return state

    def counters(self, figures: Figures, *, has_input: bool) -> Counters:
        """A snapshot for `session_state`."""
        now = time.monotonic_ns()
        inputs = [m for m in (figures.input_rate.last, figures.audio_in_rate.last) if m is not None]
        sound_alone = figures.counts.frames_in == 0 and figures.counts.audio_in > 0
        work = figures.audio_in_rate if sound_alone else figures.input_rate
        outputs = figures.audio_out_rate if sound_alone else figures.answer_rate
        return Counters(
            now=now / 1e9,
            started=self.started,
            ready=self.ready_since is not None,
            ready_since=self.ready_since,
            has_input=has_input,
            last_input=max(inputs) / 1e9 if inputs else None,
            last_work=None if work.last is None else work.last / 1e9,
            work_since=None if work.since is None else work.since / 1e9,
            input_fps=figures.input_rate.rate(now),
            first_output=None if figures.first_answer is None else figures.first_answer / 1e9,
            last_output=None if outputs.last is None else outputs.last / 1e9,
            output_fps=outputs.rate(now),
            last_error=None if figures.last_error_at is None else figures.last_error_at / 1e9,
            last_restart=self.restarted,
            fatal=self.fatal,
            ended=self.ended,
        )

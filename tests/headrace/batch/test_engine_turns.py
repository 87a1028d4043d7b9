"""Who has the device next: by property, and with threads that wait for it."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from models_here import Heard

from headrace.batch.contract import Cancelled, Job
from headrace.batch.turns import DeviceTurns, TurnOrder
from stream.errors import AtCapacity


class Turns(RuleBasedStateMachine):
    """Any order of asking, pausing and leaving."""

    def __init__(self) -> None:
        super().__init__()
        self.order = TurnOrder()
        self.holds: list[int] = []
        self.slices: list[int] = []
        self.begun: list[int] = []
        self.paused: int | None = None
        self.passed = 0
        """Slices that had the device since the holder paused."""
        self.before = 0
        """Slices that waited when the holder paused."""

    @rule(hold=st.booleans())
    def ask(self, hold: bool) -> None:
        (self.holds if hold else self.slices).append(self.order.ask(hold=hold))
        self.note()

    @precondition(lambda self: self.order.using in self.holds)
    @rule()
    def pause(self) -> None:
        ticket = self.order.using
        assert ticket is not None
        self.before = self.order.waiting_slices
        if self.order.pause(ticket):
            assert self.before
            self.paused, self.passed = ticket, 0
        else:
            assert not self.before
        self.note()

    @precondition(lambda self: self.order.using is not None)
    @rule()
    def leave(self) -> None:
        ticket = self.order.using
        assert ticket is not None
        self.remove(ticket)
        if self.paused is not None and self.order.using is not None:
            self.passed += 1
        self.order.leave(ticket)
        self.note()

    @precondition(lambda self: self.holds or self.slices)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.holds + self.slices))
        self.remove(ticket)
        if ticket == self.paused:
            self.paused = None
        self.order.leave(ticket)
        self.note()

    def remove(self, ticket: int) -> None:
        for queue in (self.holds, self.slices, self.begun):
            if ticket in queue:
                queue.remove(ticket)

    def note(self) -> None:
        using = self.order.using
        if using is not None and using == self.paused:
            self.paused = None
        if using in self.holds and using not in self.begun:
            self.begun.append(using)

    @invariant()
    def one_job_at_a_time(self) -> None:
        assert len(self.begun) <= 1

    @invariant()
    def somebody_has_it_while_somebody_wants_it(self) -> None:
        assert (self.order.using is not None) == bool(self.holds or self.slices)

    @invariant()
    def holders_come_in_the_order_of_asking(self) -> None:
        if self.begun:
            assert self.begun[0] == min(self.holds)

    @invariant()
    def a_paused_holder_waits_for_those_before_it_alone(self) -> None:
        assert self.paused is None or self.passed < self.before + 1


TestTurns = Turns.TestCase


@given(st.integers(1, 20))
def test_slices_asked_for_again_and_again_let_a_job_in(again: int) -> None:
    order = TurnOrder()
    first = order.ask(hold=False)
    job = order.ask(hold=True)
    order.ask(hold=False)
    order.leave(first)
    assert order.using == job
    for _ in range(again):
        assert order.pause(job)
        taken = order.using
        assert taken not in (None, job)
        order.ask(hold=False)
        assert taken is not None
        order.leave(taken)
        assert order.using == job


def test_threads_have_the_device_one_at_a_time_and_slices_come_between_the_steps_of_a_job() -> None:
    turns = DeviceTurns()
    inside: list[str] = []
    seen: list[str] = []

    def use(name: str) -> None:
        inside.append(name)
        time.sleep(0.001)
        seen.append(name)
        assert inside == [name]
        inside.remove(name)

    job = Job("1", "p", "m", {})
    job.turns = turns
    begun, over = threading.Event(), threading.Event()

    def hold() -> None:
        with job.turn():
            begun.set()
            for step in range(200):
                use("job")
                job.progress(step, 200)
        over.set()

    def slices() -> None:
        begun.wait(10)
        while not over.is_set():
            with turns.slice():
                use("slice")

    threads = [threading.Thread(target=work) for work in (hold, slices, slices)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert seen.count("job") == 200
    first, last = seen.index("job"), len(seen) - 1 - seen[::-1].index("job")
    assert seen[first:last].count("slice") > 50


def test_whoever_is_cancelled_while_waiting_leaves_the_queue() -> None:
    turns = DeviceTurns()
    waiting, other = Job("1", "p", "m", {}), Job("2", "p", "m", {})
    waiting.turns = other.turns = turns
    failure: list[BaseException] = []

    def wait() -> None:
        try:
            with waiting.turn():
                pass
        except Cancelled as error:
            failure.append(error)

    with other.turn():
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.05)
        waiting.cancel("gone")
        thread.join(10)
        assert [str(error) for error in failure] == ["gone"]
    with pytest.raises(Cancelled), waiting.turn():
        pass
    with other.turn():
        pass


def test_pieces_that_nobody_wants_are_not_sent_and_the_job_may_be_run_again() -> None:
    heard = Heard()
    whole = Job("1", "p", "m", {}, listener=heard, streams=False)
    whole.emit({"text": "x"})
    whole.progress(1, 2)
    assert (heard.pieces, len(heard.told)) == ([], 1)
    assert whole.once() is whole
    streamed = Job("2", "p", "m", {}, listener=heard)
    streamed.emit({"text": "x"})
    assert heard.pieces == [{"text": "x"}]
    with pytest.raises(AtCapacity, match="in the middle"):
        streamed.once()

"""The queue in front of the batch engine, driven by arbitrary histories."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.batch.errors import QueueFull
from headrace.batch.queue import FIRST_GUESS, LONGEST_RETRY, BatchQueue, Ticket
from headrace.batch.service import group_of

LANES, CLIENTS, GROUPS = ["a", "b"], ["x", "y", "z"], [None, "g", "h"]


class Histories(RuleBasedStateMachine):
    """Arrivals, ends and departures in any order."""

    @initialize(limit=st.integers(1, 6), places=st.integers(1, 3), together=st.integers(1, 4))
    def begin(self, limit, places, together):
        self.queue = BatchQueue(limit, places, together)
        self.now = 0.0
        self.waiting: list[Ticket] = []
        self.running: list[Ticket] = []

    @rule(lane=st.sampled_from(LANES), client=st.sampled_from(CLIENTS), group=st.sampled_from(GROUPS))
    def arrive(self, lane, client, group):
        ticket = Ticket(lane, client, group)
        full = len(self.waiting) == self.queue.limit
        try:
            self.queue.put(ticket, self.now)
        except QueueFull as error:
            assert full
            assert 1 <= error.retry_after <= LONGEST_RETRY
        else:
            assert not full
            self.waiting.append(ticket)
        self.take()

    def take(self):
        for ticket in self.queue.take(self.now):
            assert ticket in self.waiting
            self.waiting.remove(ticket)
            self.running.append(ticket)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), seconds=st.floats(0, 100))
    def end(self, data, seconds):
        self.now += seconds
        ticket = data.draw(st.sampled_from(self.running))
        self.running.remove(ticket)
        self.queue.done(ticket, self.now)
        self.queue.done(ticket, self.now)
        self.take()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data):
        ticket = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(ticket)
        self.queue.done(ticket, self.now, measured=False)
        self.take()

    @invariant()
    def counts_agree(self):
        if not hasattr(self, "queue"):
            return
        assert (self.queue.waiting, self.queue.running) == (len(self.waiting), len(self.running))
        assert self.queue.waiting <= self.queue.limit
        single = sum(ticket.group is None for ticket in self.running)
        for group in GROUPS[1:]:
            count = sum(ticket.group == group for ticket in self.running)
            single += -(-count // self.queue.together)
        assert single <= self.queue.places
        if self.waiting:
            assert single == self.queue.places, "a place is free while somebody waits"
        assert self.queue.expected(self.now) >= 0


TestHistories = Histories.TestCase


def test_clients_take_turns_whatever_one_of_them_sends():
    queue = BatchQueue(20, 1)
    many, one = [Ticket("a", "many") for _ in range(10)], Ticket("a", "one")
    for ticket in many:
        queue.put(ticket, 0)
    assert queue.take(0) == [many[0]]
    queue.put(one, 0)
    order = []
    current = many[0]
    while queue.waiting:
        queue.done(current, 1)
        (current,) = queue.take(1)
        order.append(current)
    assert order.index(one) <= 1
    assert [ticket for ticket in order if ticket is not one] == many[1:]


def test_requests_of_a_group_share_a_place_up_to_their_number():
    queue = BatchQueue(20, 1, together=3)
    group = [Ticket("llm", f"c{n}", "m") for n in range(5)]
    for ticket in group:
        queue.put(ticket, 0)
    assert len(queue.take(0)) == 3
    queue.done(group[0], 1)
    assert len(queue.take(1)) == 1


@given(limit=st.integers(1, 5), arrivals=st.integers(5, 60))
def test_a_group_that_never_empties_does_not_keep_its_place_for_ever(limit, arrivals):
    queue = BatchQueue(limit, 1, together=2)
    group = [Ticket("llm", "g", "m")]
    queue.put(group[0], 0)
    queue.take(0)
    other = Ticket("a", "o")
    queue.put(other, 0)
    for _ in range(arrivals):
        joining = Ticket("llm", "g", "m")
        try:
            queue.put(joining, 0)
        except QueueFull:
            pass
        taken = queue.take(0)
        group += [ticket for ticket in taken if ticket is not other]
        if other in taken:
            break
        queue.done(group.pop(0), 0)
        taken = queue.take(0)
        if other in taken:
            break
        group += taken
        if not group:
            break
    else:
        assert arrivals <= 2 * limit + 4, "the other one starves"


@given(seconds=st.lists(st.floats(0, 1000), min_size=1, max_size=20))
def test_how_long_to_wait_follows_what_was_measured(seconds):
    queue = BatchQueue(4, 2)
    assert queue.durations.of("a") == FIRST_GUESS
    for took in seconds:
        ticket = Ticket("a")
        queue.put(ticket, 0)
        assert queue.take(0) == [ticket]
        queue.done(ticket, took)
    mean = queue.durations.of("a")
    assert min(seconds) - 1e-6 <= mean <= max(seconds) + 1e-6
    for _ in range(6):
        queue.put(Ticket("a"), 0)
        queue.take(0)
    assert queue.expected(0) == pytest.approx(3 * mean)
    assert queue.retry_after(0) == min(max(1, -(-3 * mean // 2)), LONGEST_RETRY)


def test_what_was_given_up_is_not_measured():
    queue = BatchQueue(1, 1)
    ticket = Ticket("a")
    queue.put(ticket, 0)
    queue.take(0)
    queue.done(ticket, 500, measured=False)
    assert queue.durations.of("a") == FIRST_GUESS


def test_pictures_share_a_place_where_only_text_seed_and_number_differ():
    one = {"prompt": "a", "seed": 1, "height": 64, "loras": {"x": 0.5}}
    other = {**one, "prompt": "b", "seed": 2, "num_images_per_prompt": 3, "safety_check": False}
    group = group_of("text-to-image", "m", one)
    assert group == group_of("text-to-image", "m", other) is not None
    for changed in ({"height": 72}, {"loras": {"x": 0.6}}, {"scheduler": "ddim"}):
        assert group_of("text-to-image", "m", {**one, **changed}) != group
    assert group_of("text-to-image", "n", one) != group
    assert group_of("upscale", "m", one) is None
    assert group_of("llm", "m", {"messages": []}) == group_of("llm", "m", {})

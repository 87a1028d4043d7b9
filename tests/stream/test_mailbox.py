import itertools
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from stream.mailbox import Mailbox, UnitQueue


@given(st.integers(1, 5), st.lists(st.integers()))
def test_a_mailbox_holds_the_newest(limit, items):
    box: Mailbox[int] = Mailbox(limit)
    pushed_out = [old for item in items for old in box.put(item)]
    held = []
    while (item := box.take()) is not None:
        held.append(item)
    assert pushed_out + held == items
    assert len(held) == min(limit, len(items))
    assert box.dropped == len(pushed_out)


def test_items_that_belong_together_count_as_one():
    box: Mailbox[int] = Mailbox(1)
    box.put(0)
    assert box.put_all([1, 2, 3]) == [0]
    assert [box.take(), box.take(), box.take(), box.take()] == [1, 2, 3, None]
    assert box.limit == 1


@dataclass
class U:
    kind: str
    key: bool
    data: bytes
    received: int
    number: int = 0


units = st.lists(
    st.tuples(st.sampled_from(["video", "video", "audio"]), st.integers(0, 9), st.integers(0, 300)),
    max_size=80,
)


@given(units, st.integers(1, 20), st.integers(0, 3))
def test_what_a_decoder_gets_is_always_decodable_and_bounded(spec, max_units, take_every):
    """Between two pictures that are taken nothing is missing, unless the later one is a key picture."""
    queue: UnitQueue[U] = UnitQueue(max_units=max_units, max_bytes=2000, max_age=50)
    taken: list[U] = []
    made = 0
    for moment, (kind, key, size) in enumerate(spec):
        unit = U(kind, key == 0, b"x" * size, moment, made)
        made += kind == "video"
        queue.put(unit)
        assert len(queue) <= max_units
        assert queue.size <= 2000
        if take_every and moment % take_every == 0 and (got := queue.take(moment)) is not None:
            taken.append(got)
    while (got := queue.take(len(spec))) is not None:
        taken.append(got)
    assert queue.size == 0
    assert len(taken) + queue.dropped == len(spec)
    pictures = [unit for unit in taken if unit.kind == "video"]
    for before, after in itertools.pairwise(pictures):
        assert after.number == before.number + 1 or after.key
    assert [u.received for u in taken] == sorted(u.received for u in taken)


def test_a_decoder_that_is_a_second_late_goes_on_at_the_newest_key_picture():
    queue: UnitQueue[U] = UnitQueue(max_age=1000)
    for i in range(10):
        queue.put(U("video", i % 4 == 0, b"", i * 200))
    queue.put(U("audio", True, b"", 0))
    assert queue.take(500).received == 0
    assert queue.take(2000).received == 8 * 200
    assert queue.dropped == 7


def test_sound_is_not_dropped_for_the_pictures_sake():
    queue: UnitQueue[U] = UnitQueue(max_units=5)
    queue.put(U("audio", True, b"a", 0))
    for i in range(10):
        queue.put(U("video", i == 0, b"v", i))
    assert queue.take(10).kind == "audio"

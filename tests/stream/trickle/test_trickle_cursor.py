"""Which segment is asked for next, against the ring of a server in memory."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stream.trickle.cursor import Ask, Cursor, Deliver, Ended, Failed, Verdict
from stream.trickle.protocol import CURRENT, NEXT
from stream.trickle.retry import Backoff
from stream.trickle.ring import Channel, Missing, Segment


def cursor_from(start: int = CURRENT, **options: float) -> Cursor:
    return Cursor(start, 0.0, **{"grace": 2.0, "patience": 30.0, **options})


class World:
    """A channel and a cursor that asks it; time passes only in pauses."""

    def __init__(self, start: int) -> None:
        self.now = 0.0
        self.channel = Channel("c", "", lambda: self.now, 1000)
        self.cursor = cursor_from(start)
        self.parked: Segment | None = None
        self.delivered: list[tuple[int, bytes]] = []
        self.stayed: set[bytes] = set()
        """What was kept in its place when the same number was written again."""

    def write(self, seq: int, data: bytes) -> None:
        self.stayed |= {
            each.read(0, 1000) for each in self.channel.segments if each.seq == seq and each.closed
        }
        upload = self.channel.upload(seq)
        if not upload.displaced:
            upload.write(data)
        upload.finish()

    def ask(self) -> Verdict | None:
        """One request and its answer; None when the server has nothing to say yet."""
        answer = None if self.parked else self.channel.read(self.cursor.wanted)
        if isinstance(answer, Missing):
            verdict: Verdict = self.cursor.missing(answer.latest, waited=0.0, now=self.now)
        else:
            segment = self.parked or answer.segment
            data = segment.read(0, 1000)
            if not data and not segment.closed:
                self.parked = segment
                return None
            self.parked = None
            if data:
                verdict = self.cursor.begun(segment.seq)
            else:
                verdict = self.cursor.empty(segment.seq, closed=False, waited=0.0)
            if isinstance(verdict, Deliver):
                self.delivered.append((segment.seq, data))
        if isinstance(verdict, Ask):
            self.now += verdict.pause
        return verdict

    def catch_up(self) -> None:
        """Ask until the server has nothing to say, or has refused for two seconds."""
        until = self.now + 2
        for _ in range(60):
            verdict = self.ask()
            if verdict is None or self.now > until:
                return
            assert isinstance(verdict, Ask | Deliver)
        raise AssertionError(f"still asking for {self.cursor.wanted}")


WRITES = st.one_of(
    st.tuples(st.just("write"), st.integers(-1, 20)),
    st.tuples(st.just("empty"), st.integers(-1, 20)),
    st.tuples(st.just("preconnect"), st.integers(-1, 20)),
    st.tuples(st.just("delete"), st.integers(0, 20)),
    st.tuples(st.just("read"), st.integers(1, 3)),
)


@given(st.integers(-2, 6), st.lists(WRITES, max_size=25))
@example(0, [("write", 6), ("read", 1), ("write", 0), ("read", 2), ("write", 6), ("read", 3)])
@settings(max_examples=200, deadline=None)
def test_a_reader_finds_its_way_whatever_the_writer_did(start: int, history: list[tuple[str, int]]) -> None:
    world = World(start)
    for serial, (what, number) in enumerate(history):
        if what == "write":
            world.write(number, b"%d" % serial)
        elif what == "empty":
            world.channel.upload(number).finish()
        elif what == "preconnect":
            world.channel.upload(number)
        elif what == "delete":
            if any(s.seq == number for s in world.channel.segments):
                world.channel.close_segment(number)
        else:
            for _ in range(number):
                world.ask()
        assert world.cursor.wanted >= CURRENT
    contents = [data for _, data in world.delivered]
    # A publisher that starts anew and leaves out the numbers that would displace an old segment cannot be
    # told from one that wrote them: the old one is then read once more, for a new one must not be lost.
    twice = {data for data in contents if contents.count(data) > 1}
    assert twice <= world.stayed
    # A publisher that now writes on steadily is read to its last segment, ring after ring.
    begin = world.channel.next_write
    for seq in range(begin, begin + 16):
        world.catch_up()
        world.write(seq, b"steady %d" % seq)
    world.catch_up()
    assert world.delivered[-1][1].startswith(b"steady")
    tail = [seq for seq, data in world.delivered if data.startswith(b"steady")]
    assert tail == sorted(set(tail))
    assert tail[-5:] == list(range(begin + 11, begin + 16))


@pytest.mark.parametrize("start", [-2, -1, 0])
def test_a_steady_reader_of_a_steady_writer_misses_nothing(start: int) -> None:
    world = World(start)
    for seq in range(30):
        world.catch_up()
        world.write(seq, b"%d" % seq)
    world.catch_up()
    assert [seq for seq, _ in world.delivered] == list(range(30))


@given(st.integers(0, 3), st.integers(1, 12))
@settings(deadline=None)
def test_segments_given_up_before_their_first_byte_hide_nothing_that_follows(
    before: int, given_up: int
) -> None:
    """The server does not count them: it goes on pointing at the first."""
    world = World(0)
    for seq in range(before):
        world.catch_up()
        world.write(seq, b"%d" % seq)
    for seq in range(before, before + given_up):
        world.catch_up()
        world.channel.upload(seq)
        world.channel.close_segment(seq)
    world.catch_up()
    world.now += 60
    world.catch_up()
    after = range(before + given_up, before + given_up + 3)
    for seq in after:
        world.write(seq, b"%d" % seq)
        world.catch_up()
    assert [seq for seq, _ in world.delivered] == [*range(before), *after]


def test_404_ends_a_channel_that_was_there_and_is_waited_for_otherwise() -> None:
    cursor = cursor_from(grace=2.0)
    assert isinstance(cursor.not_found(1.9), Ask)
    assert isinstance(cursor.not_found(2.0), Failed)
    cursor.channel_exists()
    assert isinstance(cursor.not_found(2.0), Ended)
    for see in (
        lambda c: c.begun(0),
        lambda c: c.empty(0, closed=False, waited=0),
        lambda c: c.missing(3, waited=0, now=0),
    ):
        cursor = cursor_from()
        see(cursor)
        assert isinstance(cursor.not_found(0.0), Ended)


def test_closed_is_the_end() -> None:
    assert isinstance(cursor_from().empty(3, closed=True, waited=5), Ended)


def test_two_refusals_in_a_row_cost_no_time_and_more_of_them_do() -> None:
    cursor = cursor_from(5)
    pauses = [cursor.missing(latest, waited=0.0, now=0.0).pause for latest in (7, 17, 18, 19, 20)]
    assert pauses[:2] == [0.0, 0.0]
    assert 0 < pauses[2] < pauses[3] < pauses[4] <= 0.5


def test_one_that_fell_behind_asks_for_the_newest_and_when_that_is_gone_for_the_next() -> None:
    cursor = cursor_from(5)
    for latest, wanted in ((17, 16), (17, 17), (19, 18), (0, 0)):
        cursor.missing(latest, waited=0.0, now=0.0)
        assert cursor.wanted == wanted


def test_refusals_are_borne_for_a_time_and_not_for_a_number() -> None:
    cursor = cursor_from(5, patience=30.0)
    for now in range(31):
        assert isinstance(cursor.missing(7, waited=0.0, now=float(now)), Ask)
    assert isinstance(cursor.missing(7, waited=0.0, now=31.0), Failed)
    # One that was held open before it was refused begins a new row.
    assert isinstance(cursor.missing(7, waited=20.0, now=60.0), Ask)


def test_one_is_not_sent_back_to_what_was_read_already() -> None:
    cursor = cursor_from(1)
    cursor.begun(1)
    assert isinstance(cursor.missing(1, waited=0.0, now=0.0), Ask)
    assert cursor.wanted == 2
    cursor.missing(0, waited=0.0, now=0.0)
    assert cursor.wanted == 0


@pytest.mark.parametrize("latest", [None, -2, -9])
def test_without_a_usable_number_the_next_segment_is_asked_for(latest: int | None) -> None:
    cursor = cursor_from(5)
    cursor.missing(latest, waited=0.0, now=0.0)
    assert cursor.wanted == NEXT


def test_what_was_skipped_is_counted_and_a_rewind_is_not() -> None:
    cursor = cursor_from()
    assert [cursor.begun(seq).skipped for seq in (4, 5, 9, 0, 1)] == [0, 0, 3, 0, 0]


def test_a_start_without_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match="-3"):
        cursor_from(-3)


class TestBackoff:
    def test_pauses_double_and_the_time_is_bounded(self) -> None:
        backoff = Backoff(3.0)
        now, pauses = 0.0, []
        while (pause := backoff.failed(now)) is not None:
            pauses.append(pause)
            now += pause
        assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8])
        assert now <= 3.0

    def test_what_held_long_enough_starts_over(self) -> None:
        backoff = Backoff(1.0)
        for now in (0.0, 10.0, 20.0, 30.0):
            assert backoff.failed(now, held=9.0) == pytest.approx(0.1)

    def test_a_first_failure_is_always_tried_again(self) -> None:
        backoff = Backoff(0.0)
        assert backoff.failed(0.0) is not None
        assert backoff.failed(0.1) is None
        backoff.succeeded()
        assert backoff.failed(5.0) is not None

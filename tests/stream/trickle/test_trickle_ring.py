"""The server's core against a plain model of it."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from stream.errors import AtCapacity, InvalidInput, TooLarge
from stream.trickle.protocol import CURRENT, NEXT
from stream.trickle.ring import Channel, Channels, Missing, Reading, UnknownChannel, Upload


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_channel(clock: Clock | None = None) -> Channel:
    return Channel("c", "video/mp2t", clock or Clock(), 1000)


class ChannelModel(RuleBasedStateMachine):
    """The model keeps each segment that ever held a slot as [number, bytes, closed], and five slots."""

    uploads = Bundle("uploads")

    @initialize()
    def begin(self) -> None:
        self.clock = Clock()
        self.channel = make_channel(self.clock)
        self.slots: dict[int, list] = {}
        self.next_write = 0
        self.written_at = self.clock.now

    def model_segment(self, seq: int) -> list | None:
        entry = self.slots.get(seq % 5)
        return entry if entry is not None and entry[0] == seq else None

    def model_occupy(self, seq: int) -> list:
        if seq % 5 in self.slots:
            self.slots[seq % 5][2] = True
        self.slots[seq % 5] = [seq, b"", False]
        return self.slots[seq % 5]

    @rule(target=uploads, seq=st.integers(-1, 12), reset=st.booleans())
    def post(self, seq: int, reset: bool) -> tuple[Upload, list, dict]:
        upload = self.channel.upload(seq, reset=reset)
        seq = self.next_write if seq == NEXT else seq
        entry = self.model_segment(seq) or self.model_occupy(seq)
        if reset:
            for other in self.slots.values():
                if other[0] < seq:
                    other[2] = True
        assert upload.segment.seq == seq
        assert upload.displaced == entry[2]
        return upload, entry, {"started": False}

    @rule(post=uploads, data=st.binary(min_size=1, max_size=3))
    def write(self, post: tuple[Upload, list, dict], data: bytes) -> None:
        upload, entry, state = post
        if entry[2] and not state["started"]:
            assert upload.displaced
            return
        upload.write(data)
        entry[1] += data
        if not state["started"]:
            state["started"] = True
            self.next_write, self.written_at = entry[0] + 1, self.clock.now

    @rule(post=uploads)
    def end(self, post: tuple[Upload, list, dict]) -> None:
        upload, entry, state = post
        upload.finish()
        entry[2] = True
        if not state["started"]:
            self.next_write, self.written_at = entry[0] + 1, self.clock.now

    @rule(seq=st.integers(0, 12))
    def delete_segment(self, seq: int) -> None:
        entry = self.model_segment(seq)
        if entry is None:
            with pytest.raises(InvalidInput, match="Nonexistent"):
                self.channel.close_segment(seq)
        else:
            self.channel.close_segment(seq)
            entry[2] = True

    @rule(seq=st.integers(-2, 14))
    def get(self, seq: int) -> None:
        answer = self.channel.read(seq)
        if seq == NEXT:
            seq = self.next_write
        elif seq == CURRENT:
            seq = max(self.next_write - 1, 0)
        entry = self.model_segment(seq)
        if entry is None and (seq == self.next_write or (self.next_write, seq) == (0, 1)):
            entry = self.model_occupy(seq)
        assert answer.latest == self.next_write
        if entry is None:
            assert isinstance(answer, Missing)
        else:
            assert isinstance(answer, Reading)
            segment = answer.segment
            assert [segment.seq, segment.read(0, 1000), segment.closed] == entry

    @rule()
    def time_passes(self) -> None:
        self.clock.now += 1

    @precondition(lambda self: hasattr(self, "channel"))
    @invariant()
    def same_ring(self) -> None:
        held = {s.seq: [s.seq, s.read(0, 1000), s.closed] for s in self.channel.segments}
        assert held == {entry[0]: entry for entry in self.slots.values()}
        assert (self.channel.next_write, self.channel.written_at) == (self.next_write, self.written_at)
        assert len(held) <= 5


TestChannelModel = ChannelModel.TestCase
TestChannelModel.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("seq", [-2, -3, -5, -100])
def test_numbers_that_cannot_be_written_are_refused(seq: int) -> None:
    with pytest.raises(InvalidInput):
        make_channel().upload(seq)


@pytest.mark.parametrize("seq", [-3, -5, -100])
def test_numbers_that_cannot_be_read_are_refused(seq: int) -> None:
    with pytest.raises(InvalidInput):
        make_channel().read(seq)


@pytest.mark.parametrize("seq", [-1, -2, -5])
def test_only_real_numbers_can_be_deleted(seq: int) -> None:
    with pytest.raises(InvalidInput):
        make_channel().close_segment(seq)


def test_a_refused_post_leaves_the_ring_alone() -> None:
    channel = make_channel()
    with pytest.raises(InvalidInput):
        channel.upload(-2, reset=True)
    assert channel.segments == ()


def test_closing_a_channel_ends_segments_and_preconnects() -> None:
    channels = Channels(Clock(), autocreate=True)
    channel = channels.create("c", "")
    with_data, preconnect = channel.upload(0), channel.upload(1)
    with_data.write(b"x")
    channels.delete("c")
    assert with_data.segment.closed
    assert not with_data.displaced
    assert preconnect.displaced
    assert preconnect.channel_closed
    with pytest.raises(UnknownChannel):
        channels.get("c")
    assert channels.create("c", "").next_write == 0


def test_a_post_that_lost_the_race_with_the_end_of_its_channel_is_displaced() -> None:
    channel = make_channel()
    channel.close()
    assert channel.upload(0).displaced
    assert isinstance(channel.read(0), Missing)


def test_watchers_hear_of_bytes_and_of_the_end_until_they_leave() -> None:
    segment = make_channel().upload(0).segment
    heard: list[int] = []
    leave = segment.watch(lambda: heard.append(segment.size))
    segment.append(b"ab")
    segment.close()
    segment.close()
    assert heard == [2, 2]
    leave()
    segment.append(b"c")
    assert heard == [2, 2]


def test_a_full_segment_takes_nothing_more() -> None:
    upload = make_channel().upload(0)
    upload.write(b"x" * 999)
    with pytest.raises(TooLarge, match="1000"):
        upload.write(b"xx")
    assert upload.segment.size == 999


class TestSweep:
    def test_closes_what_nobody_begins_a_segment_on(self) -> None:
        clock = Clock()
        channels = Channels(clock, idle_timeout=300)
        old, busy = channels.create("old", ""), channels.create("busy", "")
        upload = old.upload(0)
        upload.write(b"x")
        clock.now += 299
        busy.upload(0).write(b"x")
        upload.write(b"more bytes of the same segment do not count")
        clock.now += 2
        assert channels.sweep() == ["old"]
        assert channels.names == ("busy",)
        assert upload.segment.closed

    def test_spares_internal_channels(self) -> None:
        clock = Clock()
        channels = Channels(clock, changefeed=True, idle_timeout=1)
        clock.now += 10
        assert channels.sweep() == []
        assert channels.names == ("_changes",)


class TestChangefeed:
    def feed(self, channels: Channels) -> list[bytes]:
        return [s.read(0, 1000) for s in channels.get("_changes").segments if s.size]

    def test_tells_of_channels_that_come_and_go(self) -> None:
        clock = Clock()
        channels = Channels(clock, changefeed=True, autocreate=True, idle_timeout=5)
        channels.publish_to("a", "")
        channels.publish_to("a", "")
        channels.delete("a")
        channels.create("b", "")
        clock.now += 6
        channels.sweep()
        assert self.feed(channels) == [
            b'{"added":["_changes"]}',
            b'{"added":["a"]}',
            b'{"removed":["a"]}',
            b'{"added":["b"]}',
            b'{"removed":["b"]}',
        ]

    def test_survives_its_own_end(self) -> None:
        channels = Channels(Clock(), changefeed=True)
        channels.delete("_changes")
        channels.create("a", "")
        assert channels.names == ("a",)


class TestCreation:
    def test_needs_leave(self) -> None:
        channels = Channels(Clock(), autocreate=False)
        with pytest.raises(UnknownChannel):
            channels.publish_to("a", "")
        channels.create("a", "video/mp2t")
        assert channels.publish_to("a", "other").mime_type == "video/mp2t"

    def test_is_bounded(self) -> None:
        channels = Channels(Clock(), channel_limit=2)
        channels.create("a", "")
        channels.create("b", "")
        channels.create("a", "")
        with pytest.raises(AtCapacity, match="2"):
            channels.create("c", "")

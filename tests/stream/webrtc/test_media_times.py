"""Two tracks with clocks of their own on one timeline."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from stream.webrtc.times import Timeline, unwrapped

SECOND = 1_000_000_000
MS = SECOND // 1000
NTP = 3_900_000_000 << 32


def ntp(seconds: float) -> int:
    return NTP + int(seconds * (1 << 32))


class Sender:
    """A publisher whose sound leaves ``early`` seconds before the picture of the same moment."""

    def __init__(self, video: int, audio: int, early: float = 0.0) -> None:
        self.video, self.audio, self.early = video, audio, early
        self.timeline = Timeline()

    def see(self, at: float, late: float = 0.0) -> int:
        """The picture of moment ``at`` arrives."""
        timestamp = (self.video + round(at * 90_000)) & 0xFFFF_FFFF
        return self.timeline.place("video", timestamp, int((at + self.early + late) * SECOND))

    def hear(self, at: float) -> int:
        timestamp = (self.audio + round(at * 48_000)) & 0xFFFF_FFFF
        return self.timeline.place("audio", timestamp, int(at * SECOND))

    def report(self, at: float) -> None:
        self.timeline.report("video", ntp(at), (self.video + round(at * 90_000)) & 0xFFFF_FFFF)
        self.timeline.report("audio", ntp(at), (self.audio + round(at * 48_000)) & 0xFFFF_FFFF)


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(-(2**30), 2**30), max_size=40))
def test_timestamps_run_on_where_they_wrap(start: int, steps: list[int]) -> None:
    value, last = start, start
    for step in steps:
        value += step
        last = unwrapped(value & 0xFFFF_FFFF, last)
        assert last == value


def test_the_pictures_times_are_its_own() -> None:
    sender = Sender(video=2**32 - 9000, audio=77)
    times = [sender.see(index / 30) for index in range(30)]
    assert [b - a for a, b in itertools.pairwise(times)] == [3000] * 29
    assert sender.timeline.rtp(times[10]) == (2**32 - 9000 + 30_000) & 0xFFFF_FFFF


@given(st.booleans(), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_without_reports_what_arrives_together_belongs_together(
    sound_first: bool, video: int, audio: int
) -> None:
    sender = Sender(video, audio)
    order = (sender.hear, sender.see) if sound_first else (sender.see, sender.hear)
    first, second = [place(5.0) for place in order]
    assert abs(first - second) <= 2
    assert abs(sender.see(7.0) - sender.hear(7.0)) <= 2


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.floats(-0.8, 0.8), st.booleans())
def test_reports_put_sound_where_it_belongs_with_one_step(
    video: int, audio: int, early: float, sound_first: bool
) -> None:
    sender = Sender(video, audio, max(early, 0.0))
    for at in range(5, 50):
        places = (sender.hear, sender.see) if sound_first else (sender.see, sender.hear)
        for place in places:
            place(at / 50)
    before = sender.see(1.0)
    sender.report(1.0)
    assert sender.see(1.1) - before == 9000, "the picture never steps"
    assert abs(sender.see(1.2) - sender.hear(1.2)) <= 200
    for second in range(2, 6):
        sender.report(float(second))
    assert abs(sender.see(6.0) - sender.hear(6.0)) <= 200
    assert sender.timeline.anchored <= 1


def test_a_drift_is_followed_without_steps() -> None:
    sender = Sender(1000, 2000)
    sender.see(0.0), sender.hear(0.0)
    sender.report(0.0)
    last = None
    # The sound's clock is 100 ppm fast: 60 ms in ten minutes.
    for tick in range(600 * 10):
        at = tick / 10
        heard = sender.timeline.place("audio", 2000 + round(at * 48_000 * 1.0001), int(at * SECOND))
        seen = sender.see(at)
        if last is not None:
            assert abs(heard - last - 9000) <= 9000 // 200 + 2
        last = heard
        if tick % 50 == 0:
            sender.timeline.report("video", ntp(at), 1000 + round(at * 90_000))
            sender.timeline.report("audio", ntp(at), 2000 + round(at * 48_000 * 1.0001))
    assert abs(heard - seen) < 4 * 90
    assert sender.timeline.anchored == 0


def test_reports_of_tracks_that_cannot_belong_together_are_not_believed() -> None:
    sender = Sender(1000, 2000)
    sender.see(1.0), sender.hear(1.0)
    sender.timeline.report("video", ntp(0), 1000)
    sender.timeline.report("audio", ntp(400), 2000)
    assert sender.timeline.refused == 1
    assert abs(sender.see(2.0) - sender.hear(2.0)) <= 2


def test_another_source_goes_on_beside_the_other_track() -> None:
    sender = Sender(1000, 2000)
    sender.see(1.0), sender.hear(1.0)
    sender.timeline.forget("video")
    sender.video = 4_000_000_000
    assert abs(sender.see(2.0) - sender.hear(2.0)) <= 2


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["video", "audio"]),
            st.booleans(),
            st.integers(0, 2**32 - 1),
            st.integers(0, 2**64 - 1),
        ),
        max_size=40,
    )
)
def test_nonsense_raises_nothing(steps: list[tuple[str, bool, int, int]]) -> None:
    timeline = Timeline()
    for index, (kind, is_report, timestamp, value) in enumerate(steps):
        if is_report:
            timeline.report(kind, value, timestamp)  # type: ignore[arg-type]
        else:
            timeline.place(kind, timestamp, index * MS)  # type: ignore[arg-type]

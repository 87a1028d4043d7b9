from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from stream.clock import TICKS
from stream.file_timeline import FORWARD, FileTimeline

VIDEO, AUDIO = 0, 1
PICTURE, SOUND = 3000, 1920


def _part(start: int, seconds: float, skew: int = 0) -> list[tuple[int, int, int]]:
    """Track, timestamp and duration of interleaved packets; the sound begins ``skew`` before the picture."""
    packets = [(VIDEO, start + n * PICTURE, PICTURE) for n in range(int(seconds * 30))]
    packets += [(AUDIO, start - skew + n * SOUND, SOUND) for n in range(int(seconds * 46))]
    return sorted(packets, key=lambda packet: packet[1])


def _placed(timeline: FileTimeline, packets: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    return [(track, at + timeline.shift(track, at, at, length)) for track, at, length in packets]


@given(st.integers(-(1 << 33), 1 << 33), st.floats(0, 7200), st.booleans())
def test_a_files_own_gaps_stay_and_it_begins_at_0(start, gap, leaps):
    packets = _part(start, 1) + _part(start + int((1 + gap) * TICKS), 1)
    placed = _placed(FileTimeline(start, leaps=leaps), packets)
    if not leaps or gap < 9:
        assert placed == [(track, at - start) for track, at, _ in packets]


@given(
    st.integers(0, 1 << 33),
    st.integers(-(1 << 33), 1 << 33).filter(lambda by: by < -TICKS or by > 2 * FORWARD),
    st.integers(0, 4000),
)
def test_parts_follow_one_another_and_tracks_keep_their_distance(start, by, skew):
    first, second = _part(start, 1, skew), _part(start + by, 1, skew)
    timeline = FileTimeline(start - skew, leaps=True)
    before, after = _placed(timeline, first), _placed(timeline, second)
    for track in (VIDEO, AUDIO):
        times = [at for kind, at in before + after if kind == track]
        assert all(0 < b - a < TICKS // 5 for a, b in pairwise(times))
    shifts = {placed - at for (_, placed), (_, at, _) in zip(after, second, strict=True)}
    assert len(shifts) == 1


def test_packets_of_the_part_before_that_come_late_keep_their_place():
    timeline = FileTimeline(0, leaps=True)
    _placed(timeline, _part(0, 1))
    assert timeline.shift(VIDEO, 0, 0, PICTURE) > 0
    assert timeline.shift(AUDIO, TICKS, TICKS, SOUND) == 0
    assert timeline.shift(AUDIO, 0, 0, SOUND) == timeline.shift(VIDEO, PICTURE, PICTURE, PICTURE) > 0


def test_without_any_times_nothing_is_shifted():
    assert FileTimeline(0, leaps=False).shift(VIDEO, None, None, 0) == 0

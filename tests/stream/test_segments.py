from hypothesis import given
from hypothesis import strategies as st

from stream.clock import TICKS
from stream.segments import Cut, Segmenter
from stream.units import EncodedUnit


def video(seconds: float, *, key: bool = False) -> EncodedUnit:
    return EncodedUnit("video", b"", round(seconds * TICKS), 3000, key=key)


def audio(seconds: float) -> EncodedUnit:
    return EncodedUnit("audio", b"", round(seconds * TICKS), 1800)


def cuts(segmenter: Segmenter, units: list[EncodedUnit]) -> list[float]:
    return [unit.pts / TICKS for unit in units if any(isinstance(s, Cut) for s in segmenter.put(unit))]


def test_segments_are_cut_every_two_seconds_and_not_at_every_key_picture():
    units = [video(i / 30, key=i % 15 == 0) for i in range(300)]
    assert cuts(Segmenter(), units) == [0, 2, 4, 6, 8]


def test_a_key_picture_on_demand_does_not_cut():
    units = [video(i / 30, key=i in (0, 31, 60, 91, 120)) for i in range(150)]
    assert cuts(Segmenter(), units) == [0, 2, 4]


def test_pictures_before_the_first_key_picture_are_left_out():
    segmenter = Segmenter()
    assert segmenter.put(video(0)) == []
    assert segmenter.wants_key
    assert segmenter.put(video(0.1, key=True))[0] == Cut(video=True, audio=False)
    assert segmenter.dropped == 1


def test_sound_before_the_first_picture_is_held_and_declared():
    segmenter = Segmenter()
    early = [audio(i / 50) for i in range(20)]
    assert [segmenter.put(unit) for unit in early] == [[]] * 20
    assert segmenter.put(video(0.4, key=True)) == [Cut(True, True), video(0.4, key=True), *early]


def test_sound_that_joins_late_asks_for_a_key_picture_and_comes_with_the_next_cut():
    segmenter = Segmenter()
    segmenter.put(video(0, key=True))
    assert not segmenter.wants_key
    assert segmenter.put(audio(0.5)) == []
    assert segmenter.wants_key
    steps = segmenter.put(video(0.6, key=True))
    assert steps == [Cut(True, True), video(0.6, key=True), audio(0.5)]
    assert segmenter.put(audio(0.7)) == [audio(0.7)]


def test_sound_that_is_expected_is_declared_before_it_comes():
    segmenter = Segmenter()
    segmenter.expects_audio = True
    assert segmenter.put(video(0, key=True))[0] == Cut(video=True, audio=True)
    assert segmenter.put(audio(0)) == [audio(0)]


def test_a_stream_of_sound_alone_is_cut_by_time():
    segmenter = Segmenter()
    segmenter.expects_video = False
    assert cuts(segmenter, [audio(i / 50) for i in range(250)]) == [0, 2, 4]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=400))
def test_every_segment_begins_with_a_key_picture_and_declares_what_it_carries(plan):
    segmenter = Segmenter()
    declared, fresh = None, False
    moment = 0.0
    for is_video, key in plan:
        moment += 1 / 60
        for step in segmenter.put(video(moment, key=key) if is_video else audio(moment)):
            if isinstance(step, Cut):
                declared, fresh = step, True
                continue
            assert declared is not None
            if fresh:
                assert step.kind == "video"
                assert step.key
                fresh = False
            assert declared.audio or step.kind == "video"

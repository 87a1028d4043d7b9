"""Where a recording begins, goes on and is cut; by property, over streams with anything missing."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from recorded_media import START, STEP, pictures, sound, together

from stream.recording.bitstream import audio_format, bare_sound, picture_format
from stream.recording.sps import sequence_parameters
from stream.recording.takes import Begin, MediaUnit, Takes, Write, unit_out

SMALL = [unit_out(unit) for unit in pictures(45)]
LARGE = [unit_out(unit) for unit in pictures(45, size=(96, 64), start=START + 45 * STEP)]
TONE = [unit_out(unit) for unit in sound(90)]


def steps_of(takes, units):
    return [step for unit in units for step in takes.put(unit)]


def begins(steps):
    return [step for step in steps if isinstance(step, Begin)]


def test_nothing_is_written_before_a_key_picture_and_it_begins_at_nought():
    takes = Takes(expects_video=True)
    assert steps_of(takes, SMALL[3:20]) == []
    assert takes.wants_key
    steps = steps_of(takes, SMALL[20:])
    assert isinstance(steps[0], Begin)
    assert steps[0].video.size == (64, 48)
    assert (steps[1].pts, steps[1].key) == (0, True)
    assert not takes.wants_key


def test_sound_keeps_its_distance_from_the_pictures():
    takes = Takes(expects_video=True, expects_audio=True)
    steps = steps_of(takes, together(SMALL, TONE[:40]))
    written = {
        kind: [s for s in steps if isinstance(s, Write) and s.kind == kind] for kind in ("video", "audio")
    }
    source = [unit for unit in TONE[:40] if unit.pts >= START]
    assert [packet.pts for packet in written["audio"]] == [unit.pts - START for unit in source]
    assert len(written["video"]) == len(SMALL)


def test_a_file_waits_for_expected_sound_but_not_for_ever():
    takes = Takes(expects_video=True, expects_audio=True)
    assert steps_of(takes, SMALL[:30]) == []
    late = [
        replace(unit, pts=unit.pts + 2 * 90_000, dts=unit.dts + 2 * 90_000, key=False) for unit in SMALL[30:]
    ]
    steps = steps_of(takes, late)
    assert begins(steps)[0].audio is None
    assert len([s for s in steps if isinstance(s, Write)]) == 45


def test_another_size_begins_another_file():
    steps = steps_of(Takes(expects_video=True), SMALL + LARGE)
    assert [begin.video.size for begin in begins(steps)] == [(64, 48), (96, 64)]
    second = steps[steps.index(begins(steps)[1]) + 1]
    assert (second.pts, second.key) == (0, True)


def test_other_parameter_sets_of_the_same_size_go_on_in_the_file():
    """Encoders write others when they follow the frame rate."""
    again = [unit_out(unit) for unit in pictures(20, start=START + 45 * STEP)]
    nal = picture_format("h264", again[0].data)
    assert nal == picture_format("h264", SMALL[0].data)
    assert len(begins(steps_of(Takes(expects_video=True), SMALL + again))) == 1


def test_sound_that_comes_later_begins_another_file_at_the_next_key_picture():
    takes = Takes(expects_video=True)
    steps = steps_of(takes, SMALL[:10])
    assert begins(steps)[0].audio is None
    steps = takes.put(replace(TONE[5], pts=SMALL[10].pts, dts=SMALL[10].dts))
    assert steps == []
    assert takes.wants_key
    steps = steps_of(takes, SMALL[10:])
    assert begins(steps)[0].audio.codec == "opus"
    assert not takes.wants_key


def test_sound_alone_is_recorded_where_no_pictures_come():
    steps = steps_of(Takes(expects_video=False, expects_audio=True), TONE)
    assert begins(steps) == [Begin(None, audio_format("opus", b"\x00"), b"")]
    assert len(steps) == len(TONE) + 1


def test_after_a_loss_pictures_wait_for_a_key_picture():
    takes = Takes(expects_video=True)
    steps_of(takes, SMALL[:5])
    lossy = [replace(SMALL[7], discontinuity=True), *SMALL[8:]]
    steps = steps_of(takes, lossy)
    assert steps[0].key
    assert steps[0].pts == SMALL[30].pts - START
    assert not begins(steps)


def test_another_publisher_begins_another_file_whatever_its_clock_says():
    other = [replace(unit, epoch=1, pts=unit.pts + 9_000_000, dts=unit.dts + 9_000_000) for unit in SMALL]
    assert len(begins(steps_of(Takes(expects_video=True), SMALL + other))) == 2


def test_a_jump_of_the_clock_begins_another_file_and_slow_drift_does_not():
    steady = [replace(unit, received=1 + index * 33_333_333) for index, unit in enumerate(SMALL)]
    drifting = [replace(unit, received=1 + index * 40_000_000) for index, unit in enumerate(SMALL)]
    jumped = [replace(unit, pts=unit.pts + 900_000, dts=unit.dts + 900_000) for unit in steady[30:]]
    assert len(begins(steps_of(Takes(expects_video=True), steady))) == 1
    assert len(begins(steps_of(Takes(expects_video=True), drifting))) == 1
    assert len(begins(steps_of(Takes(expects_video=True), steady[:30] + jumped))) == 2


@given(st.lists(st.sampled_from(together(SMALL + LARGE, TONE)), max_size=80), st.booleans(), st.booleans())
def test_whatever_comes_each_file_begins_with_a_key_picture_and_times_only_grow(
    units, sound_expected, flagged
):
    takes = Takes(expects_video=True, expects_audio=sound_expected)
    last: dict[str, int] = {}
    declared: set[str] = set()
    fresh = False
    for unit in units:
        for step in takes.put(replace(unit, discontinuity=flagged and unit.pts % 7 == 0)):
            if isinstance(step, Begin):
                last, fresh = {}, True
                declared = {"video"} | ({"audio"} if step.audio is not None else set())
                continue
            assert step.kind in declared
            if fresh and step.kind == "video":
                assert step.key
                fresh = False
            assert step.dts > last.get(step.kind, -1)
            assert step.pts >= step.dts >= 0
            last[step.kind] = step.dts
    takes.end()


@given(st.binary(max_size=60), st.sampled_from(["h264", "hevc", "vp8"]))
def test_garbage_is_no_format_and_nothing_breaks(data, codec):
    takes = Takes(expects_video=True)
    for prefix in (b"", b"\x00\x00\x01\x67", b"\x00\x00\x01\x67\x64\x00\x1f", b"\x10\x00\x00\x9d\x01\x2a"):
        takes.put(MediaUnit("video", codec, prefix + data, 0, 0))
        audio_format("aac", prefix + data)


def test_an_adts_header_tells_the_format_and_is_left_out():
    frame = bytes((0xFF, 0xF1, 0x4C, 0x80, 0x01, 0x7F, 0xFC)) + b"body"
    found = audio_format("aac", frame)
    assert (found.rate, found.channels) == (48_000, 2)
    assert bare_sound("aac", frame) == b"body"


def test_the_size_is_that_which_is_shown():
    for size in ((64, 48), (130, 98), (1920, 1080)):
        nal = next(n for n in pictures(1, size=size)[0].data.split(b"\x00\x00\x01") if n[0] & 0x1F == 7)
        found = sequence_parameters(nal)
        assert (found.width, found.height) == size


def test_vp8_tells_its_size_in_its_key_frames():
    frame = b"\x10\x02\x00\x9d\x01\x2a" + (640).to_bytes(2, "little") + (360).to_bytes(2, "little")
    assert picture_format("vp8", frame).size == (640, 360)
    assert picture_format("vp8", b"\x11" + frame[1:]) is None

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.codecs.h264_levels import LEVELS, largest_size, level_for
from stream.errors import InvalidInput
from stream.frames import Picture, Timeline
from stream.renditions import BitrateRange, KeyGate, OpenRendition, RenditionHandle, fitted
from stream.units import EncodedUnit, Rendition, VideoParameters

MS = 1_000_000
RANGE = BitrateRange(start=2_000_000, lowest=250_000, highest=6_000_000)


class Counting:
    """An encoder that only notes what it is asked for."""

    name = "counting"
    fallback_reason = None

    def __init__(self, rendition, picture, bitrate, bitrates):
        self.parameters = VideoParameters(picture.width, picture.height)
        self.rates, self.keys, self.calls = [bitrate], 0, 0

    def encode(self, picture, pts, *, key=False, timeline=None, repeat=False, overlay=False, source=None):
        first = not self.calls
        self.calls += 1
        self.keys += key
        return [EncodedUnit("video", b"", pts, 3000, key or first, source=source)]

    def flush(self):
        return []

    def set_bitrate(self, bits_per_second):
        self.rates.append(bits_per_second)


class Shown:
    timeline, repeat, overlay, source = Timeline(), False, False, 7

    def __init__(self, pts):
        self.pts = pts


def grey(width=64, height=48):
    import numpy as np

    return Picture.from_rgb(np.full((height, width, 3), 128, np.uint8))


def opened():
    released: list[OpenRendition] = []
    shared = OpenRendition(Rendition(purpose="viewers"), RANGE, Counting)
    return shared, lambda: RenditionHandle(shared, released.append), released


bits = st.integers(0, 20_000_000)


@given(st.lists(st.tuples(st.integers(0, 4), st.one_of(st.none(), bits)), max_size=40))
def test_the_slowest_of_those_who_are_there_decides_within_the_limits(plan):
    shared, hold, _ = opened()
    handles, wishes = {}, {}
    for user, wish in plan:
        if wish is None and user in handles:
            handles.pop(user).close()
            wishes.pop(user, None)
        elif wish is not None:
            handles.setdefault(user, hold()).set_bitrate(wish)
            wishes[user] = wish
        if wishes:
            assert shared.bitrate == min(max(min(wishes.values()), RANGE.lowest), RANGE.highest)
        assert RANGE.lowest <= shared.bitrate <= RANGE.highest


def test_a_bitrate_reaches_the_encoder_once_and_does_not_rebuild_it():
    shared, hold, _ = opened()
    handle = hold()
    assert handle.bitrate == 2_000_000
    assert handle.parameters is None
    shared.encode(grey(), Shown(0))
    encoder = shared.encoder
    handle.set_bitrate(700_000)
    for pts in (3000, 6000, 9000):
        shared.encode(grey(), Shown(pts))
    assert shared.encoder is encoder
    assert encoder.rates == [2_000_000, 700_000]
    assert handle.parameters == VideoParameters(64, 48)


def test_another_size_opens_another_encoder():
    shared, _, _ = opened()
    shared.encode(grey(), Shown(0))
    before = shared.encoder
    shared.encode(grey(128, 96), Shown(3000))
    assert shared.encoder is not before
    assert shared.parameters == VideoParameters(128, 96)


def test_a_handle_that_is_closed_twice_lets_go_once():
    shared, hold, released = opened()
    handle = hold()
    handle.close()
    handle.close()
    handle.set_bitrate(300_000)
    assert released == [shared]
    assert shared.bitrate == 2_000_000


@given(st.lists(st.tuples(st.integers(1, 400), st.booleans()), max_size=200))
def test_key_pictures_that_are_asked_for_come_soon_but_at_most_every_half_second(plan):
    gate = KeyGate()
    now, asked_at, made = 0, None, []
    for passed, asks in plan:
        now += passed * MS
        if asks:
            gate.ask()
            asked_at = now if asked_at is None else asked_at
        if gate.is_due(now):
            assert asked_at is not None
            assert not made or now - made[-1] >= 500 * MS
            gate.made(now)
            made.append(now)
            asked_at = None
        elif asked_at is not None:
            assert now - made[-1] < 500 * MS
    assert len(made) <= now // (500 * MS) + 1


def test_a_key_picture_made_for_another_reason_answers_those_who_asked_before():
    gate = KeyGate()
    gate.ask()
    gate.made(0)
    assert not gate.is_due(10_000 * MS)


sides = st.integers(16, 4096)


@given(sides, sides, sides, sides)
def test_pictures_are_fitted_into_a_limit_either_way_round(width, height, wide, narrow):
    limit = (max(wide, narrow), min(wide, narrow))
    found = fitted(width, height, limit)
    assert found == fitted(width, height, limit[::-1])
    assert fitted(height, width, limit) == found[::-1] or width == height
    if max(width, height) <= limit[0] and min(width, height) <= limit[1]:
        assert found == (width, height)
    else:
        assert max(found) <= limit[0]
        assert min(found) <= max(2, limit[1])
        assert found[0] % 2 == found[1] % 2 == 0
        assert abs(found[0] / width - found[1] / height) <= 2 / min(width, height) + 1e-9


@pytest.mark.parametrize("numbers", [(1, 2, 3), (300_000, 400_000, 500_000), (600_000, 300_000, 500_000)])
def test_limits_that_contradict_one_another_are_refused(numbers):
    with pytest.raises(InvalidInput):
        BitrateRange(*numbers)


@given(st.integers(16, 4096), st.integers(16, 4096), st.floats(1, 60))
def test_a_level_allows_what_it_is_chosen_for_and_the_one_below_does_not(width, height, framerate):
    level = level_for(width, height, framerate, 1_000_000)
    if level is None:
        return
    blocks = -(-width // 16) * -(-height // 16)
    assert blocks <= level.frame
    assert blocks * framerate <= level.rate
    index = LEVELS.index(level)
    if index:
        below = LEVELS[index - 1]
        too_long = max(-(-width // 16), -(-height // 16)) ** 2 > 8 * below.frame
        assert blocks > below.frame or blocks * framerate > below.rate or below.bitrate < 1000 or too_long


def test_known_levels():
    assert level_for(640, 480, 30, 2_000_000).name == "3"
    assert level_for(1280, 720, 30, 3_000_000).name == "3.1"
    assert level_for(1920, 1080, 30, 6_000_000).name == "4"
    assert level_for(1920, 1080, 60, 6_000_000).name == "4.2"
    assert level_for(20_000, 20_000, 30, 6_000_000) is None
    assert largest_size(31) == (1280, 720)
    assert largest_size(40) == (1920, 1088)
    assert largest_size(9) == largest_size(10)

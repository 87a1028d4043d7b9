"""When the notice comes and goes."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoc.frame_overlay import OverlayConfig, OverlayController, OverlayMode, build_frame_overlay
from byoc.frames import VideoFrame
from stream.frames import Picture


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def controller(**settings):
    clock = Clock()
    return OverlayController(OverlayConfig(**settings), clock), clock


def frame():
    return VideoFrame.from_picture(
        Picture.from_rgb(np.full((64, 96, 3), 200, np.uint8)), 9, Fraction(1, 90_000)
    )


def test_the_original_passes_until_the_timeout_then_the_notice_until_enough_results():
    overlay, clock = controller(auto_timeout_seconds=1.5, frame_count_to_disable=3)
    assert overlay.choose(True) == "result"
    clock.now += 1.4
    assert overlay.choose(False) == "original"
    clock.now += 0.2
    assert overlay.choose(False) == "notice"
    assert [overlay.choose(True) for _ in range(4)] == ["notice", "notice", "result", "result"]


def test_by_hand_it_stays_whatever_comes_and_the_processor_is_left_alone():
    overlay, clock = controller()
    overlay.set_manual_loading(True)
    assert overlay.should_skip_processing()
    clock.now += 10
    assert [overlay.choose(True) for _ in range(5)] == ["notice"] * 5
    overlay.set_manual_loading(False)
    assert not overlay.should_skip_processing()
    # The time in which it was shown by hand counts for nothing.
    assert overlay.choose(False) == "original"


@pytest.mark.parametrize("settings", [{"mode": OverlayMode.PASSTHROUGH}, {"enabled": False}])
def test_without_a_notice_what_is_withheld_stays_away(settings):
    overlay, clock = controller(**settings)
    overlay.set_manual_loading(True)
    clock.now += 10
    assert not overlay.should_skip_processing()
    assert (overlay.choose(True), overlay.choose(False)) == ("result", "nothing")


@given(
    steps=st.lists(st.tuples(st.floats(0, 2), st.booleans()), max_size=40),
    timeout=st.floats(0.1, 3),
    count=st.integers(1, 5),
)
def test_the_notice_never_comes_before_its_time_and_goes_with_the_last_result_needed(steps, timeout, count):
    overlay, clock = controller(auto_timeout_seconds=timeout, frame_count_to_disable=count)
    last, in_a_row = clock.now, 0
    for wait, got in steps:
        clock.now += wait
        choice = overlay.choose(got)
        in_a_row = in_a_row + 1 if got else 0
        if choice == "notice":
            assert got or clock.now - last >= timeout or not in_a_row
            assert in_a_row < count
        if got:
            last = clock.now


def test_it_is_painted_at_the_frames_moment_in_its_size():
    overlay, clock = controller(message="Wait", progress=0.5)
    shown = overlay.update_and_apply(frame(), None)
    assert shown.picture.rgb().mean() == 200
    clock.now += 2
    shown = overlay.update_and_apply(frame(), None)
    assert (shown.timestamp, shown.width, shown.height) == (9, 96, 64)
    assert shown.picture.rgb().mean() < 60
    built = build_frame_overlay(frame(), "Wait", 3, 0.25)
    assert built.picture.rgb().max() > 150
    with pytest.raises(ValueError, match="progress"):
        build_frame_overlay(frame(), progress=2)

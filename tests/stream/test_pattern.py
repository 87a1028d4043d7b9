"""The generated source: what it draws, how it sounds, and that it keeps real time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.errors import InvalidInput
from stream.frames import AudioFrame, VideoFrame
from stream.pattern import BLOCK, RATE, PatternDecoding, PatternSettings, Sound
from stream.pattern_parts import yuv_planes
from stream.pattern_scene import Scene

SMALL = PatternSettings(width=160, height=90, fps=25)


@dataclass
class Taken:
    """What the pattern made, with the moment at which each part was handed over."""

    pictures: list[tuple[float, VideoFrame]] = field(default_factory=list)
    sounds: list[tuple[float, AudioFrame]] = field(default_factory=list)
    enough: threading.Event = field(default_factory=threading.Event)
    wanted: int = 10
    halt: float = 0.0

    def put_video(self, frame: VideoFrame) -> bool:
        self.pictures.append((time.monotonic(), frame))
        if len(self.pictures) == 5 and self.halt:
            time.sleep(self.halt)
        if len(self.pictures) >= self.wanted:
            self.enough.set()
        return True

    def put_audio(self, frame: AudioFrame) -> bool:
        self.sounds.append((time.monotonic(), frame))
        return True


@contextmanager
def running(pattern: PatternDecoding, taken: Taken) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=pattern.run, args=(taken.put_video, taken.put_audio), name="pattern")
    thread.start()
    try:
        yield thread
    finally:
        pattern.abort()
        thread.join(10)
    assert not thread.is_alive()


def test_nothing_is_handed_over_before_its_time() -> None:
    taken = Taken(wanted=25)
    begun = time.monotonic()
    with running(PatternDecoding(SMALL), taken):
        assert taken.enough.wait(30)
    assert taken.pictures[0][1].timestamp == 0
    for moment, frame in taken.pictures:
        assert moment >= begun + frame.time
        assert frame.timeline.received <= frame.timeline.decoded
    for moment, sound in taken.sounds:
        assert moment >= begun + sound.time + sound.duration


def test_times_are_those_of_the_clock_and_sound_is_without_a_gap() -> None:
    taken = Taken(wanted=25)
    pattern = PatternDecoding(SMALL)
    with running(pattern, taken):
        assert taken.enough.wait(30)
    numbers = [round(frame.time * SMALL.fps) for _, frame in taken.pictures]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] + 1 == len(numbers) + pattern.dropped
    starts = [sound.timestamp for _, sound in taken.sounds]
    assert starts[0] == 0
    if not pattern.dropped:
        assert starts == [index * BLOCK for index in range(len(starts))]
        together = taken.pictures[-1][1].time
        assert abs(taken.sounds[-1][1].time - together) < 0.1


def test_after_a_halt_the_past_is_left_out_and_the_clock_holds() -> None:
    taken = Taken(wanted=15, halt=1.2)
    pattern = PatternDecoding(SMALL)
    with running(pattern, taken):
        assert taken.enough.wait(30)
    before, after = taken.pictures[4], taken.pictures[5]
    assert after[1].time - before[1].time > 1.0
    assert pattern.dropped >= 20
    starts = [sound.timestamp for _, sound in taken.sounds]
    gaps = np.diff(starts)
    assert max(gaps) > 0.5 * RATE
    assert (gaps > 0).all()
    assert (np.array(starts) % BLOCK == 0).all()


def test_it_stops_when_nothing_is_wanted_any_more() -> None:
    calls: list[VideoFrame] = []

    def refuse(frame: VideoFrame) -> bool:
        calls.append(frame)
        return False

    PatternDecoding(SMALL).run(refuse, lambda frame: True)
    assert len(calls) == 1


def test_it_can_be_ended_before_it_begins() -> None:
    pattern = PatternDecoding(SMALL)
    pattern.end()
    pattern.run(lambda frame: pytest.fail("a picture after the end"), lambda frame: True)


@pytest.mark.parametrize("size", [(16, 16), (64, 48), (255, 401), (512, 512), (1920, 16), (16, 1920)])
def test_any_size_can_be_drawn(size: tuple[int, int]) -> None:
    scene = Scene(*size)
    for number in (0, 7, 100_000):
        picture = scene.draw(number, number / 30)
        assert (picture.width, picture.height) == size


def test_the_picture_moves_and_earlier_ones_stay_as_they_were() -> None:
    scene = Scene(320, 180)
    first = scene.draw(0, 0.0)
    kept = [plane.copy() for plane in first.planes]
    later = scene.draw(30, 1.0)
    assert all((old == plane).all() for old, plane in zip(kept, first.planes, strict=True))
    changed = np.mean(first.planes[0] != later.planes[0])
    assert changed > 0.1


def test_luma_and_chroma_stay_within_the_limited_range() -> None:
    scene = Scene(320, 180)
    for number in range(0, 600, 37):
        luma, *chroma = scene.draw(number, number / 30).planes
        assert luma.min() >= 16
        assert luma.max() <= 235
        assert all(plane.min() >= 16 and plane.max() <= 240 for plane in chroma)


def test_colours_come_back_as_they_were() -> None:
    colours = np.array(
        [[235, 235, 16], [16, 235, 235], [235, 16, 16], [16, 16, 235], [90, 120, 200]], np.uint8
    )
    rgb = np.repeat(np.repeat(colours[None], 2, 0), 2, 1)
    from stream.frames import Picture

    picture = Picture("yuv420p", rgb.shape[1], 2, yuv_planes(rgb), matrix="bt709")
    assert np.abs(picture.rgb().astype(int) - rgb).max() <= 4


@given(st.integers(0, 500))
@settings(max_examples=50)
def test_stretches_of_sound_join_without_a_step(number: int) -> None:
    sound = Sound()
    here, there = sound.block(number), sound.block(number + 1)
    joined = np.concatenate([here.samples, there.samples], axis=1)
    steps = np.abs(np.diff(joined, axis=1))
    inside = np.abs(np.diff(sound.block(0).samples, axis=1)).max()
    assert steps[:, BLOCK - 1].max() <= inside * 1.1
    assert there.timestamp == here.timestamp + here.nb_samples


def test_the_sound_is_quiet_there_and_different_on_both_sides() -> None:
    second = np.concatenate([Sound().block(number).samples for number in range(RATE // BLOCK)], axis=1)
    assert np.abs(second).max() < 0.1
    spectrum = np.abs(np.fft.rfft(second[:, RATE // 2 :], axis=1))
    assert [int(row.argmax()) * 2 for row in spectrum] == [220, 330]


@pytest.mark.parametrize("wrong", [{"width": 8}, {"height": 4000}, {"fps": 0}, {"fps": 1000}])
def test_settings_out_of_range_are_refused_by_name(wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidInput) as caught:
        PatternSettings(**wrong)
    assert caught.value.field == next(iter(wrong))

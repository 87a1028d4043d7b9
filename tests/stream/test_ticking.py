"""The clock of streams without input."""

import threading
from itertools import pairwise

import pytest

from stream.errors import InvalidInput
from stream.processor import FrameProcessor, ProcessorInfo
from stream.ticking import TickingDecoding


def run(info, *, pictures=0, sounds=0, size=(64, 48)):
    """Tick until so many of each have come; the frames."""
    seen, heard, tracks = [], [], []
    decoding = TickingDecoding(info, size)
    decoding.tracks = lambda video, audio: tracks.append((video, audio))
    done = threading.Event()

    def put(kept, frame):
        kept.append(frame)
        if len(seen) >= pictures and len(heard) >= sounds:
            done.set()
        return True

    thread = threading.Thread(
        target=decoding.run, args=(lambda f: put(seen, f), lambda f: put(heard, f)), daemon=True
    )
    thread.start()
    assert done.wait(20)
    decoding.end()
    thread.join(5)
    assert not thread.is_alive()
    return seen, heard, tracks


def test_pictures_of_the_streams_size_come_at_the_times_of_an_even_clock():
    seen, heard, tracks = run(lambda: ProcessorInfo(generates=50), pictures=10)
    assert {(frame.width, frame.height) for frame in seen} == {(64, 48)}
    assert all(round((b.time - a.time) * 50, 3) % 1 == 0 and b.time > a.time for a, b in pairwise(seen))
    assert seen[0].picture.rgb().max() == 0
    assert all(frame.timeline.received for frame in seen)
    assert not heard
    assert tracks == [(True, False)]


def test_whoever_works_on_sound_gets_silence_without_gaps():
    seen, heard, _ = run(lambda: ProcessorInfo(audio=True, generates=20), pictures=3, sounds=12)
    assert {frame.samples.shape for frame in heard} == {(2, 960)}
    assert all(b.timestamp - a.timestamp == 960 for a, b in pairwise(heard))
    assert not any(frame.samples.any() for frame in heard)
    assert seen


def test_it_waits_for_a_processor_that_makes_nothing_by_itself_yet():
    infos = iter([ProcessorInfo()] * 3)
    seen, _, _ = run(lambda: next(infos, ProcessorInfo(generates=100)), pictures=2)
    assert len(seen) >= 2


def test_it_ends_when_nothing_is_wanted_any_more():
    decoding = TickingDecoding(lambda: ProcessorInfo(generates=200), (16, 16))
    taken = []

    def put(frame):
        taken.append(frame)
        return len(taken) < 2

    thread = threading.Thread(target=decoding.run, args=(put, put), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert len(taken) == 2


@pytest.mark.parametrize("rate", [0, -1, 1000, float("nan"), True, "30"])
def test_a_rate_that_is_none_is_refused_by_name(rate):
    with pytest.raises(InvalidInput, match="generates must be") as raised:
        ProcessorInfo(generates=rate)
    assert raised.value.field == "generates"


def test_a_class_says_its_rate():
    class Noise(FrameProcessor):
        generates = 12.5

    assert Noise().info().generates == 12.5
    assert FrameProcessor().info().generates is None

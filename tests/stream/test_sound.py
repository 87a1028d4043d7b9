"""Sound through a processor and the encoder's thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from stream.encoding import EncodingStage
from stream.encoding_parts import EncodingSettings
from stream.errors import HeadraceError
from stream.frames import AudioFrame
from stream.processor import FrameProcessor
from stream.sound import SoundStage
from stream.units import EncodedUnit

SIZE = 960


class Events:
    """What an encoding stage tells."""

    def __init__(self) -> None:
        self.units: list[EncodedUnit] = []
        self.failed: list[HeadraceError] = []

    def encoded(self, units: list[EncodedUnit]) -> None:
        self.units += units

    def encoding_failed(self, error: HeadraceError) -> None:
        self.failed.append(error)

    def sound_left(self, pts: int) -> None: ...
    def picture_left(self, *_: Any) -> None: ...
    def rendition_failed(self, *_: Any) -> None: ...


class Answers(FrameProcessor):
    """Answers the third frame with what ``answer`` makes of it, all others as they came."""

    def __init__(self, answer: Callable[[AudioFrame], Any]) -> None:
        super().__init__()
        self.answer = answer

    async def process_audio_async(self, frame: AudioFrame) -> Any:
        return self.answer(frame) if frame.timestamp == 2 * SIZE else [frame]


async def heard(answer: Callable[[AudioFrame], Any]) -> tuple[Events, list[HeadraceError]]:
    """Ten frames of 20 ms, and the faults of frames."""
    loop, events, faults = asyncio.get_running_loop(), Events(), list[HeadraceError]()
    encoding = EncodingStage(EncodingSettings(), loop, events)
    encoding.expect_video(False)
    encoding.open_sound()
    thread = threading.Thread(target=encoding.run)
    thread.start()
    stage = SoundStage(Answers(answer), encoding, loop, faults.append, lossless=False)
    try:
        for number in range(10):
            samples = np.full((2, SIZE), 0.1, np.float32)
            stage.put(AudioFrame(samples, number * SIZE, Fraction(1, 48_000)), number * 1800)
        stage.close()
        await stage.run()
    finally:
        encoding.end()
        await asyncio.to_thread(thread.join)
    return events, faults


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda frame: [frame.replace_samples(frame.samples.tolist())], "not a list"),
        (lambda frame: [AudioFrame(frame.samples, frame.timestamp, frame.time_base, rate=0)], "rate of 0"),
        (
            lambda frame: [AudioFrame(frame.samples, frame.timestamp, frame.time_base, layout="nope")],
            "unknown channel layout",
        ),
        (lambda frame: [frame.replace_samples(frame.samples.T)], "are 2 x n, not 960 x 2"),
        (lambda frame: [frame] * 101, "at most 100"),
        (lambda frame: "sound", "returned str"),
    ],
)
async def test_sound_that_cannot_be_encoded_costs_its_frame_and_not_the_stream(
    answer: Callable[[AudioFrame], Any], words: str
) -> None:
    events, faults = await heard(answer)
    assert not events.failed
    assert [words in fault.message for fault in faults] == [True]
    assert len(events.units) >= 10


async def test_a_single_frame_need_not_be_in_a_list() -> None:
    events, faults = await heard(lambda frame: frame)
    assert (events.failed, faults) == ([], [])
    assert len(events.units) >= 10


async def test_a_long_answer_takes_the_place_of_the_sound_that_it_covers() -> None:
    """Three seconds where twenty milliseconds were due: a sentence that was spoken at once."""
    spoken = np.full((2, 3 * 48_000), 0.2, np.float32)
    events, faults = await heard(lambda frame: [frame.replace_samples(spoken)])
    assert (events.failed, faults) == ([], [])
    assert [unit.pts for unit in events.units] == sorted({unit.pts for unit in events.units})
    assert len(events.units) == pytest.approx(2 + 150, abs=2)

"""The encoding stage by itself: its thread, real codecs, and what it hands on together."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import numpy as np

from stream.canvas import Shown
from stream.clock import TICKS
from stream.codecs.video_encoder import VideoEncoderSettings
from stream.encoding import EncodingStage
from stream.encoding_parts import EncodingSettings, Heard
from stream.errors import CodecError
from stream.frames import AudioFrame, Picture
from stream.units import TS_TIME_BASE, EncodedUnit, Rendition

INTERVAL = TICKS // 30
PICTURE = Picture.from_rgb(np.full((48, 64, 3), 90, np.uint8))


class Heap:
    """Keeps what is handed on, as it is handed on."""

    def __init__(self) -> None:
        self.handed_on: list[list[EncodedUnit]] = []

    def encoded(self, units: list[EncodedUnit]) -> None:
        self.handed_on.append(units)

    def encoding_failed(self, error: Exception) -> None:
        raise error

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def sound(pts: int) -> Heard:
    """20 ms of silence."""
    return Heard(AudioFrame(np.zeros((2, 960), np.float32), pts, TS_TIME_BASE), pts)


async def test_sound_that_is_due_between_two_pictures_leaves_with_the_next() -> None:
    heap = Heap()
    settings = EncodingSettings(VideoEncoderSettings(hardware="off", preset="ultrafast"))
    stage = EncodingStage(settings, asyncio.get_running_loop(), heap)
    stage.open(Rendition("h264", "high", "file"))
    stage.open_sound()
    stage.expect_video(True)
    thread = threading.Thread(target=stage.run)
    thread.start()
    heard = 0
    begun = time.monotonic()
    for index in range(24):
        pts = index * INTERVAL
        stage.show([Shown(pts, PICTURE)])
        # Due a few milliseconds after the picture: it may wait for the one that follows.
        await asyncio.sleep(0.01)
        while heard <= pts + INTERVAL // 2:
            stage.hear(sound(heard))
            heard += TICKS // 50
        await asyncio.sleep(max(0.0, begun + (index + 1) / 30 - time.monotonic()))
    stage.end()
    await asyncio.to_thread(thread.join, 5)
    kinds = [[unit.kind for unit in units] for units in heap.handed_on]
    assert sum(kind.count("video") for kind in kinds) == 24
    assert sum(kind.count("audio") for kind in kinds) >= 30
    alone = sum("video" not in kind for kind in kinds)
    assert alone <= 10, kinds


class Encoder:
    """Holds each picture until it is flushed, which may fail."""

    name, fallback_reason, parameters = "test", None, None

    def __init__(self, *, fails: bool) -> None:
        self.fails = fails
        self.held: list[EncodedUnit] = []

    def encode(self, picture: Picture, pts: int, **_: Any) -> list[EncodedUnit]:
        self.held.append(EncodedUnit("video", b"unit", pts, INTERVAL))
        return []

    def flush(self) -> list[EncodedUnit]:
        if self.fails:
            raise CodecError("the device is gone")
        return self.held

    def set_bitrate(self, bits_per_second: int) -> None: ...


async def test_an_encoder_that_fails_at_the_end_takes_nothing_from_the_others() -> None:
    heap, failed = Heap(), list[Rendition]()
    heap.rendition_failed = lambda rendition, _: failed.append(rendition)  # type: ignore[attr-defined]

    def opened(rendition: Rendition, *_: Any) -> Any:
        return Encoder(fails=rendition.purpose == "viewers")

    stage = EncodingStage(EncodingSettings(), asyncio.get_running_loop(), heap, open_encoder=opened)
    viewers, file = Rendition("h264", "high", "viewers"), Rendition("h264", "high", "file")
    for rendition in (viewers, file):
        stage.open(rendition)
    stage.show([Shown(0, PICTURE)])
    stage.end()
    await asyncio.to_thread(stage.run)
    assert [unit.data for units in heap.handed_on for unit in units] == [b"unit"]
    assert failed == [viewers]

"""The first stage of a stream without input: a clock that asks its processor for frames."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from stream.frames import AudioFrame, Picture, Timeline, VideoFrame, plane_shapes
from stream.processor import ProcessorInfo
from stream.units import TS_TIME_BASE

RATE = 48_000
BLOCK = 960
"""Samples of one stretch of silence, 20 ms."""
LOOK_EVERY = 0.1
"""Seconds between two looks at a processor that wants no frames at present."""
BLACK = 16


class TickingDecoding:
    """Black pictures, and silence for whoever works on sound, at the rate of `ProcessorInfo.generates`.

    The rate may change and go away while the stream runs (another workflow). Times are those of the real
    clock: whoever is late loses ticks. What a processor pushes by itself goes into the pipeline beside this.
    """

    decoder_name: str | None = None

    def __init__(self, info: Callable[[], ProcessorInfo], size: tuple[int, int]) -> None:
        self.errors = 0
        self.dropped = 0
        """Ticks that were left out because their time had passed."""
        self.last_problem: str | None = None
        self.fallback_reason: str | None = None
        self.tracks: Callable[[bool, bool], None] = _nothing
        """Called in the thread with whether pictures, and sound, will come."""
        self._info = info
        self._blank = _blank(*size)
        self._ended = threading.Event()
        self._told: tuple[bool, bool] | None = None

    def end(self) -> None:
        """Tick no more; `run` returns within one tick's time."""
        self._ended.set()

    abort = end

    def run(self, put_video: Callable[[VideoFrame], bool], put_audio: Callable[[AudioFrame], bool]) -> None:
        begun = time.monotonic()
        while not self._ended.is_set():
            info = self._info()
            rate = info.generates
            if rate is None:
                self._ended.wait(LOOK_EVERY)
                continue
            self._tell(info)
            self._tick(info, rate, begun, put_video, put_audio)

    def _tell(self, info: ProcessorInfo) -> None:
        if (info.video, info.audio) != self._told:
            self._told = (info.video, info.audio)
            self.tracks(*self._told)

    def _tick(
        self,
        info: ProcessorInfo,
        rate: float,
        begun: float,
        put_video: Callable[[VideoFrame], bool],
        put_audio: Callable[[AudioFrame], bool],
    ) -> None:
        """Tick until what is wanted changes, or the end; times count from ``begun``."""
        frame = int((time.monotonic() - begun) * rate) + 1
        block = int((time.monotonic() - begun) * RATE / BLOCK) + 1
        while self._info() == info:
            # Sound can be handed on only when all of it would have sounded.
            due = begun + min(
                frame / rate if info.video else float("inf"),
                (block + 1) * BLOCK / RATE if info.audio else float("inf"),
            )
            now = time.monotonic()
            if self._ended.wait(min(max(0.0, due - now), LOOK_EVERY)):
                return
            if (now := time.monotonic()) < due:
                continue
            if info.audio and begun + (block + 1) * BLOCK / RATE <= now:
                going_on = put_audio(_silence(block))
                block += 1
            else:
                late = max(0, int((now - begun) * rate) - frame)
                self.dropped += late
                frame += late
                going_on = put_video(self._picture(frame / rate))
                frame += 1
            if not going_on:
                self._ended.set()
                return

    def _picture(self, seconds: float) -> VideoFrame:
        now = time.monotonic_ns()
        timeline = Timeline(received=now, decoded=now)
        return VideoFrame.from_picture(self._blank, round(seconds / TS_TIME_BASE), TS_TIME_BASE, timeline)


def _blank(width: int, height: int) -> Picture:
    levels = zip(plane_shapes("yuv420p", width, height), (BLACK, 128, 128), strict=True)
    planes = [np.full(shape, level, np.uint8) for shape, level in levels]
    for plane in planes:
        plane.flags.writeable = False
    return Picture("yuv420p", width, height, planes, "bt709")


def _silence(block: int) -> AudioFrame:
    now = time.monotonic_ns()
    return AudioFrame(
        np.zeros((2, BLOCK), np.float32),
        block * BLOCK,
        Fraction(1, RATE),
        rate=RATE,
        timeline=Timeline(received=now, decoded=now),
    )


def _nothing(video: bool, audio: bool) -> None:
    """Nobody wants to know."""

"""A live source without a camera: a moving test pattern with sound, made in real time."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from stream.codecs.picture import AvPicture, to_av
from stream.errors import InvalidInput
from stream.frames import AudioFrame, Timeline, VideoFrame
from stream.pattern_parts import FLASH
from stream.pattern_scene import Scene
from stream.units import TS_TIME_BASE

RATE = 48_000
BLOCK = 960
"""Samples of one stretch of sound, 20 ms."""
BEHIND = 0.5
"""Seconds of lag after which sound is left out; less is caught up with."""
TONES = (220.0, 330.0)
"""Hz, left and right, so that swapped or lost channels are heard. Whole numbers repeat each second."""
TONE_LEVEL = 0.012
PIP = 880.0
PIP_LEVEL = 0.04
MIN_SIZE, MAX_SIZE = 16, 1920
MAX_FPS = 120.0


@dataclass(frozen=True, slots=True)
class PatternSettings:
    """``width`` and ``height`` in pixels, ``fps`` in pictures a second; raises `InvalidInput`."""

    width: int = 640
    height: int = 360
    fps: float = 30.0
    sound: bool = True

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            if not MIN_SIZE <= getattr(self, name) <= MAX_SIZE:
                raise InvalidInput(
                    f"{name} must be from {MIN_SIZE} to {MAX_SIZE}, not {getattr(self, name)}", field=name
                )
        if not 1 <= self.fps <= MAX_FPS:
            raise InvalidInput(f"fps must be from 1 to {MAX_FPS:g}, not {self.fps}", field="fps")


class PatternDecoding:
    """The first stage of a session whose pictures and sound are generated.

    A pip sounds with each flash of the dot beside the clock. Whoever cannot keep up loses pictures, and
    after a halt of more than half a second sound too; times stay those of the real clock.
    """

    decoder_name: str | None = "test pattern"

    def __init__(self, settings: PatternSettings | None = None) -> None:
        self.settings = settings or PatternSettings()
        self.errors = 0
        self.dropped = 0
        """Pictures that were left out because their time had passed."""
        self.last_problem: str | None = None
        self.fallback_reason: str | None = None
        self._ended = threading.Event()

    def end(self) -> None:
        """Make no more; `run` returns within one picture's time."""
        self._ended.set()

    abort = end

    def run(self, put_video: Callable[[VideoFrame], bool], put_audio: Callable[[AudioFrame], bool]) -> None:
        """Make pictures and sound at their times until `end`, or until neither is wanted."""
        scene = Scene(self.settings.width, self.settings.height)
        sound = Sound() if self.settings.sound else None
        start = time.monotonic()
        frame, block = 0, 0
        while not self._ended.is_set():
            frame_due = start + frame / self.settings.fps
            # Sound can be handed on only when all of it has sounded.
            block_due = start + (block + 1) * BLOCK / RATE if sound is not None else math.inf
            due = min(frame_due, block_due)
            if (wait := due - time.monotonic()) > 0 and self._ended.wait(wait):
                return
            now = time.monotonic()
            if sound is not None and block_due <= frame_due:
                if now - block_due > BEHIND:
                    block = int((now - start) * RATE / BLOCK)
                going_on = put_audio(sound.block(block))
                block += 1
            else:
                skipped = max(0, int((now - start) * self.settings.fps) - frame)
                self.dropped += skipped
                frame += skipped
                going_on = put_video(self._picture(scene, frame))
                frame += 1
            if not going_on:
                return

    def _picture(self, scene: Scene, number: int) -> VideoFrame:
        begun = time.monotonic_ns()
        seconds = number / self.settings.fps
        # In a frame of FFmpeg's from the start, so that later conversions are swscale's.
        picture = AvPicture(to_av(scene.draw(number, seconds)), "bt709")
        timeline = Timeline(received=begun, decoded=time.monotonic_ns())
        return VideoFrame.from_picture(picture, round(seconds / TS_TIME_BASE), TS_TIME_BASE, timeline)


class Sound:
    """One second of quiet sound, a tone on each side and a pip at its beginning, over and over."""

    def __init__(self) -> None:
        moments = np.arange(RATE) / RATE
        inside = np.clip(moments / FLASH, 0, 1)
        pip = np.sin(2 * np.pi * PIP * moments) * np.sin(np.pi * inside) ** 2 * PIP_LEVEL
        tones = [np.sin(2 * np.pi * tone * moments) * TONE_LEVEL + pip for tone in TONES]
        self._second: npt.NDArray[np.float32] = np.stack(tones).astype(np.float32)

    def block(self, number: int) -> AudioFrame:
        """Stretch ``number`` from the start; the stretches join without a step."""
        first = number * BLOCK
        samples = self._second[:, first % RATE : first % RATE + BLOCK].copy()
        now = time.monotonic_ns()
        return AudioFrame(
            samples, first, Fraction(1, RATE), rate=RATE, timeline=Timeline(received=now, decoded=now)
        )

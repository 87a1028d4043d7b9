"""Coded pictures and sound for recordings."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from stream.codecs.audio_encoder import AudioEncoder
from stream.codecs.video_encoder import VideoEncoder, VideoEncoderSettings
from stream.frames import AudioFrame, Picture
from stream.units import EncodedUnit

START = 7_000_000
STEP = 3_000


def pictures(count: int, *, size: tuple[int, int] = (64, 48), start: int = START, level: int = 40):
    """``count`` pictures at 30 fps, each a little brighter."""
    width, height = size
    settings = VideoEncoderSettings(bitrate=300_000, hardware="off", key_interval=1.0)
    encoder = VideoEncoder(settings, width, height)
    units: list[EncodedUnit] = []
    for index in range(count):
        rgb = np.full((height, width, 3), level + index % 60, np.uint8)
        units += encoder.encode(Picture.from_rgb(rgb), start + index * STEP)
    return units


def sound(count: int, *, start: int = START):
    """``count`` stretches of a tone, each as long as a picture."""
    encoder = AudioEncoder()
    wave = np.sin(np.arange(1600) * 2 * np.pi * 440 / 48_000, dtype=np.float32)[None].repeat(2, 0)
    units: list[EncodedUnit] = []
    for index in range(count):
        units += encoder.encode(AudioFrame(wave, start + index * STEP, Fraction(1, 90_000), rate=48_000))
    return units


def together(*parts: list[EncodedUnit]) -> list[EncodedUnit]:
    """Units in the order in which a session puts them out."""
    return sorted((unit for part in parts for unit in part), key=lambda u: (u.pts, u.kind == "audio"))

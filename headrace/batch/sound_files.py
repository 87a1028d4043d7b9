"""Sound in the formats that clients ask for, made from a WAV file by FFmpeg."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Literal, cast

import av
from av import AudioFrame, AudioResampler, AudioStream
from av.container import InputContainer

Format = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]

CODECS: dict[str, tuple[str, str]] = {
    "mp3": ("mp3", "libmp3lame"),
    "opus": ("ogg", "libopus"),
    "aac": ("adts", "aac"),
    "flac": ("flac", "flac"),
}
"""Container and encoder of each format that is encoded."""
PCM_RATE = 24_000
"""Samples per second of raw sound, as OpenAI's clients expect it: 16 bit, little-endian, mono."""
OPUS_RATE = 48_000


def convert_wav(data: bytes, form: Format) -> bytes:
    """``data`` (a WAV file of 16 bit) in another format. Blocks for as long as encoding takes: call it in a
    thread. Raises ValueError for what is no such file."""
    if form == "wav":
        return data
    if form == "pcm":
        return _samples(data)
    container, codec = CODECS[form]
    out = io.BytesIO()
    with av.open(io.BytesIO(data), "r") as source, av.open(out, "w", format=container) as target:
        rate = OPUS_RATE if form == "opus" else source.streams.audio[0].rate
        encoded = cast(AudioStream, target.add_stream(codec, rate=rate, layout="mono"))
        for frame in _resampled(source, encoded.format.name, rate):
            target.mux(encoded.encode(frame))
        target.mux(encoded.encode(None))
    return out.getvalue()


def _samples(data: bytes) -> bytes:
    """Raw samples at `PCM_RATE`."""
    with av.open(io.BytesIO(data), "r") as source:
        frames = _resampled(source, "s16", PCM_RATE)
        return b"".join(frame.to_ndarray().tobytes() for frame in frames)


def _resampled(source: InputContainer, form: str, rate: int) -> Iterator[AudioFrame]:
    resampler = AudioResampler(format=form, layout="mono", rate=rate)
    for frame in source.decode(audio=0):
        yield from resampler.resample(frame)
    yield from resampler.resample(None)

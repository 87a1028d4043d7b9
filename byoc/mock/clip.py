"""A generated clip: moving texture with numbered frames, and sound, as MPEG-TS segments.

`cut` gives the chunks in which a live source would send it: all bytes up to the last one of an access unit
are due together at that unit's time.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from byoc.mock import barcode

CLOCK = 90_000
TS_PACKET = 188
VIDEO_PID = 256
"""FFmpeg gives the first stream this one."""
START = 126_000
"""Timestamp of the first frame in 1/90000 s; FFmpeg starts its transport streams there too."""
SAMPLE_RATE = 48_000


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a clip is made of; ``key_every`` is in seconds, ``bitrate`` in bit/s."""

    width: int = 512
    height: int = 512
    fps: int = 30
    seconds: float = 10
    key_every: float = 2
    bitrate: int = 2_000_000
    audio: str | None = "aac"

    @property
    def frames(self) -> int:
        return round(self.seconds * self.fps)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes that are due together, ``due`` seconds after the first frame.

    They end with the last one of frame ``number``; None for what comes after a segment's last frame.
    """

    data: bytes
    due: float
    number: int | None


def pictures(recipe: Recipe) -> Iterator[av.VideoFrame]:
    """The frames as yuv420p: two layers of texture that move against each other, and the barcode."""
    width, height = recipe.width, recipe.height
    noise = np.random.default_rng(7)
    luma = [_texture(noise, height, width, 60 + 40 * layer) for layer in range(2)]
    chroma = [_texture(noise, height // 2, width // 2, 50) for _ in range(2)]
    for number in range(recipe.frames):
        y = _window(luma[0], number * 3, number, height, width) + _window(
            luma[1], number, number * 2, height, width
        )
        barcode.paint(y, number)
        planes = [y, *(_window(c, number, number * 2, height // 2, width // 2) + 78 for c in chroma)]
        packed = np.concatenate([np.ascontiguousarray(plane).ravel() for plane in planes])
        frame = av.VideoFrame.from_ndarray(packed.reshape(height * 3 // 2, width), format="yuv420p")
        frame.pts = number
        frame.time_base = Fraction(1, recipe.fps)
        yield frame


def _texture(noise: np.random.Generator, height: int, width: int, spread: int) -> npt.NDArray[np.uint8]:
    """Smooth blobs with some grain, 128 more rows and columns than asked for, values up to ``spread``."""
    rows, columns = height + 128, width + 128
    field = noise.random((rows, columns), dtype=np.float32) * 0.15
    for size in (8, 32):
        coarse = noise.random((rows // size + 2, columns // size + 2), dtype=np.float32)
        field += coarse.repeat(size, 0).repeat(size, 1)[:rows, :columns]
    for axis in (0, 1):
        field = (field + np.roll(field, 1, axis) + np.roll(field, -1, axis)) / 3
    return np.asarray(field / field.max() * spread, np.uint8)


def _window(
    texture: npt.NDArray[np.uint8], down: int, right: int, height: int, width: int
) -> npt.NDArray[np.uint8]:
    """A view that wanders to and fro over the texture."""
    top, left = (abs((step + 64) % 256 - 128) for step in (down, right))
    return texture[top : top + height, left : left + width]


def sound(recipe: Recipe) -> Iterator[av.AudioFrame]:
    """Two different tones, one a channel, in frames of 1024 samples."""
    for start in range(0, round(recipe.seconds * SAMPLE_RATE), 1024):
        time = np.arange(start, start + 1024, dtype=np.float32) / SAMPLE_RATE
        tones = np.stack([0.2 * np.sin(2 * np.pi * pitch * time) for pitch in (440, 660)])
        frame = av.AudioFrame.from_ndarray(tones.astype(np.float32), format="fltp", layout="stereo")
        frame.sample_rate = SAMPLE_RATE
        frame.pts = start
        frame.time_base = Fraction(1, SAMPLE_RATE)
        yield frame


def write(recipe: Recipe, path: Path) -> None:
    """Encode the clip as MP4 or whatever else the name of ``path`` says."""
    with av.open(path, "w") as output:
        video = output.add_stream("libx264", rate=recipe.fps, options={"preset": "veryfast", "bf": "0"})
        video.width, video.height, video.pix_fmt = recipe.width, recipe.height, "yuv420p"
        video.bit_rate = recipe.bitrate
        video.gop_size = round(recipe.key_every * recipe.fps)
        video.options |= {"x264-params": f"keyint={video.gop_size}:min-keyint={video.gop_size}:scenecut=0"}
        audio: Any = recipe.audio and output.add_stream(recipe.audio, rate=SAMPLE_RATE, layout="stereo")
        samples = iter(sound(recipe) if audio else ())
        heard = 0.0
        for picture in pictures(recipe):
            output.mux(video.encode(picture))
            while audio and heard <= (picture.time or 0) and (frame := next(samples, None)):
                output.mux(audio.encode(frame))
                heard = frame.time or 0
        output.mux(video.encode())
        if audio:
            output.mux(audio.encode())


def cached(recipe: Recipe, folder: Path) -> Path:
    """The clip as an MP4 file in ``folder``, made when it is not there yet."""
    key = hashlib.sha256(json.dumps([asdict(recipe), Path(__file__).read_text()]).encode()).hexdigest()[:12]
    path = folder / f"clip-{recipe.width}x{recipe.height}-{key}.mp4"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f"half-{path.name}")
        write(recipe, half)
        half.rename(path)
    return path


def cut(path: Path) -> list[list[Chunk]]:
    """A clip's trickle segments, each with a muxer of its own, as the chunks of a live source.

    Segments begin at key frames; timestamps run on from `START`.
    """
    segments: list[list[Chunk]] = []
    with av.open(path) as source:
        video, audio = source.streams.video[0], next(iter(source.streams.audio), None)
        streams = [stream for stream in (video, audio) if stream is not None]
        groups: list[list[av.Packet[Any]]] = []
        early: list[av.Packet[Any]] = []
        for packet in source.demux(streams):
            if packet.dts is None or packet.pts is None:
                continue
            if packet.stream is video and packet.is_keyframe:
                groups.append(early)
                early = []
            (groups[-1] if groups else early).append(packet)
        numbers = 0
        for group in groups:
            pictures = sum(packet.stream is video for packet in group)
            segments.append(list(_chunks(_transport_stream(group, streams), numbers)))
            numbers += pictures
    return segments


def _transport_stream(packets: Sequence[av.Packet[Any]], streams: Sequence[Any]) -> bytes:
    whole = io.BytesIO()
    with av.open(whole, "w", format="mpegts") as output:
        copies = {stream.index: output.add_stream_from_template(stream) for stream in streams}
        for packet in packets:
            shift = round(Fraction(START, CLOCK) / packet.time_base)
            packet.pts, packet.dts = (packet.pts or 0) + shift, (packet.dts or 0) + shift
            packet.stream = copies[packet.stream.index]
            output.mux_one(packet)
    return whole.getvalue()


def _chunks(data: bytes, number: int) -> Iterator[Chunk]:
    """Cut a transport stream after the last packet of each access unit of its first stream."""
    begun, due = 0, 0.0
    for unit in access_units(data, VIDEO_PID):
        due = (unit.pts - START) / CLOCK
        yield Chunk(data[begun : unit.end], due, number)
        begun, number = unit.end, number + 1
    if begun < len(data):
        yield Chunk(data[begun:], due, None)


@dataclass(frozen=True, slots=True)
class Unit:
    """An access unit in a transport stream: its time in 1/90000 s and where its last byte stands."""

    pts: int
    end: int


def access_units(data: bytes, pid: int) -> Iterator[Unit]:
    """The access units of one elementary stream, each a PES packet of its own."""
    pts, end = -1, 0
    for at in range(0, len(data) - TS_PACKET + 1, TS_PACKET):
        packet = data[at : at + TS_PACKET]
        if (packet[1] << 8 | packet[2]) & 0x1FFF != pid:
            continue
        if packet[1] & 0x40:
            if end:
                yield Unit(pts, end)
            pts = _pes_time(packet)
        end = at + TS_PACKET
    if end:
        yield Unit(pts, end)


def _pes_time(packet: bytes) -> int:
    """PTS of the PES packet that begins in a transport packet (ISO/IEC 13818-1, 2.4.3.6)."""
    start = 4 + (1 + packet[4] if packet[3] & 0x20 else 0)
    field = packet[start + 9 : start + 14]
    return (field[0] >> 1 & 7) << 30 | field[1] << 22 | (field[2] >> 1) << 15 | field[3] << 7 | field[4] >> 1

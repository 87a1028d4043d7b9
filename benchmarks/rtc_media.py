"""What the measuring WebRTC peer sends, encoded beforehand, and how it reads what came back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from aiortc import MediaStreamTrack
from aiortc.codecs import depayload
from aiortc.rtcrtpparameters import RTCRtpCodecParameters

from byoc.mock import barcode

VIDEO_CLOCK = 90_000
AUDIO_CLOCK = 48_000
AUDIO_FRAME = 960
BEEP_S = 0.1
BEEP_LEVEL = 0.1


def access_units(clip: Path) -> list[bytes]:
    """The clip's pictures in order as H.264 in Annex B, parameter sets before each key picture."""
    with av.open(str(clip)) as source:
        video = source.streams.video[0]
        annex_b = av.BitStreamFilterContext("h264_mp4toannexb", video)
        return [
            bytes(filtered)
            for packet in source.demux(video)
            if packet.dts is not None
            for filtered in annex_b.filter(packet)
        ]


def beeps(seconds: float) -> list[bytes]:
    """Opus packets of 20 ms: a tone of 1 kHz for the first tenth of each second, silence otherwise."""
    context = av.CodecContext.create("libopus", "w")
    assert isinstance(context, av.AudioCodecContext)
    context.sample_rate, context.layout, context.format = AUDIO_CLOCK, "stereo", "flt"
    context.time_base = Fraction(1, AUDIO_CLOCK)
    context.bit_rate = 64_000
    context.options = {"frame_duration": "20"}
    packets: list[bytes] = []
    for start in range(0, int(seconds * AUDIO_CLOCK), AUDIO_FRAME):
        moments = np.arange(start, start + AUDIO_FRAME) / AUDIO_CLOCK
        tone = 0.5 * np.sin(2 * np.pi * 1000 * moments) * (moments % 1 < BEEP_S)
        frame = av.AudioFrame.from_ndarray(
            tone.astype(np.float32).repeat(2).reshape(1, -1), format="flt", layout="stereo"
        )
        frame.sample_rate, frame.pts, frame.time_base = AUDIO_CLOCK, start, Fraction(1, AUDIO_CLOCK)
        packets += [bytes(packet) for packet in context.encode(frame)]
    return packets


class Playlist(MediaStreamTrack):
    """Encoded packets, each given out at its time; the first begins the clock that ``start`` holds."""

    def __init__(self, kind: str, packets: list[bytes], interval: float, start: list[float]) -> None:
        super().__init__()
        self.kind = kind
        self.number = -1
        """Of the packet given out last."""
        self.begun = asyncio.Event()
        self._packets = packets
        self._interval = interval
        self._start = start
        self._clock = VIDEO_CLOCK if kind == "video" else AUDIO_CLOCK

    async def recv(self) -> Any:
        if not self._start:
            self._start.append(time.monotonic())
        self.begun.set()
        number = self.number + 1
        if number >= len(self._packets):
            await asyncio.Event().wait()
        wait = self._start[0] + number * self._interval - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        packet = av.Packet(self._packets[number])
        packet.pts = packet.dts = round(number * self._interval * self._clock)
        packet.time_base = Fraction(1, self._clock)
        self.number = number
        return packet


@dataclass(frozen=True, slots=True)
class Received:
    """An RTP packet as it came: ``at`` by `time.monotonic_ns`."""

    at: int
    sequence: int
    timestamp: int
    marker: bool
    payload: bytes


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that came back: its number, whether it was inverted, the arrival of its last packet."""

    number: int | None
    inverted: bool
    at: int
    timestamp: int
    size: int


def pictures(packets: Iterable[Received]) -> Iterator[Picture]:
    """Put together, decode and read what came; damaged pictures are left out."""
    codec = RTCRtpCodecParameters(mimeType="video/H264", clockRate=VIDEO_CLOCK)
    decoder = av.CodecContext.create("h264", "r")
    assert isinstance(decoder, av.VideoCodecContext)
    decoder.thread_count = 1
    # A decoder that must not reorder gives a picture out with the packet that completes it.
    decoder.flags = av.codec.context.Flags.low_delay
    unit, seen = b"", set[int]()
    for packet in sorted(_unwrapped(packets), key=lambda item: item[0]):
        sequence, received = packet
        if sequence in seen or not received.payload:
            continue
        seen.add(sequence)
        unit += depayload(codec, received.payload)
        if not received.marker:
            continue
        try:
            frames = decoder.decode(av.Packet(unit))
        except av.error.FFmpegError:
            frames = []
        for frame in frames:
            mark = barcode.read(frame.to_ndarray(format="gray"))
            yield Picture(
                mark.number if mark else None,
                bool(mark and mark.inverted),
                received.at,
                received.timestamp,
                len(unit),
            )
        unit = b""


def beep_arrivals(packets: Iterable[Received]) -> list[tuple[int, int]]:
    """For each beep that came back, the arrival of the packet in which it begins, and its RTP timestamp.

    The timestamp is that of the first loud sample.
    """
    decoder = av.CodecContext.create("opus", "r")
    assert isinstance(decoder, av.AudioCodecContext)
    found: list[tuple[int, int]] = []
    last_loud = -1 << 62
    for _, received in sorted(_unwrapped(packets), key=lambda item: item[0]):
        try:
            frames = decoder.decode(av.Packet(received.payload))
        except av.error.FFmpegError:
            continue
        for frame in frames:
            samples = np.abs(frame.to_ndarray()).reshape(2, -1) if frame.format.is_planar else _planes(frame)
            loud = np.flatnonzero(samples.max(axis=0) > BEEP_LEVEL)
            if loud.size and received.at - last_loud > 500_000_000:
                found.append((received.at, received.timestamp + int(loud[0])))
            if loud.size:
                last_loud = received.at
    return found


def _planes(frame: Any) -> Any:
    return np.abs(frame.to_ndarray()).reshape(-1, 2).T


def _unwrapped(packets: Iterable[Received]) -> Iterator[tuple[int, Received]]:
    """Each packet with its sequence number, counted on where 16 bits wrap round."""
    last: int | None = None
    for packet in packets:
        if last is None:
            last = packet.sequence
        else:
            last += (packet.sequence - last + 0x8000) % 0x10000 - 0x8000
        yield last, packet

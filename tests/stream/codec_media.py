"""Synthetic media for the tests of codecs and containers: real encoders, small pictures, known contents."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from stream.mpegts import AccessUnit, TsDemuxer

TB = Fraction(1, 90_000)
START = 126_000
ZEROLATENCY = {"preset": "ultrafast", "tune": "zerolatency"}


@dataclass(frozen=True)
class Coded:
    """One packet of an encoder, times in 1/90000 s."""

    data: bytes
    pts: int
    dts: int
    key: bool


def gradient(index: int, width: int, height: int) -> npt.NDArray[np.uint8]:
    """A smooth, moving RGB picture."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack(((x + index * 4) % 256, (y + index * 2) % 256, (x + y) // 2 % 256), axis=-1)
    return rgb.astype(np.uint8)


def encoded_video(
    count: int,
    width: int = 160,
    height: int = 96,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    fps: int = 30,
    start: int = START,
    gop: int = 10,
    frames: Sequence[av.VideoFrame] | None = None,
    colorspace: int | None = None,
    color_range: int | None = None,
) -> list[Coded]:
    context = av.CodecContext.create(codec, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height, context.pix_fmt = width, height, pix_fmt
    context.time_base, context.framerate = TB, Fraction(fps)
    context.gop_size, context.thread_count = gop, 1
    if colorspace is not None:
        context.colorspace = colorspace
    if color_range is not None:
        context.color_range = color_range
    context.options = dict(ZEROLATENCY if options is None else options)
    packets: list[Any] = []
    for index in range(count):
        if frames is not None:
            frame = frames[index]
        else:
            frame = av.VideoFrame.from_numpy_buffer(gradient(index, width, height), format="rgb24")
            if pix_fmt != "rgb24":
                frame = frame.reformat(format=pix_fmt)
        frame.pts, frame.time_base = start + index * 90_000 // fps, TB
        packets += context.encode(frame)
    packets += context.encode(None)
    return [Coded(bytes(p), p.pts, p.dts, p.is_keyframe) for p in packets]


def tone(seconds: float, rate: int, channels: int, start: float = 0.0) -> npt.NDArray[np.float32]:
    """A sine in each channel, 440 Hz in the first, 880 Hz in the second, and so on; channels x n."""
    time = np.arange(round(seconds * rate)) / rate + start
    return np.stack([0.4 * np.sin(2 * np.pi * 440 * (n + 1) * time) for n in range(channels)]).astype(
        np.float32
    )


def encoded_audio(
    seconds: float,
    codec: str = "aac",
    *,
    layout: str = "stereo",
    rate: int = 48_000,
    start: int = START,
    options: dict[str, str] | None = None,
) -> list[Coded]:
    context = av.CodecContext.create(codec, "w")
    assert isinstance(context, av.AudioCodecContext)
    context.sample_rate, context.layout = rate, layout
    context.format = "flt" if codec == "libopus" else "fltp"
    context.time_base, context.bit_rate = Fraction(1, rate), 96_000
    context.options = options or {}
    context.open()
    size, channels = context.frame_size, len(av.AudioLayout(layout).channels)
    packets: list[Any] = []
    for index in range(round(seconds * rate) // size):
        samples = tone(size / rate, rate, channels, index * size / rate)
        if codec == "libopus":
            samples = samples.T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples), format=context.format.name, layout=layout
        )
        frame.sample_rate, frame.pts, frame.time_base = rate, index * size, Fraction(1, rate)
        packets += context.encode(frame)
    packets += context.encode(None)
    return [
        Coded(bytes(p), start + p.pts * 90_000 // rate, start + p.pts * 90_000 // rate, True) for p in packets
    ]


def adts(frame: bytes, rate: int = 48_000, channels: int = 2) -> bytes:
    """The frame with an ADTS header (AAC-LC)."""
    rates = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
    length = len(frame) + 7
    header = 0xFFF1 << 40 | 1 << 38 | rates.index(rate) << 34 | channels << 30 | length << 13 | 0x7FF << 2
    return header.to_bytes(7, "big") + frame


def ffmpeg_ts(
    video: Iterable[Coded] = (),
    audio: Iterable[Coded] = (),
    *,
    video_codec: str = "h264",
    audio_codec: str = "aac",
    layout: str = "stereo",
    rate: int = 48_000,
    options: dict[str, str] | None = None,
) -> bytes:
    """A transport stream as FFmpeg's multiplexer writes it."""
    target = io.BytesIO()
    video, audio = list(video), list(audio)
    container = av.open(target, "w", format="mpegts", options=options or {})
    streams: dict[str, Any] = {}
    if video:
        streams["video"] = container.add_mux_stream(video_codec, width=160, height=96)
        streams["video"].time_base = TB
    if audio:
        streams["audio"] = container.add_stream("libopus" if audio_codec == "opus" else "aac", rate=rate)
        streams["audio"].layout = layout
    tagged = [(unit.dts, "video", unit) for unit in video] + [(unit.dts, "audio", unit) for unit in audio]
    for _, kind, unit in sorted(tagged, key=lambda item: item[0]):
        packet = av.Packet(unit.data)
        packet.pts, packet.dts, packet.time_base = unit.pts, unit.dts, TB
        packet.is_keyframe, packet.stream = unit.key, streams[kind]
        container.mux(packet)
    container.close()
    return target.getvalue()


def units_of(data: bytes, demuxer: TsDemuxer | None = None, received: int = 1) -> list[AccessUnit]:
    """Everything that a whole stream holds."""
    demuxer = demuxer or TsDemuxer()
    return demuxer.feed(data, received) + demuxer.flush()


def access_units(video: Iterable[Coded], codec: str = "h264") -> list[AccessUnit]:
    """The packets as a demuxer gives them; ``received`` is the PTS, so that each is known by it."""
    return [
        AccessUnit(256, codec, "video", unit.data, unit.pts, unit.dts, unit.pts, unit.key) for unit in video
    ]


def sound_units(
    audio: Iterable[Coded], codec: str, channels: int = 2, rate: int = 48_000
) -> list[AccessUnit]:
    return [
        AccessUnit(
            257,
            codec,
            "audio",
            adts(unit.data, rate, channels) if codec == "aac" else unit.data,
            unit.pts,
            unit.dts,
            unit.pts,
            True,
            channels=channels if codec == "opus" else 0,
        )
        for unit in audio
    ]


def solid(y: int, u: int, v: int, width: int = 64, height: int = 48, fmt: str = "yuv420p") -> av.VideoFrame:
    """A frame of one colour in a planar 8-bit format."""
    frame = av.VideoFrame(width, height, fmt)
    for plane, value in zip(frame.planes, (y, u, v), strict=False):
        plane.update(bytes((value,)) * plane.buffer_size)
    return frame


def h273_yuv(rgb: Sequence[int], matrix: str, full: bool) -> npt.NDArray[np.float64]:
    """Y, Cb, Cr of one colour by the equations of ITU-T H.273, 8.3, unrounded."""
    kr, kb = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}[matrix]
    red, green, blue = (value / 255 for value in rgb)
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    cb, cr = (blue - luma) / 2 / (1 - kb), (red - luma) / 2 / (1 - kr)
    if full:
        return np.array((luma * 255, cb * 255 + 128, cr * 255 + 128))
    return np.array((luma * 219 + 16, cb * 224 + 128, cr * 224 + 128))


def pattern_frame(seed: int, width: int, height: int, fmt: str = "yuv420p") -> av.VideoFrame:
    """A frame whose samples are noise, smoothed a little."""
    rng = np.random.default_rng(seed)
    frame = av.VideoFrame(width, height, fmt)
    for plane in frame.planes:
        plane.update(rng.integers(40, 200, plane.buffer_size, dtype=np.uint8).tobytes())
    return frame


class _Bits:
    """The bits of a NAL unit's payload, with the Exp-Golomb codes of ITU-T H.264, 9.1."""

    def __init__(self, payload: bytes) -> None:
        self.text = "".join(f"{byte:08b}" for byte in payload.replace(b"\x00\x00\x03", b"\x00\x00"))
        self.at = 0

    def take(self, count: int) -> int:
        self.at += count
        return int(self.text[self.at - count : self.at] or "0", 2)

    def golomb(self) -> int:
        zeros = self.text.index("1", self.at) - self.at
        self.at += zeros
        return self.take(zeros + 1) - 1


def without_vui(data: bytes) -> bytes:
    """The access unit with x264's sequence parameter set cut off before its VUI, which tells the order."""
    start = data.find(b"\x00\x00\x01\x67") + 3
    if start < 3:
        return data
    end = data.find(b"\x00\x00\x00\x01", start)
    bits = _Bits(data[start:end])
    profile = bits.take(16) & 0xFF
    bits.take(16)
    bits.golomb()
    if profile == 100:
        assert bits.golomb() == 1
        bits.golomb()
        bits.golomb()
        assert bits.take(2) == 0
    bits.golomb()
    order_type = bits.golomb()
    assert order_type in (0, 2)
    if order_type == 0:
        bits.golomb()
    bits.golomb()
    bits.take(1)
    bits.golomb()
    bits.golomb()
    assert bits.take(1) == 1
    bits.take(1)
    if bits.take(1):
        for _ in range(4):
            bits.golomb()
    assert bits.take(1) == 1, "it has no VUI"
    text = bits.text[: bits.at - 1] + "0" + "1"
    text += "0" * (-len(text) % 8)
    body = bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8))
    for value in (0, 1, 2, 3):
        body = body.replace(bytes((0, 0, value)), bytes((0, 0, 3, value)))
    return data[:start] + body + data[end:]

"""From camera bytes to viewer bytes: demux, decode, convert, encode, mux, and again."""

from __future__ import annotations

import io
from itertools import pairwise

import av
import numpy as np
import pytest
from codec_media import START, encoded_audio, encoded_video, ffmpeg_ts, gradient, units_of

from stream.codecs.audio_decoder import AudioDecoder
from stream.codecs.audio_encoder import AudioEncoder
from stream.codecs.convert import Converter
from stream.codecs.mpegts_muxer import TsMuxer
from stream.codecs.video_decoder import VideoDecoder
from stream.codecs.video_encoder import VideoEncoder, VideoEncoderSettings
from stream.frames import AudioFrame, VideoFrame
from stream.mpegts import AccessUnit, TsDemuxer
from stream.units import EncodedUnit

SETTINGS = VideoEncoderSettings(hardware="off", bitrate=4_000_000, key_interval=1.0)


class Worker:
    """The whole way of a stream through the codecs, without anything between."""

    def __init__(self, size: tuple[int, int] | None = None) -> None:
        self.demuxer, self.converter, self.size = TsDemuxer(), Converter(), size
        self.video = VideoDecoder("h264", hardware="off")
        self.audio: AudioDecoder | None = None
        self.encoder: VideoEncoder | None = None
        self.sound = AudioEncoder()
        self.muxer: TsMuxer | None = None
        self.segments: list[bytes] = []
        self.held: list[EncodedUnit] = []

    def feed(self, data: bytes) -> None:
        for unit in self.demuxer.feed(data, 1):
            self.take(unit)

    def end_segment(self) -> None:
        for unit in self.demuxer.flush():
            self.take(unit)

    def take(self, unit: AccessUnit) -> None:
        if unit.kind == "video":
            for frame in self.video.decode(unit):
                self.put(self.encode(frame))
            return
        if self.audio is None:
            self.audio = AudioDecoder(unit.codec)
        for sound in self.audio.decode(unit):
            self.put(self.sound.encode(sound))

    def encode(self, frame: VideoFrame) -> list[EncodedUnit]:
        picture = frame.picture if self.size is None else self.converter.scale(frame.picture, *self.size)
        if self.encoder is None:
            self.encoder = VideoEncoder(
                SETTINGS, picture.width, picture.height, matrix=picture.matrix, full_range=picture.full_range
            )
        # Sound that has joined is declared by the next segment, so ask for one.
        joined = self.sound.parameters is not None and not self.declared
        return self.encoder.encode(picture, frame.timestamp, key=joined, timeline=frame.timeline)

    def put(self, units: list[EncodedUnit]) -> None:
        for unit in units:
            if unit.kind == "video" and unit.key:
                assert self.encoder is not None
                self.muxer = TsMuxer(self.encoder.parameters, self.sound.parameters)
                self.segments.append(b"")
            if self.muxer is not None and (unit.kind == "video" or self.declared):
                self.segments[-1] += self.muxer.mux(unit)

    @property
    def declared(self) -> bool:
        return self.muxer is not None and "audio" in self.muxer._pids


def read(data: bytes) -> tuple[list[VideoFrame], list[AudioFrame]]:
    video, audio = VideoDecoder("h264", hardware="off"), AudioDecoder("opus")
    pictures, sound = [], []
    for unit in units_of(data):
        if unit.kind == "video":
            pictures += video.decode(unit)
        else:
            sound += audio.decode(unit)
    assert video.errors == audio.errors == 0
    return pictures, sound


def error_of(frame: VideoFrame) -> float:
    expected = gradient((frame.timestamp - START) // 3000, frame.width, frame.height).astype(int)
    return float(np.abs(frame.picture.rgb().astype(int) - expected).mean())


def pitch(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum)) * 48_000 / len(samples)


@pytest.mark.parametrize("codec", ["aac", "opus"])
@pytest.mark.parametrize("layout", ["mono", "stereo"])
def test_pictures_and_both_channels_survive_the_way_through(codec: str, layout: str) -> None:
    video = encoded_video(60, gop=30, options={"preset": "superfast", "tune": "zerolatency", "qp": "10"})
    audio = encoded_audio(2.1, "libopus" if codec == "opus" else "aac", layout=layout)
    worker = Worker()
    worker.feed(ffmpeg_ts(video, audio, audio_codec=codec, layout=layout))
    worker.end_segment()
    pictures, sound = read(b"".join(worker.segments))
    assert [frame.timestamp for frame in pictures] == [unit.pts for unit in video]
    assert max(error_of(frame) for frame in pictures) < 4
    assert {frame.layout for frame in sound} == {layout}
    assert {b.timestamp - a.timestamp for a, b in pairwise(sound)} == {1800}
    samples = np.concatenate([frame.samples for frame in sound], axis=1)
    for index, channel in enumerate(samples[:, 24_000:72_000]):
        assert pitch(channel) == pytest.approx(440 * (index + 1), abs=2)


@pytest.mark.parametrize(("tag", "full"), [(1, False), (6, True), (9, False), (None, False)])
def test_colours_survive_the_way_through(tag: int | None, full: bool) -> None:
    options = {"preset": "superfast", "tune": "zerolatency", "qp": "8"}
    kind = "yuvj420p" if full else "yuv420p"
    frames = []
    for index in range(10):
        source = av.VideoFrame.from_numpy_buffer(gradient(index, 160, 96), format="rgb24")
        source.colorspace = tag or 6
        frames.append(source.reformat(format=kind, dst_color_range=2 if full else 1))
    video = encoded_video(
        10, frames=frames, pix_fmt=kind, options=options, colorspace=tag, color_range=2 if full else 1
    )
    worker = Worker()
    worker.feed(ffmpeg_ts(video))
    worker.end_segment()
    pictures, _ = read(b"".join(worker.segments))
    assert len(pictures) == 10
    assert max(error_of(frame) for frame in pictures) < 4
    assert {frame.picture.full_range for frame in pictures} == {full}


def test_ffmpeg_reads_what_comes_out_with_the_times_that_went_in() -> None:
    video, audio = encoded_video(75, gop=30), encoded_audio(2.5)
    worker = Worker((64, 64))
    worker.feed(ffmpeg_ts(video, audio))
    worker.end_segment()
    assert len(worker.segments) in (3, 4)
    with av.open(io.BytesIO(b"".join(worker.segments)), format="mpegts") as container:
        frames = [(type(frame), frame.pts) for frame in container.decode()]
        assert container.streams.video[0].codec_context.width == 64
    assert [pts for kind, pts in frames if kind is av.VideoFrame] == [unit.pts for unit in video]
    heard = [pts for kind, pts in frames if kind is av.AudioFrame]
    assert len(heard) > 100
    assert {b - a for a, b in pairwise(heard)} == {1800}


def test_every_packet_of_a_live_stream_is_answered_at_once() -> None:
    video = encoded_video(30)
    worker = Worker()
    for at, unit in enumerate(video):
        before = sum(map(len, worker.segments))
        worker.take(AccessUnit(256, "h264", "video", unit.data, unit.pts, unit.dts, 1, unit.key))
        assert sum(map(len, worker.segments)) > before, at


def test_sound_that_joins_late_and_leaves_again() -> None:
    video = encoded_video(90, gop=30)
    worker = Worker()
    for part, audio in (
        (video[:30], []),
        (video[30:60], encoded_audio(1.0, start=START + 90_000)),
        (video[60:], []),
    ):
        worker.feed(ffmpeg_ts(part, audio))
        worker.end_segment()
    pictures, sound = read(b"".join(worker.segments))
    assert len(pictures) == 90
    assert 15 <= len(sound) <= 51
    assert worker.demuxer.statistics.continuity_errors == 0


def test_sound_alone_passes() -> None:
    worker = Worker()
    worker.feed(ffmpeg_ts(audio=encoded_audio(1.0)))
    units: list[EncodedUnit] = []
    demuxer, decoder, encoder = TsDemuxer(), AudioDecoder("aac"), AudioEncoder()
    for unit in units_of(ffmpeg_ts(audio=encoded_audio(1.0)), demuxer):
        for frame in decoder.decode(unit):
            units += encoder.encode(frame)
    muxer = TsMuxer(None, encoder.parameters)
    _, sound = read(b"".join(muxer.mux(unit) for unit in units))
    assert len(sound) == len(units) > 45


def test_a_source_that_changes_its_size_keeps_the_output_size() -> None:
    worker = Worker((96, 96))
    small, large = encoded_video(15), encoded_video(15, 320, 180, start=START + 45_000)
    for part in (small, large):
        worker.feed(ffmpeg_ts(part))
        worker.end_segment()
    pictures, _ = read(b"".join(worker.segments))
    assert {(frame.width, frame.height) for frame in pictures} == {(96, 96)}
    assert len(pictures) == 30

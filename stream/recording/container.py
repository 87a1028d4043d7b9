"""One file of a recording: MP4 that is readable at any moment, or WebM where the pictures ask for it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, TypeVar

import av
import av.error
import av.stream

from stream.errors import SinkError
from stream.recording.bitstream import AudioFormat, PictureFormat
from stream.recording.takes import Write
from stream.units import TS_TIME_BASE

FRAGMENT: Final = 1.0
"""Seconds of media that a crash may cost."""

_ENCODERS: Final = {"opus": "libopus", "aac": "aac"}
_LAYOUTS: Final = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}
_OPTIONS: Final[dict[str, dict[str, str]]] = {
    # Fragments while it is written; the trailer makes an ordinary file of it, whose index lies at its end.
    "mp4": {
        "movflags": "hybrid_fragmented+frag_keyframe+delay_moov",
        "frag_duration": str(int(FRAGMENT * 1_000_000)),
    },
    "webm": {"cluster_time_limit": str(int(FRAGMENT * 1_000))},
    "matroska": {"cluster_time_limit": str(int(FRAGMENT * 1_000))},
}
_SUFFIXES: Final = {"mp4": ".mp4", "webm": ".webm", "matroska": ".mkv"}

T = TypeVar("T")


def container_of(video: PictureFormat | None, audio: AudioFormat | None) -> str:
    """FFmpeg's name of the format for such tracks: MP4 unless the pictures are VP8."""
    if video is None or video.codec != "vp8":
        return "mp4"
    return "webm" if audio is None or audio.codec == "opus" else "matroska"


def suffix_of(container: str) -> str:
    return _SUFFIXES[container]


class RecordingFile:
    """Writes packets as they are; used by one thread at a time.

    ``key`` is the key picture with which it begins, for codecs whose size only a decoder knows. Raises
    `FileExistsError` where there is a file of that name, `SinkError` where it cannot be written or cannot
    hold the tracks.
    """

    def __init__(
        self, path: Path, video: PictureFormat | None, audio: AudioFormat | None, key: bytes = b""
    ) -> None:
        self.path = path
        self.container = container_of(video, audio)
        self.video, self.audio = video, audio
        self.size = None if video is None else video.size or self._guard(lambda: decoded_size(video, key))
        self.bytes = 0
        self.duration = 0
        """Ticks of 1/90000 s up to the last packet's beginning."""
        # Unbuffered: what FFmpeg has written is the system's, whatever becomes of this process.
        self._file: io.RawIOBase = self._guard(lambda: io.FileIO(path, "x+"))
        try:
            self._output = self._guard(self._open)
            self._streams: dict[str, av.stream.Stream] = {}
            if video is not None:
                self._streams["video"] = self._guard(lambda: self._add_video(video))
            if audio is not None:
                self._streams["audio"] = self._guard(lambda: self._add_audio(audio))
        except SinkError:
            self._file.close()
            path.unlink(missing_ok=True)
            raise

    def write(self, packet: Write) -> None:
        stream = self._streams[packet.kind]
        # FFmpeg writes to the packet that it muxes, so each unit gets a fresh one.
        made: av.Packet[Any] = av.Packet(packet.data)
        made.pts, made.dts, made.time_base = packet.pts, packet.dts, TS_TIME_BASE
        if packet.duration:
            made.duration = packet.duration
        made.is_keyframe = packet.key
        made.stream = stream
        self._guard(lambda: self._output.mux(made))
        self.duration = max(self.duration, packet.pts + packet.duration)
        self.bytes = self._file.tell()

    def close(self) -> None:
        """Write what makes it an ordinary file. Raises `SinkError`; what is written stays readable then."""
        try:
            self._guard(self._output.close)
        finally:
            self._file.close()
            self.bytes = os.path.getsize(self.path)

    def _open(self) -> av.container.OutputContainer:
        options = {**_OPTIONS[self.container], "flush_packets": "1", "max_interleave_delta": "1000000"}
        return av.open(self._file, "w", format=self.container, options=options)

    def _add_video(self, video: PictureFormat) -> av.stream.Stream:
        assert self.size is not None
        width, height = self.size
        return self._output.add_mux_stream(video.codec, width=width, height=height, time_base=TS_TIME_BASE)

    def _add_audio(self, audio: AudioFormat) -> av.stream.Stream:
        # The stream's own encoder only writes the codec's header; the packets come from elsewhere.
        stream = self._output.add_stream(_ENCODERS[audio.codec], rate=audio.rate)
        assert isinstance(stream, av.AudioStream)
        stream.codec_context.layout = _LAYOUTS[audio.channels]
        stream.time_base = Fraction(1, audio.rate)
        return stream

    def _guard(self, function: Callable[[], T]) -> T:
        try:
            return function()
        except FileExistsError:
            raise
        except (av.error.FFmpegError, ValueError, KeyError, OSError) as error:
            raise SinkError(f"{self.path.name} cannot be written: {error}") from error


def decoded_size(video: PictureFormat, key: bytes) -> tuple[int, int]:
    """The size of the pictures that a key picture begins; `ValueError` when it cannot be decoded."""
    decoder = av.CodecContext.create(video.codec, "r")
    assert isinstance(decoder, av.VideoCodecContext)
    frames = [*decoder.decode(av.Packet(key)), *decoder.decode(None)]
    if not frames:
        raise ValueError(f"no picture in {len(key)} bytes of {video.codec}")
    return frames[0].width, frames[0].height

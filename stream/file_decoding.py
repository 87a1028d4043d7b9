"""Frames of a file, by FFmpeg's own demuxer and all its decoding threads; latency does not matter here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias, cast

import av
import av.container
import av.error
import av.stream
from av.format import Flags
from av.stream import Disposition

from stream.clock import TICKS
from stream.codecs.audio_decoder import audio_frame_of
from stream.codecs.convert import square_width
from stream.codecs.video_decoder import FrameReader
from stream.errors import InvalidInput, SourceError
from stream.file_timeline import FileTimeline
from stream.frames import AudioFrame, VideoFrame
from stream.units import TS_TIME_BASE

log = logging.getLogger(__name__)

MAX_READ_ERRORS = 100
"""Errors of the demuxer in a row after which the file counts as cut off there."""
LENGTH = TICKS // 25
"""Of a picture in a file that tells neither its length nor a rate."""

Packet: TypeAlias = "av.Packet[Any]"


class FileDecoding:
    """Reads a file. ``container`` holds FFmpeg to one format, for files of strangers: some formats lead to
    other files.

    A file begins at 0, whatever its first timestamp is (`FileTimeline`); pictures without any follow each
    other by their length. ``copy_audio``, where set, gets the packets of the first audio track instead of
    ``put_audio`` its frames.
    Damaged packets are left out; ``errors`` counts them, and ``last_error`` says what was wrong. Damage among
    the very last pictures, of which each decoding thread holds one, may take those after it along uncounted.
    """

    def __init__(self, path: Path, container: str | None = None) -> None:
        self._path = path
        self.copy_audio: Callable[[Packet], None] | None = None
        self._aborted = False
        self._begun = False
        self.errors = 0
        self.last_error: str | None = None
        self.container = _open_input(path, container)
        streams = self.container.streams
        # The cover of a piece of music is a track too.
        self.video = next((s for s in streams.video if not s.disposition & Disposition.attached_pic), None)
        self.audio = streams.audio[0] if streams.audio else None
        if self.video is None:
            self.container.close()
            raise SourceError(f"{path} has no video track", field="input")
        self.video.thread_type = "AUTO"
        start = (self.container.start_time or 0) * TICKS // av.time_base
        leaps = bool(self.container.format.flags & cast("int", Flags.ts_discont.value))
        self._timeline = FileTimeline(start, leaps=leaps)
        self._next_picture = self._next_sound = 0
        self._copied: int | None = None
        self.read_until = 0.0

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of its pictures in square pixels."""
        assert self.video is not None
        context = self.video.codec_context
        return square_width(context.width, context.sample_aspect_ratio), context.height

    @property
    def duration(self) -> float | None:
        """Seconds, where the file says so."""
        return None if self.container.duration is None else self.container.duration / av.time_base

    def abort(self) -> None:
        self._aborted = True

    def close(self) -> None:
        """Close the file where `run` was never called, which closes it itself at its end."""
        if not self._begun:
            self.container.close()

    def run(self, put_video: Callable[[VideoFrame], bool], put_audio: Callable[[AudioFrame], bool]) -> None:
        self._begun = True
        try:
            self._read(put_video, put_audio)
        except av.error.FFmpegError as error:
            raise SourceError(
                f"{self._path} cannot be read on from {self.read_until:.3f} s: {error}"
            ) from error
        finally:
            self.container.close()

    def _read(self, put_video: Callable[[VideoFrame], bool], put_audio: Callable[[AudioFrame], bool]) -> None:
        reader = FrameReader()
        for packet in self._packets():
            if self._aborted:
                return
            self._shift(packet)
            if packet.stream is self.video:
                for frame in self._decoded(packet):
                    assert isinstance(frame, av.VideoFrame)
                    if not put_video(self._picture(reader, frame)):
                        return
            elif self.copy_audio is not None:
                self._copy(packet, self.copy_audio)
            else:
                for sound in self._decoded(packet):
                    assert isinstance(sound, av.AudioFrame)
                    put_audio(self._sound(sound))

    def _packets(self) -> Iterator[Packet]:
        """Every packet that can be read, and at the end an empty one for each track, which flushes it."""
        streams = [s for s in (self.video, self.audio) if s is not None]
        in_a_row = 0
        while in_a_row < MAX_READ_ERRORS:
            try:
                for packet in self.container.demux(streams):
                    in_a_row = 0
                    yield packet
            except av.error.InvalidDataError as error:
                # The demuxer goes on behind the damage when it is asked again, unless the file is cut off.
                if not in_a_row:
                    self._note(error)
                in_a_row += 1
            else:
                return
        for stream in streams:
            flush: Packet = av.Packet()
            flush.stream = stream
            yield flush

    def _decoded(self, packet: Packet) -> list[Any]:
        try:
            return list(packet.decode())
        except av.error.MemoryError:
            raise
        except av.error.FFmpegError as error:
            self._note(error)
            return []

    def _note(self, error: av.error.FFmpegError) -> None:
        self.errors += 1
        self.last_error = str(error)
        log.info("%s is damaged near %.3f s: %s", self._path, self.read_until, error)

    # -- times -------------------------------------------------------------------------------------------

    def _shift(self, packet: Packet) -> None:
        """Move a packet to where it belongs on the timeline."""
        base = packet.time_base
        dts, pts, duration = (_ticks(value, base) for value in (packet.dts, packet.pts, packet.duration))
        shift = round(self._timeline.shift(packet.stream.index, dts, pts, duration or 0) / (base * TICKS))
        packet.pts = None if packet.pts is None else packet.pts + shift
        packet.dts = None if packet.dts is None else packet.dts + shift

    def _picture(self, reader: FrameReader, frame: av.VideoFrame) -> VideoFrame:
        pts = _ticks(frame.pts, frame.time_base)
        pts = self._next_picture if pts is None else pts
        self._next_picture = pts + (_ticks(frame.duration, frame.time_base) or self._usual_length())
        self.read_until = pts / TICKS
        assert self.video is not None
        result = reader.read(frame, aspect=self.video.codec_context.sample_aspect_ratio)
        result.timestamp, result.time_base = pts, TS_TIME_BASE
        return result

    def _usual_length(self) -> int:
        rate = self.video.guessed_rate if self.video is not None else None
        return round(TICKS / rate) if rate else LENGTH

    def _sound(self, frame: av.AudioFrame) -> AudioFrame:
        pts = _ticks(frame.pts, frame.time_base)
        pts = self._next_sound if pts is None else pts
        self._next_sound = pts + frame.samples * TICKS // frame.sample_rate
        result = audio_frame_of(frame)
        result.timestamp, result.time_base = pts, TS_TIME_BASE
        return result

    def _copy(self, packet: Packet, put: Callable[[Packet], None]) -> None:
        """Hand a packet on as it is, unless it lies where the one before it does: parts may overlap."""
        if packet.dts is None or (self._copied is not None and packet.dts <= self._copied):
            return
        self._copied = packet.dts
        put(packet)


def _ticks(value: int | None, base: Fraction | None) -> int | None:
    return None if value is None or base is None else round(value * base * TICKS)


def url_of(path: Path) -> str:
    """How FFmpeg is told of a file, which takes what stands before a colon for a protocol."""
    return f"file:{path}"


def _open_input(path: Path, container: str | None) -> av.container.InputContainer:
    if not path.exists():
        raise InvalidInput(f"there is no file {path}", field="input")
    if path.is_dir():
        raise InvalidInput(f"{path} is a folder, not a media file", field="input")
    try:
        return av.open(url_of(path), format=container)
    except (av.error.FFmpegError, OSError) as error:
        raise SourceError(
            f"{path} is not a media file that FFmpeg can read: {error.strerror or error}", field="input"
        ) from error

"""A file in, a file out: every frame, in order, with the original sound where nobody touches it."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import av
import av.container
import av.error
import av.stream

from stream.clock import TICKS
from stream.codecs.audio_decoder import audio_frame_of
from stream.codecs.video_decoder import FrameReader
from stream.errors import InvalidInput, SinkError, SourceError
from stream.figures import Figures
from stream.frames import AudioFrame, VideoFrame
from stream.pipeline import Pipeline, PipelineSettings
from stream.processor import FrameProcessor
from stream.units import TS_TIME_BASE, EncodedUnit, Rendition, VideoParameters

log = logging.getLogger(__name__)

MAX_EARLY_PACKETS = 4096
"""Packets of sound that are held until the first picture settles its track; 82 s of Opus."""
MAX_READ_ERRORS = 100
"""Errors of the demuxer in a row after which the file counts as cut off there."""

T = TypeVar("T")
Packet: TypeAlias = "av.Packet[Any]"


class FileDecoding:
    """Reads a file with FFmpeg's own demuxer and all its decoding threads; latency does not matter here.
    ``container`` holds FFmpeg to one format, for files of strangers: some formats lead to other files.

    ``copy_audio``, where set, gets the packets of the first audio track instead of ``put_audio`` its frames.
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
        self.video = streams.video[0] if streams.video else None
        self.audio = streams.audio[0] if streams.audio else None
        if self.video is None:
            self.container.close()
            raise SourceError(f"{path} has no video track", field="input")
        self.video.thread_type = "AUTO"
        self.start = (self.container.start_time or 0) * TICKS // av.time_base
        self.read_until = 0.0

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
            if packet.stream is self.video:
                for frame in self._decoded(packet):
                    assert isinstance(frame, av.VideoFrame)
                    if not put_video(self._rebased(reader.read(frame))):
                        return
            elif self.copy_audio is not None:
                if packet.dts is not None:
                    self.copy_audio(packet)
            else:
                for sound in self._decoded(packet):
                    assert isinstance(sound, av.AudioFrame)
                    put_audio(self._rebased_sound(audio_frame_of(sound)))

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

    def _rebased(self, frame: VideoFrame) -> VideoFrame:
        """A file begins at 0, whatever its first timestamp is."""
        pts = round(frame.timestamp * frame.time_base * TICKS) - self.start
        self.read_until = pts / TICKS
        frame.timestamp, frame.time_base = pts, TS_TIME_BASE
        return frame

    def _rebased_sound(self, frame: AudioFrame) -> AudioFrame:
        frame.timestamp = round(frame.timestamp * frame.time_base * TICKS) - self.start
        frame.time_base = TS_TIME_BASE
        return frame


class FileSink:
    """Muxes encoded pictures, and either encoded or copied sound, into a container chosen by file name.

    It writes beside the target and puts the file in its place when it is whole. `write` is called from the
    encoding thread, `copy` from the decoding thread. Sound that comes before the first picture is held, as
    the file can only begin once every track is known. What comes after the end is ignored.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f".{path.stem}.part{path.suffix}")
        self._lock = threading.Lock()
        self._video: av.stream.Stream | None = None
        self._audio: av.stream.Stream | None = None
        self._early: list[Packet] = []
        self._start = 0
        self._ended = False
        self._container: av.container.OutputContainer = self._guard(lambda: av.open(str(self._part), "w"))

    def can_copy(self, codec: str) -> bool:
        """Whether the container takes sound of that codec as it is."""
        return codec in self._container.supported_codecs

    def add_copied_sound(self, source: av.AudioStream, start: int) -> None:
        """Sound comes by `copy`, from that track; ``start`` (1/90000 s) is where the file begins."""
        self._start = start
        self._audio = self._guard(lambda: self._container.add_stream_from_template(source))

    def add_encoded_sound(self, channels: int) -> None:
        """Sound comes as Opus units."""
        # The stream's own encoder only writes the Opus header; the units come from elsewhere.
        stream = self._guard(lambda: self._container.add_stream("libopus", rate=48_000))
        stream.codec_context.layout = "mono" if channels == 1 else "stereo"
        self._audio = stream

    def write(self, units: list[EncodedUnit], parameters: VideoParameters | None) -> None:
        """Units in the order in which they were encoded; the first picture settles the track."""
        with self._lock:
            for unit in units:
                if self._ended:
                    return
                if unit.kind == "video" and self._video is None:
                    assert parameters is not None
                    self._begin(parameters)
                stream = self._video if unit.kind == "video" else self._audio
                if stream is not None:
                    self._put(_packet_of(unit, stream))

    def copy(self, packet: Packet) -> None:
        """A packet of the original sound, which keeps its distance from the pictures."""
        assert self._audio is not None
        assert packet.time_base is not None
        shift = round(Fraction(self._start, TICKS) / packet.time_base)
        packet.pts = None if packet.pts is None else packet.pts - shift
        packet.dts = None if packet.dts is None else packet.dts - shift
        packet.stream = self._audio
        with self._lock:
            self._put(packet)

    def close(self) -> None:
        """Finish the file and put it in its place."""
        with self._lock:
            self._ended = True
            self._guard(self._container.close)
            os.replace(self._part, self._path)

    def discard(self) -> None:
        """Leave nothing behind; never raises."""
        with self._lock:
            self._ended = True
            try:
                self._container.close()
            except (av.error.FFmpegError, ValueError, OSError):
                # A header that was never written cannot be finished; the file goes anyway.
                pass
            try:
                self._part.unlink(missing_ok=True)
            except OSError as error:
                log.warning("%s cannot be removed: %s", self._part, error)

    def _put(self, packet: Packet) -> None:
        if self._video is not None:
            self._mux(packet)
            return
        if len(self._early) == MAX_EARLY_PACKETS:
            raise SinkError(
                f"{self._path} cannot be written: more than {MAX_EARLY_PACKETS} packets of sound came before"
                " the first picture",
                field="output",
            )
        self._early.append(packet)

    def _begin(self, parameters: VideoParameters) -> None:
        size: dict[str, Any] = {"width": parameters.width, "height": parameters.height}
        size["time_base"] = TS_TIME_BASE
        self._video = self._guard(lambda: self._container.add_mux_stream(parameters.codec, **size))
        for packet in self._early:
            self._mux(packet)
        self._early.clear()

    def _mux(self, packet: Packet) -> None:
        if not self._ended:
            self._guard(lambda: self._container.mux(packet))

    def _guard(self, function: Callable[[], T]) -> T:
        try:
            return function()
        except (av.error.FFmpegError, ValueError, OSError) as error:
            raise SinkError(f"{self._path} cannot be written: {error}", field="output") from error


def _packet_of(unit: EncodedUnit, stream: av.stream.Stream) -> Packet:
    # FFmpeg writes to the packet that it muxes, so each unit gets a fresh one.
    packet = av.Packet(unit.data)
    packet.pts = packet.dts = unit.pts
    packet.duration = unit.duration
    packet.time_base = TS_TIME_BASE
    packet.is_keyframe = unit.key
    packet.stream = stream
    return packet


def _open_input(path: Path, container: str | None) -> av.container.InputContainer:
    if not path.exists():
        raise InvalidInput(f"there is no file {path}", field="input")
    try:
        return av.open(str(path), format=container)
    except (av.error.FFmpegError, OSError) as error:
        raise SourceError(
            f"{path} is not a media file that FFmpeg can read: {error}", field="input"
        ) from error


class FileJob:
    """One file turned into another. `run` raises what stopped it, and then leaves no output behind.

    Both files are opened at once, so that what cannot be is said before a model is loaded. A job that is not
    run is to be closed. ``container``: as in `FileDecoding`. Raises `InvalidInput`, `SourceError` and
    `SinkError`.
    """

    def __init__(
        self,
        source: Path,
        target: Path,
        processor: FrameProcessor,
        settings: PipelineSettings,
        container: str | None = None,
    ) -> None:
        if source.resolve() == target.resolve():
            raise InvalidInput(f"input and output are the same file: {source}", field="output")
        if not target.parent.is_dir():
            raise InvalidInput(f"there is no folder {target.parent}", field="output")
        self._processor = processor
        self._target = target
        self._decoding = FileDecoding(source, container)
        try:
            self._sink = FileSink(target)
        except SinkError:
            self._decoding.close()
            raise
        self._settings = _whole(settings, self._decoding.audio)
        self._pipeline: Pipeline | None = None

    @property
    def duration(self) -> float | None:
        """Seconds of the input, where it says so."""
        return self._decoding.duration

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the input's pictures."""
        video = self._decoding.video
        assert video is not None
        return video.codec_context.width, video.codec_context.height

    @property
    def position(self) -> float:
        """Seconds of the input that have been read."""
        return self._decoding.read_until

    @property
    def errors(self) -> int:
        """Packets of the input that could not be decoded and are left out."""
        return self._decoding.errors

    @property
    def figures(self) -> Figures | None:
        return self._pipeline.figures if self._pipeline is not None else None

    @property
    def encoder_name(self) -> str | None:
        return self._pipeline.encoding.encoder_name if self._pipeline is not None else None

    def close(self) -> None:
        """Let go of both files; what was finished stays. Nothing to do after `run`."""
        self._decoding.close()
        self._sink.discard()

    async def run(self) -> None:
        """Load the processor, work on every frame, finish the file."""
        try:
            await self._processor.load_model()
            await self._processor.on_stream_start({})
            try:
                await self._run_pipeline(self._sink)
                await asyncio.to_thread(self._sink.close)
            finally:
                await self._processor.on_stream_stop()
        finally:
            await asyncio.to_thread(self.close)

    async def _run_pipeline(self, sink: FileSink) -> None:
        decoding, audio = self._decoding, self._decoding.audio
        touched = self._processor.info().audio
        if audio is not None and not touched and sink.can_copy(audio.codec_context.name):
            sink.add_copied_sound(audio, decoding.start)
            decoding.copy_audio = sink.copy
        elif audio is not None:
            sink.add_encoded_sound(self._settings.encoding.audio.channels)

        def deliver(units: list[EncodedUnit]) -> None:
            sink.write(units, video.parameters)

        pipeline = self._pipeline = Pipeline(decoding, self._processor, self._settings, deliver)
        video = pipeline.encoding.open(Rendition(profile=self._settings.encoding.video.profile))
        pipeline.encoding.open_sound()
        pipeline.ready = True
        await pipeline.run()
        counts = pipeline.figures.counts
        if not counts.frames_in:
            reason = f": {decoding.last_error}" if decoding.last_error else ""
            raise SourceError(
                f"no picture of the input could be decoded{reason}; {self._target} is not made", field="input"
            )
        if not counts.frames_out:
            raise SourceError(f"the processor put no picture out: {self._target} is not made")


def _whole(settings: PipelineSettings, audio: av.AudioStream | None) -> PipelineSettings:
    """The settings of a pipeline that loses nothing, its sound as the file's header will say it."""
    sound = settings.encoding.audio
    if audio is not None and not sound.channels:
        sound = replace(sound, channels=1 if audio.codec_context.channels == 1 else 2)
    encoding = replace(settings.encoding, fixed_size=True, lossless=True, audio=sound)
    return replace(settings, lossless=True, encoding=encoding)

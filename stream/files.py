"""A file in, a file out: every frame, in order, with the original sound where nobody touches it."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import av
import av.container
import av.error
import av.stream

from stream.errors import HeadraceError, InvalidInput, SinkError, SourceError
from stream.figures import Figures
from stream.file_decoding import FileDecoding, Packet, url_of
from stream.pipeline import Pipeline, PipelineSettings
from stream.processor import FrameProcessor
from stream.units import TS_TIME_BASE, EncodedUnit, Rendition, VideoParameters

log = logging.getLogger(__name__)

MAX_EARLY_PACKETS = 4096
"""Packets of sound that are held until the first picture settles its track; 82 s of Opus."""
SUFFIXES = (".mp4", ".mov", ".mkv", ".ts")
"""Some of those that pictures are written to."""

T = TypeVar("T")


class FileSink:
    """Muxes encoded pictures, and either encoded or copied sound, into a container chosen by file name.

    It writes beside the target and puts the file in its place when it is whole. `write` is called from the
    encoding thread, `copy` from the decoding thread. Sound that comes before the first picture is held, as
    the file can only begin once every track is known. What comes after the end is ignored.
    """

    def __init__(self, path: Path) -> None:
        _check_target(path)
        self._path = path
        self._part = path.with_name(f".{path.stem}.part{path.suffix}")
        self._lock = threading.Lock()
        self._video: av.stream.Stream | None = None
        self._audio: av.stream.Stream | None = None
        self._early: list[Packet] = []
        self._ended = False
        # FFmpeg itself opens the file with its first packet, when models have been loaded for it.
        self._guard(self._part.touch)
        try:
            self._container: av.container.OutputContainer = self._guard(
                lambda: av.open(url_of(self._part), "w")
            )
        except SinkError:
            self._part.unlink(missing_ok=True)
            raise

    def can_copy(self, codec: str) -> bool:
        """Whether the container takes sound of that codec as it is."""
        return codec in self._container.supported_codecs

    def add_copied_sound(self, source: av.AudioStream) -> None:
        """Sound comes by `copy`, from that track."""
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
        """A packet of the original sound, at its time among the pictures."""
        assert self._audio is not None
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
            reason = getattr(error, "strerror", None) or error
            raise SinkError(f"{self._path} cannot be written: {reason}", field="output") from error


def _check_target(path: Path) -> None:
    """Raise what is wrong with a name that pictures are to be written to, before anything is opened."""
    if path.is_dir():
        raise InvalidInput(f"{path} is a folder; the output is a file", field="output")
    if not path.parent.is_dir():
        raise InvalidInput(f"there is no folder {path.parent}", field="output")
    if not _takes_h264(path.suffix):
        raise SinkError(
            f"{path} cannot be written: its suffix must be that of a format that takes H.264,"
            f" as {', '.join(SUFFIXES)}, not {path.suffix!r}",
            field="output",
        )


def _takes_h264(suffix: str) -> bool:
    try:
        # Only what has a name tells its format by it; this one is never opened.
        av.open(f"name{suffix}", "w").add_mux_stream("h264", width=16, height=16)
    except (av.error.FFmpegError, ValueError):
        return False
    return True


def _packet_of(unit: EncodedUnit, stream: av.stream.Stream) -> Packet:
    # FFmpeg writes to the packet that it muxes, so each unit gets a fresh one.
    packet = av.Packet(unit.data)
    packet.pts = packet.dts = unit.pts
    packet.duration = unit.duration
    packet.time_base = TS_TIME_BASE
    packet.is_keyframe = unit.key
    packet.stream = stream
    return packet


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
        self._processor = processor
        self._target = target
        self._decoding = FileDecoding(source, container)
        try:
            self._sink = FileSink(target)
        except HeadraceError:
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
        return self._decoding.size

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
            sink.add_copied_sound(audio)
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

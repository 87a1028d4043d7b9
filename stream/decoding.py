"""The decoding stage for streams: access units in, frames out, in one thread."""

from __future__ import annotations

import logging
from collections.abc import Callable

from stream.codecs.audio_decoder import AudioDecoder
from stream.codecs.hardware import HardwarePolicy
from stream.codecs.video_decoder import VideoDecoder
from stream.errors import CodecError
from stream.frames import AudioFrame, VideoFrame
from stream.handoff import UnitsToThread
from stream.mpegts import AccessUnit

log = logging.getLogger(__name__)


class UnitDecoding:
    """Decodes one video and one audio track; a track that changes its codec gets a new decoder.

    `put` and `end` are called from the loop, `run` is the body of the thread.
    """

    def __init__(self, hardware: HardwarePolicy = "auto") -> None:
        self._units: UnitsToThread[AccessUnit] = UnitsToThread()
        self._hardware: HardwarePolicy = hardware
        self._video: VideoDecoder | None = None
        self._audio: AudioDecoder | None = None
        self._unusable: set[tuple[int, str]] = set()
        self._aborted = False
        self.last_problem: str | None = None

    @property
    def errors(self) -> int:
        """Access units that could not be decoded."""
        return sum(decoder.errors for decoder in (self._video, self._audio) if decoder is not None)

    @property
    def dropped(self) -> int:
        """Access units that were left out because decoding was too slow."""
        return self._units.dropped

    @property
    def fallback_reason(self) -> str | None:
        """Why the device no longer decodes, if it did."""
        return self._video.fallback_reason if self._video is not None else None

    @property
    def decoder_name(self) -> str | None:
        return self._video.name if self._video is not None else None

    def put(self, unit: AccessUnit) -> None:
        self._units.put(unit)

    def end(self) -> None:
        self._units.close()

    def abort(self) -> None:
        self._aborted = True
        self._units.abort()

    def run(self, put_video: Callable[[VideoFrame], bool], put_audio: Callable[[AudioFrame], bool]) -> None:
        while (unit := self._units.take()) is not None:
            if unit.kind == "video":
                for frame in self._decode_video(unit):
                    put_video(frame)
            else:
                for sound in self._decode_audio(unit):
                    put_audio(sound)
        if not self._aborted:
            for frame in self._video.flush() if self._video is not None else []:
                put_video(frame)

    def _decode_video(self, unit: AccessUnit) -> list[VideoFrame]:
        if self._video is None or self._video.codec != unit.codec:
            if not self._usable(unit):
                return []
            try:
                self._video = VideoDecoder(unit.codec, hardware=self._hardware)
            except CodecError as error:
                return self._refuse(unit, error)
        return self._video.decode(unit)

    def _decode_audio(self, unit: AccessUnit) -> list[AudioFrame]:
        if self._audio is None or self._audio.codec != unit.codec:
            if not self._usable(unit):
                return []
            try:
                self._audio = AudioDecoder(unit.codec)
            except CodecError as error:
                self._refuse(unit, error)
                return []
        return self._audio.decode(unit)

    def _usable(self, unit: AccessUnit) -> bool:
        return (unit.pid, unit.codec) not in self._unusable

    def _refuse(self, unit: AccessUnit, error: CodecError) -> list[VideoFrame]:
        self._unusable.add((unit.pid, unit.codec))
        self.last_problem = error.message
        log.error("the %s track (%s) is left out: %s", unit.kind, unit.codec, error.message)
        return []

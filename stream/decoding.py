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
    """Decodes one video and one audio track; a track that changes its codec gets a new decoder, and so does
    everything when another publisher takes over (`AccessUnit.epoch`).

    `put` and `end` are called from the loop, `run` is the body of the thread.
    """

    def __init__(self, hardware: HardwarePolicy = "auto") -> None:
        self._units: UnitsToThread[AccessUnit] = UnitsToThread()
        self._hardware: HardwarePolicy = hardware
        self._video: VideoDecoder | None = None
        self._audio: AudioDecoder | None = None
        self._unusable: set[tuple[int, int, str]] = set()
        self._epoch: int | None = None
        self._past_errors = 0
        self._past: tuple[str | None, str | None] = (None, None)
        self._aborted = False
        self.last_problem: str | None = None
        self.source_changed: Callable[[], None] = _nothing
        """Called in the thread between what one publisher sent and what the next one sends."""
        self.key_wanted: Callable[[], None] = _nothing
        """Called, from the thread or the loop, with each unit that leaves it waiting for a key picture."""
        self.taps: list[Callable[[AccessUnit], None]] = []
        """Called on the loop with every access unit that comes in; must neither wait nor raise."""

    @property
    def errors(self) -> int:
        """Access units that could not be decoded."""
        return self._past_errors + sum(d.errors for d in (self._video, self._audio) if d is not None)

    @property
    def dropped(self) -> int:
        """Access units that were left out because decoding was too slow."""
        return self._units.dropped

    @property
    def fallback_reason(self) -> str | None:
        """Why the device no longer decodes, if it did."""
        return self._video.fallback_reason if self._video is not None else self._past[1]

    @property
    def decoder_name(self) -> str | None:
        return self._video.name if self._video is not None else self._past[0]

    def put(self, unit: AccessUnit) -> None:
        self._units.put(unit)
        for tap in tuple(self.taps):
            tap(unit)
        if self._units.wants_key:
            self.key_wanted()

    def end(self) -> None:
        self._units.close()

    def abort(self) -> None:
        self._aborted = True
        self._units.abort()

    def run(self, put_video: Callable[[VideoFrame], bool], put_audio: Callable[[AudioFrame], bool]) -> None:
        while (unit := self._units.take()) is not None:
            if unit.epoch != self._epoch:
                self._begin_epoch(unit.epoch, put_video)
            if unit.kind == "video":
                for frame in self._decode_video(unit):
                    put_video(frame)
                if self._video is not None and self._video.wants_key:
                    self.key_wanted()
            else:
                for sound in self._decode_audio(unit):
                    put_audio(sound)
        if not self._aborted:
            self._flush(put_video)
        self._free()

    def _free(self) -> None:
        """Let go of the decoders, whose pictures take memory; what they were can still be told."""
        self._past_errors = self.errors
        self._past = (self.decoder_name, self.fallback_reason)
        self._video = self._audio = None

    def _begin_epoch(self, epoch: int, put_video: Callable[[VideoFrame], bool]) -> None:
        if self._epoch is not None:
            self._flush(put_video)
            self._past_errors = self.errors
            self._video = self._audio = None
            self.source_changed()
        self._epoch = epoch

    def _flush(self, put_video: Callable[[VideoFrame], bool]) -> None:
        for frame in self._video.flush() if self._video is not None else []:
            put_video(frame)

    def _decode_video(self, unit: AccessUnit) -> list[VideoFrame]:
        if self._video is None or self._video.codec != unit.codec:
            if not self._usable(unit):
                return []
            try:
                self._video = VideoDecoder(unit.codec, hardware=self._hardware)
            except CodecError as error:
                self._refuse(unit, error)
                return []
        frames = self._video.decode(unit)
        self.last_problem = self._video.problem or self.last_problem
        return frames

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
        return (unit.epoch, unit.pid, unit.codec) not in self._unusable

    def _refuse(self, unit: AccessUnit, error: CodecError) -> None:
        self._unusable.add((unit.epoch, unit.pid, unit.codec))
        self.last_problem = error.message
        log.error("the %s track (%s) is left out: %s", unit.kind, unit.codec, error.message)


def _nothing() -> None:
    """Nobody wants to know."""

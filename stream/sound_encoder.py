"""A session's sound encoded in the thread of its pictures, or beside them."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from stream.codecs.audio_encoder import AudioEncoder, AudioEncoderSettings
from stream.frames import AudioFrame
from stream.units import AudioParameters, EncodedUnit

MAX_AHEAD = 16
"""Stretches of sound that may wait for their encoder while pictures go on."""


class SoundEncoder:
    """Used by one thread. ``beside``: in a thread of its own, so that a file's pictures need not wait for it;
    a stretch's units then come with one of the next. Raises what `AudioEncoder` raises, then too."""

    def __init__(self, settings: AudioEncoderSettings, *, beside: bool) -> None:
        self._encoder = AudioEncoder(settings)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="encode sound") if beside else None
        self._under_way: deque[Future[list[EncodedUnit]]] = deque()

    @property
    def parameters(self) -> AudioParameters | None:
        """None until the first sound was encoded."""
        return self._encoder.parameters

    def encode(self, frame: AudioFrame) -> list[EncodedUnit]:
        """Samples in, the units that are ready out, in their order."""
        if self._worker is None:
            return self._encoder.encode(frame)
        self._under_way.append(self._worker.submit(self._encoder.encode, frame))
        return self._ready(MAX_AHEAD)

    def flush(self) -> list[EncodedUnit]:
        """All that is still held; the next sound begins anew."""
        return self._ready(0) + self._encoder.flush()

    def close(self) -> None:
        """End the thread, after the stretch that it is at."""
        if self._worker is not None:
            self._worker.shutdown(cancel_futures=True)

    def _ready(self, may_wait: int) -> list[EncodedUnit]:
        units: list[EncodedUnit] = []
        while self._under_way and (self._under_way[0].done() or len(self._under_way) > may_wait):
            units += self._under_way.popleft().result()
        return units

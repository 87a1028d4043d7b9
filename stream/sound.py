"""Sound on its way through a pipeline: past the processor, or through it, and onto the output timeline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stream.clock import TICKS, to_ticks
from stream.encoding import EncodingStage
from stream.encoding_parts import Heard
from stream.errors import EngineError, HeadraceError, ProcessorError
from stream.frames import AudioFrame
from stream.handoff import ToLoop
from stream.processor import FrameProcessor
from stream.results import listed, sound_of
from stream.timeouts import is_cancelled
from stream.units import TS_TIME_BASE

log = logging.getLogger(__name__)

MAX_WAITING = 100
"""Stretches of sound that wait for the processor; about two seconds."""
ENGINE_RETRIES = 3
"""How often a lossless pipeline offers a frame again to an engine that died over it."""
READY_TIMEOUT = 300.0
"""Seconds for which the engine's return is waited for."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    frame: AudioFrame
    pts: int


class SoundStage:
    """`put` is called by the decoding thread; `run` awaits the processor on the loop.

    Live, sound that nobody touches goes to the encoder at once. A processor that is away lets the original
    pass, because silence would be worse; lossless, its return is waited for.
    """

    def __init__(
        self,
        processor: FrameProcessor,
        encoding: EncodingStage,
        loop: asyncio.AbstractEventLoop,
        failed: Callable[[HeadraceError], object],
        *,
        lossless: bool,
    ) -> None:
        self._processor = processor
        self._encoding = encoding
        self._failed = failed
        self._lossless = lossless
        self._waiting: ToLoop[_Waiting] = ToLoop(loop, limit=MAX_WAITING, lossless=lossless)
        self._until = -(1 << 62)
        self._refused = 0

    @property
    def dropped(self) -> int:
        """Stretches that were left out before the encoder."""
        return self._waiting.dropped + self._refused

    def put(self, frame: AudioFrame, pts: int) -> bool:
        """A stretch that begins at ``pts``; False when nothing is wanted any more."""
        if self._lossless or self._processor.info().audio:
            return self._waiting.put(_Waiting(frame, pts))
        for sound in self._placed([frame], frame, pts):
            self._encoding.hear(sound)
        return True

    def close(self) -> None:
        self._waiting.close()

    def abort(self) -> None:
        self._waiting.abort()

    async def run(self) -> None:
        """Until `close` and everything is on its way, or `abort`."""
        while (taken := await self._waiting.take()) is not None:
            for sound in await self._processed(taken.frame, taken.pts):
                if self._lossless:
                    await self._encoding.hear_wait(sound)
                else:
                    self._encoding.hear(sound)

    async def _processed(self, frame: AudioFrame, pts: int) -> list[Heard]:
        try:
            frames = await self._offer(frame) if self._processor.info().audio else [frame]
            return self._placed(frames, frame, pts)
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            self._failed(ProcessorError("the processor's work was cancelled"))
        except HeadraceError as error:
            self._failed(error)
        except Exception as error:  # the edge to a processor that is not ours
            log.debug("the processor raised", exc_info=True)
            self._failed(ProcessorError(f"{type(error).__name__}: {error}"))
        return self._placed([frame], frame, pts)

    async def _offer(self, frame: AudioFrame) -> Sequence[AudioFrame]:
        for attempt in range(ENGINE_RETRIES + 1):
            try:
                result = listed(await self._processor.process_audio_async(frame), AudioFrame, MAX_WAITING)
                for sound in result:
                    sound_of(sound)  # what cannot be encoded would end the stream
                return result
            except EngineError:
                if not self._lossless:
                    return [frame]
                if attempt == ENGINE_RETRIES:
                    raise
                await self._processor.wait_ready(READY_TIMEOUT)
        raise AssertionError("unreachable")

    def _placed(self, frames: Sequence[AudioFrame], frame: AudioFrame, start: int) -> list[Heard]:
        """What became of ``frame``, which was heard at ``start``, on the output timeline."""
        source = to_ticks(frame)
        heard = []
        for sound in frames:
            pts = start + to_ticks(sound) - source
            if pts < self._until - TICKS:
                # Far before what was heard already: a processor's own timestamps, or a broken source's.
                self._refused += 1
                continue
            self._until = max(self._until, pts)
            timed = sound.replace_samples(sound.samples)
            timed.timestamp, timed.time_base = pts, TS_TIME_BASE
            heard.append(Heard(timed, pts))
        return heard

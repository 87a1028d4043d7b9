"""The encoding stage of a pipeline: one thread that turns pictures and sound into encoded units.

Pictures are encoded once for each rendition that somebody has open, sound once when somebody hears it, and
nothing for nobody.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from stream.av_order import AvOrder
from stream.canvas import Canvas, Scaler, Shown
from stream.clock import TICKS, ticks
from stream.encoders import EncoderOpener
from stream.encoding_parts import EncodingEvents, EncodingSettings, Heard
from stream.errors import CodecError, HeadraceError
from stream.frames import Picture, Timeline
from stream.renditions import EncoderFactory, OpenRendition, RenditionHandle
from stream.sound_encoder import SoundEncoder
from stream.units import AudioParameters, EncodedUnit, Rendition, VideoParameters

log = logging.getLogger(__name__)

AHEAD = ticks(40_000_000)
"""By how much sound may leave before its time in a segment or a file: a picture's length at 25 a second."""
LOOK_S = 0.1
"""Seconds after which the thread looks for sound that no picture came for."""
_ORDER = {"viewers": 0, "viewers_low": 1, "file": 2}
"""Who is waiting comes first."""


class EncodingStage:
    """Owns the encoders. `show` and `open` belong to the loop, `hear` to anyone."""

    def __init__(
        self,
        settings: EncodingSettings,
        loop: asyncio.AbstractEventLoop,
        events: EncodingEvents,
        *,
        open_encoder: EncoderFactory | None = None,
    ) -> None:
        self._settings = settings
        self._loop = loop
        self._events = events
        self._open_encoder = open_encoder or EncoderOpener(
            settings.video, live_key_interval=settings.viewers_key_interval
        )
        self._order: AvOrder[Shown, Heard] = AvOrder(
            max_pictures=4 if settings.lossless else 2, lossless=settings.lossless
        )
        self._changed = threading.Condition()
        self._room = asyncio.Event()
        self._ending = False
        self._aborted = False
        self._renditions: dict[Rendition, OpenRendition] = {}
        self._retired: list[OpenRendition] = []
        self._hearers = 0
        self._audio: SoundEncoder | None = None
        self._made: list[EncodedUnit] = []
        """Encoded, and not handed on yet; the thread's."""
        self.taps: list[Callable[[Picture, int], None]] = []
        """Called in the thread with each picture (yuv420p) and its pts before encoding; must not wait."""
        self._canvas = Canvas(fixed_size=settings.fixed_size)
        self._scaler = Scaler()

    # -- renditions, from the loop ---------------------------------------------------------------------

    def open(self, rendition: Rendition) -> RenditionHandle:
        """Have pictures encoded in that rendition until the handle is closed."""
        with self._changed:
            shared = self._renditions.get(rendition)
            if shared is None or shared.broken:
                bitrates = self._settings.bitrates(rendition)
                shared = OpenRendition(rendition, bitrates, self._open_encoder)
                renditions = {**self._renditions, rendition: shared}
                self._renditions = dict(sorted(renditions.items(), key=lambda item: _ORDER[item[0].purpose]))
            shared.users += 1
        return RenditionHandle(shared, self._release)

    def open_sound(self) -> Callable[[], None]:
        """Have the sound encoded until what is returned is called."""
        self._hearers += 1
        still_open = [True]

        def close() -> None:
            if still_open:
                still_open.clear()
                self._hearers -= 1

        return close

    def _release(self, shared: OpenRendition) -> None:
        with self._changed:
            shared.users -= 1
            if shared.users:
                return
            if self._renditions.get(shared.rendition) is shared:
                del self._renditions[shared.rendition]
            # Freed by the thread that uses it.
            self._retired.append(shared)
            self._changed.notify_all()

    # -- from the loop ---------------------------------------------------------------------------------

    def expect_video(self, expected: bool) -> None:
        with self._changed:
            self._order.expects_video = expected
            self._changed.notify_all()

    def show(self, pictures: list[Shown]) -> int:
        """Pictures that belong together; returns how many older ones they pushed out."""
        with self._changed:
            pushed_out = self._order.put_pictures(pictures)
            self._changed.notify_all()
        return len(pushed_out)

    async def show_wait(self, pictures: list[Shown]) -> None:
        """As `show`, but waits for room instead of pushing anything out."""
        await self._wait(lambda: self._order.has_room_for(len(pictures)))
        self.show(pictures)

    def hear(self, sound: Heard) -> None:
        with self._changed:
            self._order.put_sound(sound)
            # What leaves with a picture is taken with it: no need to wake a thread for each stretch.
            if not self._leaves_with_pictures() or self._order.sound_is_full:
                self._changed.notify_all()

    async def hear_wait(self, sound: Heard) -> None:
        await self._wait(lambda: not self._order.sound_is_full)
        self.hear(sound)

    def end(self) -> None:
        """Nothing more comes: encode what is held, flush, and let the thread end."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Let the thread end at once."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()
        self._room.set()

    async def _wait(self, has_room: Callable[[], bool]) -> None:
        while True:
            with self._changed:
                if self._aborted or has_room():
                    return
                self._room.clear()
            await self._room.wait()

    # -- what it says of itself ------------------------------------------------------------------------

    @property
    def dropped_audio(self) -> int:
        return self._order.dropped_audio

    @property
    def encoder_name(self) -> str | None:
        """FFmpeg's name of the encoder of the first rendition; None while nothing is encoded."""
        return next((name for r in self._current() if (name := r.encoder_name) is not None), None)

    @property
    def fallback_reason(self) -> str | None:
        """Why the device no longer encodes, if it did."""
        return next((why for r in self._current() if (why := r.fallback_reason) is not None), None)

    def parameters(self, rendition: Rendition) -> VideoParameters | None:
        """What a muxer must know of a rendition; None until its first picture was encoded."""
        shared = self._renditions.get(rendition)
        return shared.parameters if shared is not None else None

    def request_key(self, rendition: Rendition) -> None:
        """As `RenditionHandle.request_key`, for whoever has no handle; nothing happens when it is closed."""
        shared = self._renditions.get(rendition)
        if shared is not None:
            shared.request_key()

    @property
    def audio_parameters(self) -> AudioParameters | None:
        audio = self._audio
        return audio.parameters if audio is not None else None

    def report(self) -> list[dict[str, Any]]:
        """What is encoded at present."""
        return [shared.report() for shared in self._current()]

    def _current(self) -> list[OpenRendition]:
        with self._changed:
            return list(self._renditions.values())

    # -- the thread ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Encode until `end` or `abort`; the body of the stage's thread."""
        try:
            while (item := self._take()) is not None:
                if isinstance(item, Heard):
                    self._encode_sound(item)
                elif isinstance(item, Shown):
                    self._encode_picture(item)
                else:
                    # Closing an encoder takes milliseconds, in which nobody is to wait for the lock.
                    for rendition in item:
                        rendition.free()
            if not self._aborted:
                self._flush()
                self._deliver()
        except HeadraceError as error:
            self._events.encoding_failed(error)
        except Exception as error:  # the edge of a thread: nobody else would hear of it
            log.exception("the encoding thread broke")
            self._events.encoding_failed(CodecError(f"encoding broke: {type(error).__name__}: {error}"))
        finally:
            self._ended()

    def _ended(self) -> None:
        """Free what takes memory at once: a session's parts know each other, and wait for the collector."""
        with self._changed:
            self._aborted = True
            renditions = [*self._renditions.values(), *self._retired]
            self._retired.clear()
        for rendition in renditions:
            rendition.free()
        self._close_sound()
        self._made.clear()
        self._canvas.clear()
        self._wake_loop()

    def _deliver(self) -> None:
        made, self._made = self._made, []
        if made:
            self._events.encoded(made)

    def _take(self) -> Shown | Heard | list[OpenRendition] | None:
        """What to encode next, or the renditions that nobody uses any more; None at the end.

        A picture is handed on with the sound that leaves with it: one wake-up of the loop, one write.
        """
        if self._made:
            item = self._to_go_along()
            if item is not None:
                if self._settings.lossless:
                    self._wake_loop()
                return item
            self._deliver()
        with self._changed:
            while True:
                if self._aborted:
                    return None
                if self._retired:
                    retired, self._retired = self._retired, []
                    return retired
                now = ticks(time.monotonic_ns())
                item = self._order.next(now, ending=self._ending)
                if item is not None:
                    break
                if self._ending:
                    return None
                self._changed.wait(self._patience(now))
        if self._settings.lossless:
            self._wake_loop()
        return item

    def _to_go_along(self) -> Shown | Heard | None:
        """What is encoded before that which is made is handed on."""
        with self._changed:
            if self._aborted:
                return None
            now = ticks(time.monotonic_ns())
            sound = self._order.next_sound(now + self._ahead())
            if sound is not None:
                return sound
            alone = self._leaves_with_pictures() and all(unit.kind == "audio" for unit in self._made)
            return self._order.next(now) if alone and self._order.pictures else None

    def _patience(self, now: int) -> float | None:
        """For how many seconds to wait for something to encode; None: until there is."""
        due = self._order.wait(now)
        if self._leaves_with_pictures():
            return LOOK_S if due is None else (due + AHEAD) / TICKS
        return None if due is None else due / TICKS + 0.001

    def _leaves_with_pictures(self) -> bool:
        """Whether sound may wait a little for a picture to leave with."""
        return bool(self._order.expects_video) and not self._settings.lossless and self._ahead() > 0

    def _ahead(self) -> int:
        """How much too early sound may leave with a picture: not at all where it is played as it comes."""
        return 0 if any(r.purpose != "file" for r in self._renditions) else AHEAD

    def _wake_loop(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._room.set)
        except RuntimeError:
            pass

    def _encode_picture(self, shown: Shown) -> None:
        picture = self._canvas.draw(shown)
        if picture is None:
            return
        for tap in self.taps:
            tap(picture, shown.pts)
        first: Timeline | None = None
        in_size = self._scaler.sizes_of(picture)
        for rendition in self._current():
            units = self._encode_rendition(rendition, in_size(rendition.size_of(picture)), shown)
            if units:
                self._made += units
                first = first or units[-1].timeline
        if first is None:
            # Nobody takes it; this is when they could have had it.
            first = shown.timeline.copy()
            first.stamp("encoded")
        self._events.picture_left(shown, first)

    def _encode_rendition(
        self, rendition: OpenRendition, picture: Picture, shown: Shown
    ) -> list[EncodedUnit]:
        return self._guarded(rendition, lambda: rendition.encode(picture, shown))

    def _guarded(self, rendition: OpenRendition, work: Callable[[], list[EncodedUnit]]) -> list[EncodedUnit]:
        """What ``work`` gives; the fault of one encoder is the end of its rendition, and of no other."""
        if rendition.broken:
            return []
        try:
            return work()
        except HeadraceError as raised:
            error = raised
        except Exception as raised:  # the edge to one encoder: the others go on
            log.exception("an encoder broke")
            error = CodecError(f"encoding broke: {type(raised).__name__}: {raised}")
        log.error("%s cannot be encoded: %s", rendition.rendition, error.message)
        rendition.broken = True
        self._events.rendition_failed(rendition.rendition, error)
        return []

    def _encode_sound(self, heard: Heard) -> None:
        if not self._hearers:
            self._close_sound()
        else:
            if self._audio is None:
                self._audio = SoundEncoder(self._settings.audio, beside=self._settings.lossless)
            self._made += self._audio.encode(heard.frame)
        self._events.sound_left(heard.pts)

    def _close_sound(self) -> None:
        audio, self._audio = self._audio, None
        if audio is not None:
            audio.close()

    def _flush(self) -> None:
        for rendition in self._current():
            self._made += self._guarded(rendition, rendition.flush)
        if self._audio is not None:
            self._made += self._audio.flush()

"""The encoding stage of a pipeline: one thread that turns pictures and sound into encoded units."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from stream.clock import TICKS
from stream.codecs.audio_encoder import AudioEncoder, AudioEncoderSettings
from stream.codecs.convert import Converter
from stream.codecs.video_encoder import VideoEncoder, VideoEncoderSettings
from stream.errors import CodecError, HeadraceError
from stream.frames import AudioFrame, Picture, Timeline
from stream.overlay import Notice, OverlayPainter
from stream.presenter import AvOrder
from stream.units import AudioParameters, EncodedUnit, VideoParameters

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture to encode at ``pts`` (output timeline); without ``picture`` the last one, or a ``notice``."""

    pts: int
    picture: Picture | None = None
    notice: Notice | None = None
    size: tuple[int, int] | None = None
    timeline: Timeline = field(default_factory=Timeline)


@dataclass(frozen=True, slots=True)
class Heard:
    """Sound to encode; ``frame.timestamp`` counts 1/90000 s of the output timeline."""

    frame: AudioFrame
    pts: int

    @property
    def length(self) -> int:
        return int(self.frame.duration * TICKS)


@dataclass(frozen=True, slots=True)
class EncodingSettings:
    """``fixed_size``: the first picture's size holds to the end (a file's track cannot change it)."""

    video: VideoEncoderSettings = field(default_factory=VideoEncoderSettings)
    audio: AudioEncoderSettings = field(default_factory=AudioEncoderSettings)
    fixed_size: bool = False
    lossless: bool = False


class EncodingStage:
    """Owns the encoders. `show` belongs to the loop, `hear` to anyone, ``deliver`` and ``failed`` to it."""

    def __init__(
        self,
        settings: EncodingSettings,
        loop: asyncio.AbstractEventLoop,
        deliver: Callable[[list[EncodedUnit]], None],
        failed: Callable[[HeadraceError], None],
    ) -> None:
        self._settings = settings
        self._loop = loop
        self._deliver = deliver
        self._failed = failed
        self._order: AvOrder[Shown, Heard] = AvOrder(
            max_pictures=4 if settings.lossless else 2, lossless=settings.lossless
        )
        self._changed = threading.Condition()
        self._room = asyncio.Event()
        self._ending = False
        self._aborted = False
        self._key_wanted = False
        self._video: VideoEncoder | None = None
        self._audio: AudioEncoder | None = None
        self._last: Picture | None = None
        self.taps: list[Callable[[Picture, int], None]] = []
        """Called in the thread with each picture (yuv420p) and its pts before encoding; must not wait."""
        self._converter = Converter()
        self._painter = OverlayPainter()

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
        await self._wait(lambda: self._order.pictures == 0)
        self.show(pictures)

    def hear(self, sound: Heard) -> None:
        with self._changed:
            self._order.put_sound(sound)
            self._changed.notify_all()

    async def hear_wait(self, sound: Heard) -> None:
        await self._wait(lambda: not self._order.sound_is_full)
        self.hear(sound)

    def request_key(self) -> None:
        """The next picture becomes a key picture."""
        self._key_wanted = True

    @property
    def dropped_audio(self) -> int:
        return self._order.dropped_audio

    @property
    def encoder_name(self) -> str | None:
        return self._video.name if self._video is not None else None

    @property
    def fallback_reason(self) -> str | None:
        """Why the device no longer encodes, if it did."""
        return self._video.fallback_reason if self._video is not None else None

    @property
    def video_parameters(self) -> VideoParameters | None:
        return self._video.parameters if self._video is not None else None

    @property
    def audio_parameters(self) -> AudioParameters | None:
        return self._audio.parameters if self._audio is not None else None

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

    # -- the thread ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Encode until `end` or `abort`; the body of the stage's thread."""
        try:
            while (item := self._take()) is not None:
                units = self._encode_sound(item) if isinstance(item, Heard) else self._encode_picture(item)
                if units:
                    self._deliver(units)
            if not self._aborted:
                units = self._flush()
                if units:
                    self._deliver(units)
        except HeadraceError as error:
            self._failed(error)
        except Exception as error:  # the edge of a thread: nobody else would hear of it
            log.exception("the encoding thread broke")
            self._failed(CodecError(f"encoding broke: {type(error).__name__}: {error}"))
        finally:
            self._ended()

    def _ended(self) -> None:
        with self._changed:
            self._aborted = True
        self._wake_loop()

    def _take(self) -> Shown | Heard | None:
        with self._changed:
            while True:
                if self._aborted:
                    return None
                item = self._order.next(ending=self._ending)
                if item is not None:
                    break
                if self._ending:
                    return None
                self._changed.wait()
        if self._settings.lossless:
            self._wake_loop()
        return item

    def _wake_loop(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._room.set)
        except RuntimeError:
            pass

    def _encode_picture(self, shown: Shown) -> list[EncodedUnit]:
        overlay = shown.notice is not None
        picture = shown.picture if shown.picture is not None else self._last
        if shown.notice is not None:
            width, height = self._encoder_size() or shown.size or (512, 512)
            picture = self._painter.paint(self._last, width, height, shown.notice)
        if picture is None:
            return []
        encoder, picture, rebuilt = self._ready_encoder(picture)
        if shown.picture is not None:
            self._last = picture
        for tap in self.taps:
            tap(picture, shown.pts)
        key, self._key_wanted = self._key_wanted, False
        units = encoder.encode(
            picture,
            shown.pts,
            key=key,
            timeline=shown.timeline,
            repeat=shown.picture is None and not overlay,
            overlay=overlay,
        )
        return rebuilt + units

    def _ready_encoder(self, picture: Picture) -> tuple[VideoEncoder, Picture, list[EncodedUnit]]:
        """An encoder of that size, the picture as it takes it, and what an old encoder still held."""
        left: list[EncodedUnit] = []
        size = (picture.width, picture.height)
        current = self._encoder_size()
        if current is not None and size != current:
            if self._settings.fixed_size:
                picture = self._converter.scale(picture, *current, crop=False)
            else:
                assert self._video is not None
                left = self._video.flush()
                self._video, self._last = None, None
        if self._video is None:
            matrix = "bt709" if picture.format == "rgb24" else picture.matrix
            full = picture.format != "rgb24" and picture.full_range
            self._video = VideoEncoder(
                self._settings.video, picture.width, picture.height, matrix=matrix, full_range=full
            )
            log.info("encoding %dx%d with %s", picture.width, picture.height, self._video.name)
        video = self._video
        return video, self._converter.to_yuv420p(picture, video.matrix, video.full_range), left

    def _encoder_size(self) -> tuple[int, int] | None:
        return (self._video.width, self._video.height) if self._video is not None else None

    def _encode_sound(self, heard: Heard) -> list[EncodedUnit]:
        if self._audio is None:
            self._audio = AudioEncoder(self._settings.audio)
        return self._audio.encode(heard.frame)

    def _flush(self) -> list[EncodedUnit]:
        units = self._video.flush() if self._video is not None else []
        return units + (self._audio.flush() if self._audio is not None else [])

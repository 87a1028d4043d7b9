"""What is shown while there is no result, and in which order sound and pictures leave. Pure."""

from __future__ import annotations

from collections import deque
from typing import Generic, Literal, Protocol, TypeVar

from stream.clock import TICKS
from stream.mailbox import Mailbox
from stream.overlay import Notice, OverlaySettings

SECOND = 1_000_000_000


class Presenter:
    """Decides between the last picture again and a notice, from moments in nanoseconds.

    After half a second without a new picture the last one is repeated, so that key pictures, segments and
    viewers go on. While the processor is away (it said so), the last picture keeps the input's cadence
    and, after `OverlaySettings.after`, becomes a notice; before there is any result the notice comes at
    once. A processor that is merely silent gets the notice later when its calls have been long lately,
    so that a slow model does not blink.
    """

    def __init__(self, overlay: OverlaySettings, *, repeat_after: float = 0.4) -> None:
        self._overlay = overlay
        self._repeat_after = int(repeat_after * SECOND)
        self._last_shown: int | None = None
        self._last_result: int | None = None
        self._waiting_since: int | None = None
        self._call = 0
        self._away: Notice | None = None

    def result(self, now: int, took: int) -> None:
        """A result came, from a call of ``took`` ns."""
        self._last_result = self._last_shown = now
        # A slowly fading maximum: one quick frame does not make a slow model quick.
        self._call = max(took, self._call * 7 // 8)
        self._away = None
        self._waiting_since = None

    def silent(self) -> None:
        """The processor answered and chose to put nothing out."""
        self._away = None
        self._waiting_since = None

    def failed(self, now: int) -> None:
        """The processor raised."""
        self._away = None
        if self._waiting_since is None:
            self._waiting_since = self._last_result if self._last_result is not None else now

    def away(self, now: int, message: str, progress: float | None) -> None:
        """The processor is not there."""
        self._away = Notice(message, progress)
        if self._waiting_since is None:
            self._waiting_since = self._last_result if self._last_result is not None else now

    def began(self, now: int) -> None:
        """A frame was handed to the processor."""
        if self._waiting_since is None:
            self._waiting_since = now

    def arrived(self, now: int) -> Notice | Literal["repeat"] | None:
        """What to show for an input frame, besides handing it on."""
        notice = self._notice(now)
        if notice is not None:
            self._last_shown = now
            return notice
        if self._away is not None and self._last_result is not None:
            self._last_shown = now
            return "repeat"
        return None

    def idle(self, now: int) -> Notice | Literal["repeat"] | None:
        """What to show at ``now`` if nothing else was shown for a while."""
        if self._last_shown is None or now - self._last_shown < self._repeat_after:
            return None
        self._last_shown = now
        return self._notice(now) or "repeat"

    def _notice(self, now: int) -> Notice | None:
        if not self._overlay.enabled or self._waiting_since is None:
            return None
        if self._away is not None and self._last_result is None:
            return self._away
        patience = max(self._overlay.after * SECOND, 3 * self._call)
        if now - self._waiting_since < patience:
            return None
        return self._away or Notice(self._overlay.message)


class Timed(Protocol):
    """What `AvOrder` must know: where on the output timeline it begins, and how long it is (1/90000 s)."""

    @property
    def pts(self) -> int: ...


class TimedSound(Timed, Protocol):
    @property
    def length(self) -> int: ...


V = TypeVar("V", bound=Timed)
A = TypeVar("A", bound=TimedSound)


class AvOrder(Generic[V, A]):
    """What the encoder takes next: sound once the picture of its time has left, else a picture.

    Holds ``max_pictures`` pictures (the newest win) and ``max_sound`` seconds of sound. When there is more
    sound than that it leaves without its picture; before the first picture, or when there is twice as much
    because nothing is taken, the oldest is dropped. Lossless, nothing is dropped: whoever puts waits while
    `sound_is_full`. ``expects_video`` is None until it is known whether there will be pictures at all.
    """

    def __init__(self, *, max_pictures: int = 2, max_sound: float = 2.0, lossless: bool = False) -> None:
        self._lossless = lossless
        self._pictures: Mailbox[V] = Mailbox(max_pictures)
        self._sound: deque[A] = deque()
        self._held = 0
        self._max_sound = int(max_sound * TICKS)
        self._shown: int | None = None
        self.expects_video: bool | None = None
        self.dropped_audio = 0

    @property
    def dropped_video(self) -> int:
        return self._pictures.dropped

    @property
    def pictures(self) -> int:
        """How many pictures wait."""
        return len(self._pictures)

    @property
    def sound_is_full(self) -> bool:
        return self._held > self._max_sound

    def put_pictures(self, pictures: list[V]) -> list[V]:
        """Add pictures that belong together; returns those that were pushed out."""
        self.expects_video = True
        return self._pictures.put_all(pictures)

    def put_sound(self, sound: A) -> None:
        self._sound.append(sound)
        self._held += sound.length
        early = self._shown is None and self.expects_video is not False
        bound = self._max_sound if early else 2 * self._max_sound
        while self._held > bound and not self._lossless:
            self._pop_sound()
            self.dropped_audio += 1

    def next(self, *, ending: bool = False) -> V | A | None:
        """What is to be encoded now; ``ending``: nothing more comes, so sound waits for nothing."""
        if self._sound and self._may_leave(self._sound[0]):
            return self._pop_sound()
        picture = self._pictures.take()
        if picture is not None:
            self._shown = max(picture.pts, self._shown) if self._shown is not None else picture.pts
            return picture
        return self._pop_sound() if self._sound and ending else None

    def _may_leave(self, sound: A) -> bool:
        if self.expects_video is False or self._held > self._max_sound:
            return True
        return self._shown is not None and sound.pts <= self._shown

    def _pop_sound(self) -> A:
        sound = self._sound.popleft()
        self._held -= sound.length
        return sound

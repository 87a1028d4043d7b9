"""Renditions of one session's picture: who wants which, at which bitrate, and when a key picture is due.

An encoder lives as long as somebody has its rendition open. Handles belong to the loop, encoding
belongs to its thread; what crosses between them is one lock's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from stream.errors import InvalidInput
from stream.frames import Picture, Timeline
from stream.units import EncodedUnit, Rendition, VideoParameters

log = logging.getLogger(__name__)

KEY_INTERVAL = 0.5
"""Seconds between two key pictures of one rendition, however many ask."""
SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class BitrateRange:
    """Bits a second: where a class of renditions begins, and between what it may be set."""

    start: int
    lowest: int
    highest: int

    def __post_init__(self) -> None:
        if not 50_000 <= self.lowest <= self.start <= self.highest:
            raise InvalidInput(
                "bitrates must be 50000 <= lowest <= start <= highest, not "
                f"{self.lowest}, {self.start}, {self.highest}",
                field="bitrate",
            )

    def clamped(self, bits: int) -> int:
        return min(max(bits, self.lowest), self.highest)

    def shared(self, wishes: Mapping[object, int]) -> int:
        """What suits everybody who shares the rendition: the slowest decides, within the limits."""
        return self.clamped(min(wishes.values())) if wishes else self.start


class KeyGate:
    """Lets key pictures through that were asked for, one per ``interval`` (ns). Pure.

    A request within the interval is not lost but put off to its end.
    """

    def __init__(self, interval: int = int(KEY_INTERVAL * SECOND)) -> None:
        self._interval = interval
        self._asked = False
        self._made_at: int | None = None

    def ask(self) -> None:
        self._asked = True

    def is_due(self, now: int) -> bool:
        """Whether the picture of ``now`` is to be a key picture."""
        return self._asked and (self._made_at is None or now - self._made_at >= self._interval)

    def made(self, now: int) -> None:
        """A key picture was made at ``now``, for whatever reason: everybody who asked before has it."""
        self._asked, self._made_at = False, now


def fitted(width: int, height: int, limit: tuple[int, int] | None) -> tuple[int, int]:
    """The size within ``limit`` (either way round) that keeps the proportions; even where it is smaller."""
    if limit is None:
        return width, height
    wide, narrow = max(limit), min(limit)
    room = (wide, narrow) if width >= height else (narrow, wide)
    ratio = min(room[0] / width, room[1] / height)
    if ratio >= 1:
        return width, height
    return max(2, int(width * ratio) & ~1), max(2, int(height * ratio) & ~1)


class Marks(Protocol):
    """What goes with a picture into its units."""

    @property
    def pts(self) -> int: ...
    @property
    def timeline(self) -> Timeline: ...
    @property
    def repeat(self) -> bool: ...
    @property
    def overlay(self) -> bool: ...
    @property
    def source(self) -> int | None: ...


class PictureEncoder(Protocol):
    """What the encoders of all codecs have in common; used by one thread at a time."""

    fallback_reason: str | None

    @property
    def name(self) -> str: ...
    @property
    def parameters(self) -> VideoParameters: ...
    def encode(
        self,
        picture: Picture,
        pts: int,
        *,
        key: bool = False,
        timeline: Timeline | None = None,
        repeat: bool = False,
        overlay: bool = False,
        source: int | None = None,
    ) -> list[EncodedUnit]: ...
    def flush(self) -> list[EncodedUnit]: ...
    def set_bitrate(self, bits_per_second: int) -> None: ...


class EncoderFactory(Protocol):
    """Opens the encoder of a rendition for pictures of that size and colour."""

    def __call__(
        self, rendition: Rendition, picture: Picture, bitrate: int, bitrates: BitrateRange
    ) -> PictureEncoder: ...


class OpenRendition:
    """One rendition while somebody uses it. `encode` and `flush` belong to the encoding thread."""

    def __init__(self, rendition: Rendition, bitrates: BitrateRange, open_encoder: EncoderFactory) -> None:
        self.rendition = rendition
        self.users = 0
        self.parameters: VideoParameters | None = None
        self.encoder: PictureEncoder | None = None
        self.broken = False
        """Its encoder failed for good: nothing more comes of it."""
        self._bitrates = bitrates
        self._open_encoder = open_encoder
        self._lock = threading.Lock()
        self._wishes: dict[object, int] = {}
        self._bitrate = self._applied = bitrates.shared({})
        self._keys = KeyGate()
        self._opened_for: tuple[int, int, str, bool] | None = None
        self._past: tuple[str | None, str | None] = (None, None)

    @property
    def encoder_name(self) -> str | None:
        encoder = self.encoder
        return encoder.name if encoder is not None else self._past[0]

    @property
    def fallback_reason(self) -> str | None:
        encoder = self.encoder
        return encoder.fallback_reason if encoder is not None else self._past[1]

    def report(self) -> dict[str, Any]:
        """What it is and what makes it, for a session's status."""
        parameters = self.parameters
        return {
            "codec": self.rendition.codec,
            "profile": self.rendition.profile if self.rendition.codec == "h264" else None,
            "purpose": self.rendition.purpose,
            "encoder": self.encoder_name,
            "fallback": self.fallback_reason,
            "width": parameters.width if parameters else None,
            "height": parameters.height if parameters else None,
            "bitrate": self.bitrate,
            "users": self.users,
        }

    @property
    def bitrate(self) -> int:
        return self._bitrate

    def wish(self, user: object, bits: int) -> None:
        with self._lock:
            self._wishes[user] = bits
            self._bitrate = self._bitrates.shared(self._wishes)

    def forget(self, user: object) -> None:
        with self._lock:
            if self._wishes.pop(user, None) is not None and self._wishes:
                self._bitrate = self._bitrates.shared(self._wishes)

    def request_key(self) -> None:
        with self._lock:
            self._keys.ask()

    # -- the encoding thread ---------------------------------------------------------------------------

    def size_of(self, picture: Picture) -> tuple[int, int]:
        """The size in which it takes that picture."""
        return fitted(picture.width, picture.height, self.rendition.max_size)

    def encode(self, picture: Picture, shown: Marks) -> list[EncodedUnit]:
        """The units of a picture that is of the right size and colour; raises `HeadraceError`."""
        opened_for = (picture.width, picture.height, picture.matrix, picture.full_range)
        left: list[EncodedUnit] = []
        if self.encoder is not None and opened_for != self._opened_for:
            left, self.encoder = self.encoder.flush(), None
        with self._lock:
            bitrate, key = self._bitrate, self._keys.is_due(time.monotonic_ns())
        encoder = self.encoder
        if encoder is None:
            encoder = self._open_encoder(self.rendition, picture, bitrate, self._bitrates)
            size = f"{picture.width}x{picture.height}"
            log.info("encoding %s for %s with %s", size, self.rendition.purpose, encoder.name)
            self.encoder, self._opened_for, self._applied = encoder, opened_for, bitrate
        elif bitrate != self._applied:
            encoder.set_bitrate(bitrate)
            self._applied = bitrate
        units = encoder.encode(
            picture,
            shown.pts,
            key=key,
            timeline=shown.timeline,
            repeat=shown.repeat,
            overlay=shown.overlay,
            source=shown.source,
        )
        self.parameters = encoder.parameters
        if any(unit.key for unit in units):
            with self._lock:
                self._keys.made(time.monotonic_ns())
        return left + units

    def flush(self) -> list[EncodedUnit]:
        return self.encoder.flush() if self.encoder is not None else []

    def free(self) -> None:
        """Let go of the encoder and its memory; what it was can still be told."""
        self._past = (self.encoder_name, self.fallback_reason)
        self.encoder = None


class RenditionHandle:
    """One user's hold on a rendition; belongs to the loop. `close` it when the units are wanted no more."""

    def __init__(self, shared: OpenRendition, released: Callable[[OpenRendition], None]) -> None:
        self._shared = shared
        self._released = released
        self._closed = False

    @property
    def rendition(self) -> Rendition:
        return self._shared.rendition

    @property
    def parameters(self) -> VideoParameters | None:
        """None until the first picture was encoded."""
        return self._shared.parameters

    @property
    def bitrate(self) -> int:
        """Bits a second that are aimed at."""
        return self._shared.bitrate

    def request_key(self) -> None:
        """The next picture becomes a key picture, or the first one half a second after the last of them."""
        self._shared.request_key()

    def set_bitrate(self, bits: int) -> None:
        """Ask for a bitrate from the next picture on. The lowest of what the users of a rendition ask for
        holds, within the limits of its purpose."""
        if not self._closed:
            self._shared.wish(self, bits)

    def close(self) -> None:
        """Let go of the rendition; safe to call twice."""
        if not self._closed:
            self._closed = True
            self._shared.forget(self)
            self._released(self._shared)

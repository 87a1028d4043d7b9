"""What is shown while there is no result. Pure."""

from __future__ import annotations

from typing import Literal

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

"""What is shown while a processor has nothing to show: the original, a notice, or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from stream.frames import Picture, VideoFrame
from stream.overlay import Notice, OverlayPainter, OverlaySettings

__all__ = ["OverlayConfig", "OverlayController", "OverlayMode", "build_frame_overlay"]

Choice = Literal["result", "original", "notice", "nothing"]


class OverlayMode(Enum):
    """PROGRESSBAR shows a notice with a bar; PASSTHROUGH never does, and what is withheld stays away."""

    PROGRESSBAR = "progressbar"
    PASSTHROUGH = "passthrough"


@dataclass
class OverlayConfig:
    """``progress``: 0 to 1, None moves the bar to and fro; ``auto_timeout_seconds`` without a result until
    the notice comes by itself (None: never); ``frame_count_to_disable`` results in a row until it goes."""

    mode: OverlayMode = OverlayMode.PROGRESSBAR
    message: str = "Loading..."
    progress: float | None = None
    enabled: bool = True
    auto_timeout_seconds: float | None = 1.5
    frame_count_to_disable: int = 1

    def is_overlay_mode(self) -> bool:
        return self.mode is OverlayMode.PROGRESSBAR

    def is_passthrough_mode(self) -> bool:
        return self.mode is OverlayMode.PASSTHROUGH

    @property
    def shows(self) -> bool:
        """Whether there may be a notice at all."""
        return self.enabled and self.is_overlay_mode()

    def settings(self) -> OverlaySettings:
        """The same for the pipeline, which shows it while a call does not return."""
        timeout = self.auto_timeout_seconds
        return OverlaySettings(
            enabled=self.shows and timeout is not None, after=timeout or 0.0, message=self.message
        )


class OverlayController:
    """Decides for each frame, and paints; `set_manual_loading` may be called from any thread."""

    def __init__(
        self, overlay_config: OverlayConfig | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.overlay_config = overlay_config or OverlayConfig()
        self._clock = clock
        self._painter = OverlayPainter()
        self.reset()

    def reset(self) -> None:
        """A new stream begins."""
        self._last = self._clock()
        self._automatic = False
        self._manual = False
        self._in_a_row = 0

    def apply_overlay_config(self, config: OverlayConfig | None) -> None:
        """Go on with other settings."""
        self.overlay_config = config or OverlayConfig()
        if not self.overlay_config.shows:
            self._automatic = self._manual = False

    def set_manual_loading(self, active: bool) -> None:
        """Show the notice in place of all frames, which the processor then does not get, or stop that."""
        self._manual = bool(active)
        self._automatic = False
        self._last = self._clock()

    def should_skip_processing(self) -> bool:
        """Whether the processor is to be left alone."""
        return self._manual and self.overlay_config.shows

    def choose(self, got_result: bool) -> Choice:
        """What to show for a frame of which the processor made something, or nothing."""
        config = self.overlay_config
        if not config.shows:
            return "result" if got_result else "nothing"
        now = self._clock()
        if got_result:
            self._last = now
            self._in_a_row += 1
            if self._in_a_row >= config.frame_count_to_disable:
                self._automatic = False
        else:
            self._in_a_row = 0
            timeout = config.auto_timeout_seconds
            if timeout is not None and now - self._last >= timeout:
                self._automatic = True
        if self._manual or self._automatic:
            return "notice"
        return "result" if got_result else "original"

    def update_and_apply(
        self, original_frame: VideoFrame, processed_frame: VideoFrame | None
    ) -> VideoFrame | None:
        """The frame to show: see `choose`."""
        choice = self.choose(processed_frame is not None)
        if choice == "notice":
            return self.notice(original_frame)
        return {"result": processed_frame, "original": original_frame, "nothing": None}[choice]

    def notice(self, frame: VideoFrame) -> VideoFrame:
        """The notice at the moment and in the size of ``frame``."""
        config = self.overlay_config
        return _with_notice(self._painter, frame, config.message, config.progress)


def build_frame_overlay(
    original_frame: VideoFrame,
    message: str = "Loading...",
    frame_counter: int = 0,
    progress: float | None = None,
) -> VideoFrame:
    """A notice at the moment and in the size of a frame. Where ``progress`` is not known the bar follows the
    clock; ``frame_counter`` is taken for the sake of callers that have one."""
    return _with_notice(OverlayPainter(), original_frame, message, progress)


def _with_notice(
    painter: OverlayPainter, frame: VideoFrame, message: str, progress: float | None
) -> VideoFrame:
    if progress is not None and not 0 <= progress <= 1:
        raise ValueError(f"progress must be from 0 to 1, not {progress}")
    picture: Picture = painter.paint(None, frame.width, frame.height, Notice(message, progress))
    shown = frame.replace_picture(picture)
    shown.is_notice = True
    return shown

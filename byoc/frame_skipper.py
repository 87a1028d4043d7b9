"""Which frames are left out. The newest always wins, so there is little to set."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from stream.errors import InvalidInput

if TYPE_CHECKING:
    from byoc.fps_meter import FPSMeter


class FrameProcessingResult(Enum):
    """Kept for the sake of its name; no queue here says so."""

    SKIPPED = "skipped"


@dataclass
class FrameSkipConfig:
    """``target_fps``: at most so many frames a second are taken, evenly (None: all that can be managed).

    The others are taken and mean nothing: a processor always gets the newest frame, and nothing queues.
    """

    target_fps: float | None = None
    adaptation_cooldown: float = 0.5
    max_queue_size: int = 15
    max_cleanup_frames: int = 50

    def __post_init__(self) -> None:
        if self.target_fps is not None and not 0 < self.target_fps <= 240:
            raise InvalidInput(
                f"target_fps must be over 0 and up to 240, or None, not {self.target_fps}", field="target_fps"
            )


class AdaptiveFrameSkipper:
    """Holds a `FrameSkipConfig`. What it did to a queue the pipeline does without one."""

    def __init__(self, config: FrameSkipConfig, fps_meter: FPSMeter | None = None) -> None:
        self.config = config
        self.fps_meter = fps_meter

    def set_target_fps(self, target_fps: float | None) -> None:
        self.config = FrameSkipConfig(target_fps)

    def reset(self) -> None:
        """Nothing is held between streams."""

    async def process_video_queue(self, video_queue: Any, timeout: float = 5) -> Any:
        """There is no queue to take from: raises `NotImplementedError`."""
        raise NotImplementedError(
            "the pipeline hands the newest frame to process_video_async; see FrameSkipConfig"
        )

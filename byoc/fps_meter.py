"""Frame rates over a sliding window."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from stream.stats import RateMeter
from stream.status import pytrickle_fps

if TYPE_CHECKING:
    from stream.session import Session


class FPSMeter:
    """Counts frames in and out, of pictures and of sound."""

    def __init__(self, window_seconds: float = 10.0, max_samples: int = 600) -> None:
        self.window_seconds = window_seconds
        self._max_samples = max_samples
        self.reset()

    def reset(self) -> None:
        """Forget all frames."""
        names = ("ingress_video", "ingress_audio", "egress_video", "egress_audio")
        self._meters = {name: RateMeter(self.window_seconds, self._max_samples) for name in names}

    def record_ingress_video_frame(self) -> None:
        self._tick("ingress_video")

    def record_ingress_audio_frame(self) -> None:
        self._tick("ingress_audio")

    def record_egress_video_frame(self) -> None:
        self._tick("egress_video")

    def record_egress_audio_frame(self) -> None:
        self._tick("egress_audio")

    def get_ingress_video_fps(self) -> float:
        return self.get_fps_stats()["ingress_video_fps"]

    def get_ingress_audio_fps(self) -> float:
        return self.get_fps_stats()["ingress_audio_fps"]

    def get_egress_video_fps(self) -> float:
        return self.get_fps_stats()["egress_video_fps"]

    def get_egress_audio_fps(self) -> float:
        return self.get_fps_stats()["egress_audio_fps"]

    def get_fps_stats(self) -> dict[str, float]:
        """The four rates, in frames a second; 0 with fewer than two frames in the window."""
        now = time.monotonic_ns()
        return {f"{name}_fps": meter.rate(now) for name, meter in self._meters.items()}

    def _tick(self, name: str) -> None:
        self._meters[name].tick(time.monotonic_ns())


class SessionFps(FPSMeter):
    """The rates of a stream, which its session counts itself."""

    def __init__(self) -> None:
        super().__init__()
        self.session: Session | None = None

    def get_fps_stats(self) -> dict[str, float]:
        return super().get_fps_stats() if self.session is None else pytrickle_fps(self.session)

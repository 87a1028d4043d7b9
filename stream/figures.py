"""What a pipeline counts and measures of itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from stream.canvas import Shown
from stream.clock import TICKS
from stream.errors import HeadraceError
from stream.frames import Timeline
from stream.stats import LatencyBook, RateMeter

SKEW_MEMORY = 2_000_000_000
"""Nanoseconds for which the last picture and the last sound are worth comparing."""


@dataclass(slots=True)
class PipelineCounts:
    """Everything counted since the start. ``frames_out`` counts a picture once, in however many renditions it
    goes out, and also while nobody takes it."""

    frames_in: int = 0
    frames_out: int = 0
    dropped_rate: int = 0
    dropped_busy: int = 0
    dropped_encoder: int = 0
    dropped_away: int = 0
    repeated: int = 0
    overlaid: int = 0
    failed: int = 0
    withheld: int = 0
    audio_in: int = 0


@dataclass(slots=True)
class Figures:
    """What happened when; moments in nanoseconds of the monotonic clock."""

    counts: PipelineCounts = field(default_factory=PipelineCounts)
    latency: LatencyBook = field(default_factory=LatencyBook)
    input_rate: RateMeter = field(default_factory=RateMeter)
    output_rate: RateMeter = field(default_factory=RateMeter)
    result_rate: RateMeter = field(default_factory=RateMeter)
    audio_in_rate: RateMeter = field(default_factory=RateMeter)
    audio_out_rate: RateMeter = field(default_factory=RateMeter)
    answer_rate: RateMeter = field(default_factory=RateMeter)
    """Results, and frames for which the processor chose to put nothing out."""
    first_answer: int | None = None
    last_error: HeadraceError | None = None
    last_error_at: int | None = None
    video_out: int | None = None
    """Presentation time of the last picture put out, in ticks."""
    audio_out: int | None = None
    """The same of the sound."""

    def picture_left(self, shown: Shown, timeline: Timeline, now: int) -> None:
        """A picture was put out; ``timeline`` is that of the rendition which had it first."""
        self.output_rate.tick(now)
        self.video_out = shown.pts
        self.counts.frames_out += 1
        self.counts.repeated += shown.repeat
        self.counts.overlaid += shown.overlay
        if shown.is_result:
            self.latency.add(timeline)

    def sound_left(self, pts: int, now: int) -> None:
        self.audio_out_rate.tick(now)
        self.audio_out = pts

    def av_skew(self, now: int) -> float | None:
        """Seconds by which the sound last put out is ahead of the picture; None unless both are going out."""
        if self.video_out is None or self.audio_out is None:
            return None
        last = (self.output_rate.last or 0, self.audio_out_rate.last or 0)
        if now - min(last) > SKEW_MEMORY:
            return None
        return (self.audio_out - self.video_out) / TICKS

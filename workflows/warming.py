"""Taking a workflow through made-up frames before it goes into force, so that no real one pays for the first
run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stream.errors import ProcessorError
from workflows.plan import Plan
from workflows.sound import buffer_length, silence

RUNS = 2
"""The first makes what is made at first use, the second shows that it is made."""
SECONDS = 60.0
"""No further run begins after them."""
WIDTH, HEIGHT = 512, 512

Report = Callable[[str, float], None]


@dataclass
class Size:
    """What frames look like, as far as is known."""

    width: int = WIDTH
    height: int = HEIGHT
    device: Any = "cpu"

    def made_up(self) -> Any:
        """A picture of noise, uniform in 0..1: 1 x H x W x 3."""
        import torch

        with torch.inference_mode(False):
            return torch.rand(1, self.height, self.width, 3, device=self.device)


async def warm_up(plans: Sequence[Plan], size: Size, report: Report, runs: int = RUNS) -> None:
    """Run the flows of ``plans`` on made-up frames, and let what pictures need of sound begin with silence.

    Raises `ProcessorError` that says so when a workflow fails.
    """
    until = time.monotonic() + SECONDS
    total = max(1, runs * len(plans))
    for number, plan in enumerate(plans):
        with plan.trial():
            for run in range(runs):
                report("Warming up", (number * runs + run) / total)
                if run and time.monotonic() > until:
                    break
                await _run(plan, size)
        if plan.needs_sound:
            await plan.hear(silence(buffer_length(plan.graph)))
    report("Warmed up", 1.0)


async def _run(plan: Plan, size: Size) -> None:
    try:
        with plan.guard():
            if plan.needs_pictures:
                await plan.run_async(size.made_up())
            if plan.hears:
                channels = 2 if plan.has_audio_output else 1
                await plan.hear(silence(buffer_length(plan.graph), channels=channels))
            if plan.sees and not plan.is_passthrough:
                await plan.run_async(size.made_up())
            if plan.is_damaged:
                await plan.repair()
    except ProcessorError as error:
        message = f"on a made-up picture of {size.width} x {size.height}: {error.message}"
        raise ProcessorError(message, field=error.field, details=error.details) from error

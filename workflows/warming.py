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
"""On a device that compiles or captures what it runs: the first makes it, the second shows that it is made.
A CPU does neither, and one run is enough there."""
SECONDS = 60.0
"""No further run begins after them."""
WIDTH, HEIGHT = 512, 512
_SMALL = 64
"""Pixels a side of the picture on which a plan of plain pixel nodes is tried: it makes nothing at first use
that depends on the size."""

Report = Callable[[str, float], None]


@dataclass
class Size:
    """What frames look like, as far as is known; ``device`` is where they are."""

    width: int = WIDTH
    height: int = HEIGHT
    device: Any = "cpu"

    def made_up(self) -> Any:
        """A picture of noise, uniform in 0..1: 1 x H x W x 3."""
        import torch

        with torch.inference_mode(False):
            return torch.rand(1, self.height, self.width, 3, device=self.device)

    def small(self) -> Size:
        """At most `_SMALL` a side."""
        return Size(min(self.width, _SMALL), min(self.height, _SMALL), self.device)


def runs_on(device: Any) -> int:
    """How often workflows are run on made-up frames where models work on ``device``."""
    return 1 if str(device) == "cpu" else RUNS


async def warm_up(plans: Sequence[Plan], size: Size, report: Report, runs: int = RUNS) -> None:
    """Run the flows of ``plans`` on made-up frames, and let what pictures need of sound begin with silence.

    Plans of plain pixel nodes are run once, on a small frame. Raises `ProcessorError` that says so when a
    workflow fails.
    """
    until = time.monotonic() + SECONDS
    for number, plan in enumerate(plans):
        plain = plan.is_plain
        times = min(runs, 1) if plain else runs
        with plan.trial():
            for run in range(times):
                report("Warming up", (number + run / times) / len(plans))
                if run and time.monotonic() > until:
                    break
                if not plain or not await _passes(plan, size.small()):
                    await _run(plan, size)
        if plan.needs_sound:
            await plan.hear(silence(buffer_length(plan.graph)))
    report("Warmed up", 1.0)


async def _passes(plan: Plan, size: Size) -> bool:
    """Whether a run succeeds; what fails on a small picture need not fail on one of the stream's size."""
    try:
        await _run(plan, size)
    except ProcessorError:
        return False
    return True


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

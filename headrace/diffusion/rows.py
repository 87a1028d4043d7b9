"""The rows of one stream in a call of the network: all that a step needs to know of them, as data.

A row is a latent at a step of the schedule. Rows that stand for the negative prompt come first. What differs
between kinds of guidance, steps and first frames is in numbers and indices, so that one and the same call
takes rows of any streams (`headrace.diffusion.step`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from headrace.diffusion.asked import Conditioning, Settings

COLUMNS = (
    "signal", "noise", "from_input", "from_prediction", "to_next", "scale", "real_negative",
    "virtual_negative", "fresh", "kept",
)  # fmt: skip
"""Of `RowConstants.columns`. The first four are those of `StepConstants`; ``to_next`` takes the residual
noise to the next step. ``scale`` is the guidance's; ``real_negative`` and ``virtual_negative`` weigh the
partner's prediction and the residual; ``fresh``: the former becomes the latter; ``kept``: it goes on."""

NEW = -1
"""In ``source``: the new frame."""


@dataclass(frozen=True, slots=True, eq=False)
class RowConstants:
    """What holds for R rows until settings change. Tensors are float32, R x ...; tuples have an entry a row.

    ``offset`` is added to the latents; ``base`` to the residual noise that came from the frame before;
    ``next_noise`` to that which goes to the next. ``source``: which row's clean latent a row stands on, or
    `NEW`; ``residual_from``: whose residual it takes; ``partner``: the row of its negative prompt.
    """

    columns: torch.Tensor
    offset: torch.Tensor
    base: torch.Tensor
    next_noise: torch.Tensor
    scales: tuple[torch.Tensor, ...]
    times: tuple[int, ...]
    prompts: tuple[Conditioning, ...]
    source: tuple[int, ...]
    residual_from: tuple[int, ...]
    partner: tuple[int, ...]
    negatives: int = 0
    """How many of them stand for the negative prompt; these come first."""
    ready: dict[Any, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """Time and text for them, by the view that worked them out."""

    @property
    def count(self) -> int:
        return len(self.source)


def constants_of(settings: Settings, *, starts: bool, reference: bool, number: int = 0) -> RowConstants:
    """The rows of round ``number``. ``starts``: all stand on the new frame; in the authors' way
    (``reference``) those beyond the first begin as nothing."""
    return _Maker(settings, starts, reference, number).made()


class _Maker:
    def __init__(self, settings: Settings, starts: bool, reference: bool, number: int) -> None:
        self.settings, self.starts, self.number = settings, starts, number
        steps = settings.steps
        self.places = [number] if settings.sequential else list(range(len(steps)))
        """Of the positive rows: their steps."""
        self.acting = settings.guidance.acting
        negatives = {"full": len(self.places), "initialize": 1}.get(self.acting, 0)
        self.negatives = self.places[:negatives]
        self.empty = starts and reference
        self.begins = len(self.places) > 1 or not reference
        """Whether a new frame begins with its own noise. The authors' single step goes on with what the frame
        before has left, which grows without end where the noise outweighs the signal."""

    def made(self) -> RowConstants:
        settings, noise = self.settings, self.settings.noise
        order, negatives = [*self.negatives, *self.places], len(self.negatives)
        all_rows = [*((place, False) for place in self.negatives), *((place, True) for place in self.places)]
        slots = noise[order]
        added = [
            settings.steps[place].noise if place == 0 or (settings.renoise and not self.empty) else 0.0
            for place in order
        ]
        offset = column(added, noise) * slots
        base = torch.zeros_like(slots)
        if self.begins and self.places[0] == 0:
            base[negatives] = noise[0]
        after = [(place + 1) % len(settings.steps) for place in order]
        return RowConstants(
            columns=torch.tensor(
                [self._columns(place, positive) for place, positive in all_rows], dtype=torch.float32
            ).to(noise.device),
            offset=offset,
            base=base,
            next_noise=noise[after],
            scales=tuple(
                column([control.scale_at(settings.steps[place]) for place in order], noise)
                for control in settings.controls
                if control.scale > 0
            ),
            times=tuple(settings.steps[place].t for place in order),
            prompts=self._prompts(),
            source=tuple(self._source(place) for place in order),
            residual_from=tuple(range(negatives)) + tuple(
                negatives + max(0, place - 1) if len(self.places) > 1 else negatives for place in self.places
            ),
            partner=tuple(range(negatives)) + tuple(
                min(index, negatives - 1) if negatives else index for index in range(len(self.places))
            ),
            negatives=negatives,
        )  # fmt: skip

    def _columns(self, place: int, positive: bool) -> list[float]:
        steps, guidance = self.settings.steps, self.settings.guidance
        step = steps[place]
        following = (
            (steps[place + 1].signal, steps[place + 1].noise) if place + 1 < len(steps) else (1.0, 1.0)
        )
        acts = positive and self.acting != "none"
        fresh = acts and self.acting == "initialize" and place == 0
        virtual = acts and self.acting in ("self", "initialize")
        first = self.begins and place == 0
        return [
            0.0 if self.empty and place > 0 else step.signal,
            step.noise,
            step.from_input,
            step.from_prediction,
            following[0] / following[1],
            guidance.scale if acts else 1.0,
            1.0 if acts and self.acting == "full" else 0.0,
            guidance.delta if virtual else 0.0,
            1.0 if fresh else 0.0,
            1.0 if virtual and not first else 0.0,
        ]

    def _source(self, place: int) -> int:
        positive = len(self.negatives)
        if self.settings.sequential:
            return NEW if self.number == 0 else positive
        return NEW if self.starts or place == 0 else positive + place - 1

    def _prompts(self) -> tuple[Conditioning, ...]:
        positive = (self.settings.positive,) * len(self.places)
        if not self.negatives:
            return positive
        assert self.settings.negative is not None
        return (self.settings.negative,) * len(self.negatives) + positive


def column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    """One value a row, float32: half precision shows in what is divided by a small signal."""
    return torch.tensor(values, dtype=torch.float32).to(like.device).view(-1, 1, 1, 1)

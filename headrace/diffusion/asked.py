"""What is asked of a stream: steps, noise, prompts, guidance, nets and adapters. None of it ever changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from headrace.diffusion.schedule import StepConstants
from stream.errors import InvalidInput

if TYPE_CHECKING:
    from headrace.diffusion.view import NetworkView

GuidanceMode = Literal["none", "self", "initialize", "full"]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Conditioning:
    """What a prompt is to the network: ``text`` 1 x tokens x width; for SDXL ``pooled``, 1 x width, too."""

    text: torch.Tensor
    pooled: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Guidance:
    """Classifier-free guidance; it acts only with a ``scale`` above 1.

    ``full`` doubles the rows; ``self`` and ``initialize`` are the residual guidance of the paper, which takes
    no further row, or one; ``delta`` is the weight of its virtual negative prediction.
    """

    mode: GuidanceMode = "none"
    scale: float = 1.0
    delta: float = 1.0

    @property
    def acting(self) -> GuidanceMode:
        return self.mode if self.scale > 1.0 else "none"


@dataclass(frozen=True, slots=True, eq=False)
class Control:
    """A ControlNet at work: ``net`` (diffusers), from a frame (1 x H x W x 3) to its picture, its weight, and
    the part of the schedule (0 to 1) in which it acts."""

    net: Any
    preprocess: Callable[[torch.Tensor], torch.Tensor]
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def scale_at(self, step: StepConstants) -> float:
        return self.scale if self.start <= step.position <= self.end else 0.0


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Adapters:
    """What changes the network for a stream: a ``view`` with branches, and what these are given for its rows.

    ``given``: tensors 1 x ..., the same for every row of the stream, by name; all streams with the same view
    give the same names and shapes. ``negative``: others in their place, for rows of the negative prompt.
    Another one of these is made for every change.
    """

    view: NetworkView
    given: Mapping[str, torch.Tensor]
    negative: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Settings:
    """All that may change between two frames. ``noise`` is n x C x h x w, float32, one slot for each step.

    ``sequential``: the steps of one frame run one after the other, so it waits for no other frame.
    """

    steps: tuple[StepConstants, ...]
    noise: torch.Tensor
    positive: Conditioning
    negative: Conditioning | None = None
    guidance: Guidance = Guidance()
    controls: tuple[Control, ...] = ()
    renoise: bool = True
    sequential: bool = False
    adapters: Adapters | None = None

    def __post_init__(self) -> None:
        if self.noise.shape[0] != len(self.steps):
            raise ValueError(
                f"{len(self.steps)} steps need as many slots of noise, not {self.noise.shape[0]}"
            )
        acting = self.guidance.acting
        if acting in ("full", "initialize") and self.negative is None:
            raise InvalidInput(f"guidance {acting} needs a negative prompt", field="negative_prompt")
        if self.sequential and acting in ("self", "initialize"):
            raise InvalidInput(
                f"guidance {acting} needs several frames at once; take full with steps in sequence",
                field="cfg_type",
            )

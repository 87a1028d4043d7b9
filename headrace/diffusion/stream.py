"""What one stream carries from frame to frame: the chain of its steps, its noise, its guidance.

StreamDiffusion's stream batch (Kodaira et al. 2023, arXiv 2312.12491): with n steps, n frames are under way,
one at each step, and one call of the network takes all of them a step further. Row 0 is the newest frame.

Two things differ from the authors' code, with the same mathematics. Kept is the chain of *clean* predictions,
which get their noise when they are read, so new steps, seeds or noise hold from the next frame on and nothing
has to be flushed. And the chain of a new stream is filled with its first frame, so none comes out of noise.

Nothing here reads a value back from the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from headrace.diffusion.schedule import StepConstants
from stream.errors import InvalidInput

GuidanceMode = Literal["none", "self", "initialize", "full"]


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class RowControl:
    """What one net gets of a stream: a picture of its newest frame (1 x 3 x H x W), a weight for each row."""

    net: Any
    picture: torch.Tensor
    scales: torch.Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """What a stream puts into one call of the network: R latents, their times, and a prompt for each."""

    latents: torch.Tensor
    times: torch.Tensor
    prompts: tuple[Conditioning, ...]
    controls: tuple[RowControl, ...] = ()


class Stream:
    """The state of one stream. For each frame: `rows`, the network's prediction of them, `take`.

    ``reference``: as the authors' code starts, from empty slots; for comparing with it.
    """

    def __init__(self, settings: Settings, *, reference: bool = False) -> None:
        self._reference = reference
        self._chain: torch.Tensor | None = None
        self._stock: torch.Tensor | None = None
        self._inputs: torch.Tensor | None = None
        self._clean: torch.Tensor | None = None
        self._control_pictures: list[torch.Tensor] = []
        self.apply(settings)

    @property
    def settings(self) -> Settings:
        return self._settings

    @property
    def rounds(self) -> int:
        """Calls of the network that one frame takes."""
        return len(self._settings.steps) if self._settings.sequential else 1

    @property
    def nets(self) -> tuple[int, ...]:
        """Which nets act. Streams go through one call when they have the same ones."""
        return tuple(id(control.net) for control in self._controls)

    @property
    def row_count(self) -> int:
        """Rows of one of its calls."""
        count = 1 if self._settings.sequential else len(self._settings.steps)
        acting = self._settings.guidance.acting
        return 2 * count if acting == "full" else count + (acting == "initialize")

    @property
    def delay(self) -> int:
        """Frames by which the result lies behind the input."""
        return 0 if self._settings.sequential else len(self._settings.steps) - 1

    def apply(self, settings: Settings) -> None:
        """Other settings from the next frame on. Frames under way stay, whatever changes."""
        self._settings = settings
        noise, steps = settings.noise, settings.steps
        self._times = torch.tensor([step.t for step in steps], device=noise.device)
        self._signal = _column([step.signal for step in steps], noise)
        self._noise = _column([step.noise for step in steps], noise)
        self._from_input = _column([step.from_input for step in steps], noise)
        self._from_prediction = _column([step.from_prediction for step in steps], noise)
        added = [step.noise if index == 0 or settings.renoise else 0.0 for index, step in enumerate(steps)]
        self._offset = _column(added, noise) * noise
        self._negative_share = settings.guidance.delta
        # The residual's way from one step to the next; past the last one lies the clean picture.
        after = [(step.signal, step.noise) for step in steps[1:]] + [(1.0, 1.0)]
        self._to_next = _column([signal / noise_ for signal, noise_ in after], noise)
        self._next_noise = torch.cat([noise[1:], noise[:1]])
        self._controls = tuple(control for control in settings.controls if control.scale > 0)
        self._control_scales = [
            _column([control.scale_at(step) for step in steps], noise) for control in self._controls
        ]
        self._fit(len(steps))

    def reset(self) -> None:
        """Forget the frames under way: the next one is a first one."""
        self._chain = self._stock = None

    def rows(self, latent: torch.Tensor, number: int = 0, frame: torch.Tensor | None = None) -> Rows:
        """The rows of round ``number`` for a new frame's ``latent`` (1 x C x h x w, float32).

        ``frame`` is its picture, 1 x H x W x 3, where there are nets that look at it.
        """
        settings = self._settings
        if number == 0 and frame is not None:
            self._control_pictures = [
                control.preprocess(frame).permute(0, 3, 1, 2) for control in self._controls
            ]
        scales = self._control_scales
        if settings.sequential:
            source = latent if number == 0 or self._clean is None else self._clean
            inputs = self._signal[number : number + 1] * source + self._offset[number : number + 1]
            times = self._times[number : number + 1]
            scales = [column[number : number + 1] for column in scales]
        else:
            starts = self._chain is None
            inputs = self._signal * self._sources(latent) + self._offset
            if starts and self._reference:
                inputs = torch.cat([inputs[:1], torch.zeros_like(inputs[1:])])
            times = self._times
            if self._stock is not None and len(settings.steps) > 1:
                self._stock = torch.cat([settings.noise[:1], self._stock[:-1]])
        self._inputs = inputs
        controls = tuple(
            RowControl(control.net, picture, self._with_negatives(column))
            for control, picture, column in zip(self._controls, self._control_pictures, scales, strict=True)
        )
        prompts = self._prompts(inputs.shape[0])
        return Rows(self._with_negatives(inputs), self._with_negatives(times), prompts, controls)

    def take(self, prediction: torch.Tensor, number: int = 0) -> torch.Tensor:
        """The clean latent that leaves (1 x C x h x w), by the noise that the network found in those rows."""
        assert self._inputs is not None
        inputs, self._inputs = self._inputs, None
        guided = self._guided(prediction)
        if self._settings.sequential:
            clean = self._from_input[number] * inputs + self._from_prediction[number] * guided
            self._clean = clean
            return clean
        clean = self._from_input * inputs + self._from_prediction * guided
        self._chain = clean[:-1]
        return clean[-1:]

    # -- inside ----------------------------------------------------------------------------------------

    def _sources(self, latent: torch.Tensor) -> torch.Tensor:
        """The clean latents that the rows stand on: the new frame, and what earlier ones have become."""
        behind = len(self._settings.steps) - 1
        if self._chain is None:
            self._chain = latent.expand(behind, -1, -1, -1)
        return torch.cat([latent, self._chain]) if behind else latent

    def _fit(self, count: int) -> None:
        """Keep the frames under way when the number of steps changes: the oldest ones wait in new slots."""
        if self._chain is not None and self._chain.shape[0] != count - 1:
            self._chain = _resized(self._chain, count - 1)
        if self._stock is not None and self._stock.shape[0] != count:
            self._stock = torch.cat([self._stock, self._settings.noise])[:count]

    def _with_negatives(self, of_rows: torch.Tensor) -> torch.Tensor:
        """Something of every row, with that of the rows that stand for the negative prompt before it."""
        acting = self._settings.guidance.acting
        if acting == "full":
            return torch.cat([of_rows, of_rows])
        return torch.cat([of_rows[:1], of_rows]) if acting == "initialize" else of_rows

    def _prompts(self, count: int) -> tuple[Conditioning, ...]:
        settings = self._settings
        positive = (settings.positive,) * count
        acting = settings.guidance.acting
        if acting not in ("full", "initialize"):
            return positive
        assert settings.negative is not None
        return (settings.negative,) * (count if acting == "full" else 1) + positive

    def _guided(self, prediction: torch.Tensor) -> torch.Tensor:
        guidance = self._settings.guidance
        acting = guidance.acting
        if acting == "none":
            self._stock = None
            return prediction
        if acting == "full":
            negative, positive = prediction.chunk(2)
            return negative + guidance.scale * (positive - negative)
        stock, positive = self._present_stock(), prediction
        if acting == "initialize":
            stock = torch.cat([prediction[:1], stock[1:]])
            positive = prediction[1:]
        negative = self._negative_share * stock
        guided = negative + guidance.scale * (positive - negative)
        # The residual noise that a virtual negative prediction would leave at the next step.
        residual = self._from_input * (self._noise * stock) + self._from_prediction * guided
        self._stock = self._next_noise + residual * self._to_next
        return guided

    def _present_stock(self) -> torch.Tensor:
        if self._stock is None:
            noise = self._settings.noise
            self._stock = noise
            if self._reference:
                first = noise[:1] if len(self._settings.steps) > 1 else torch.zeros_like(noise[:1])
                self._stock = torch.cat([first, torch.zeros_like(noise[1:])])
        return self._stock


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """One value a row, float32: half precision shows in what is divided by a small signal."""
    return torch.tensor(values, dtype=torch.float32, device=like.device).view(-1, 1, 1, 1)


def _resized(chain: torch.Tensor, count: int) -> torch.Tensor:
    if chain.shape[0] >= count:
        return chain[chain.shape[0] - count :] if count else chain[:0]
    if chain.shape[0] == 0:
        return chain.new_zeros((0, *chain.shape[1:]))
    return torch.cat([chain, chain[-1:].expand(count - chain.shape[0], -1, -1, -1)])

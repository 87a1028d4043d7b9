"""From a noisy latent and conditions to the clean latent that a model sees in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from headrace.nodes.handles import Control, Model

Conditioning = list[list[Any]]
"""As ComfyUI's nodes hand it on: pairs of states of a text [1, T, C] and ``pooled_output``, ``control``."""


@dataclass(frozen=True)
class _Part:
    """One condition in one place of the batch."""

    side: int
    text: torch.Tensor
    options: Mapping[str, Any]

    def fits(self, other: _Part) -> bool:
        same = self.text.shape == other.text.shape
        return same and self.options.get("control") is other.options.get("control")


class Guided:
    """Predicts the clean latent with guidance: the negative conditions' plus ``cfg`` times the way from it.

    Conditions that can be are computed in one batch. With ``cfg`` of 1 the negative ones are left out.
    """

    def __init__(
        self, model: Model, positive: Conditioning, negative: Conditioning, cfg: float, like: torch.Tensor
    ) -> None:
        self._model = model
        self._cfg = cfg
        sides = [positive] if math.isclose(cfg, 1.0) else [positive, negative]
        self._sides = len(sides)
        unet = model.unet
        parts = [
            _Part(side, text.to(like.device, unet.dtype), options)
            for side, conditions in enumerate(sides)
            for text, options in conditions
        ]
        if any(not conditions for conditions in sides):
            raise ValueError("a sampler needs at least one condition on each side")
        self._groups = list(_grouped(parts))
        self._counts = [len(conditions) for conditions in sides]
        self._size = like.shape[-2] * 8, like.shape[-1] * 8
        self._hints: dict[int, torch.Tensor] = {}

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """``x`` [B, 4, H, W] in float32 at level ``sigma``."""
        sums = [torch.zeros_like(x) for _ in range(self._sides)]
        for group in self._groups:
            made = self._predict(x, sigma, group).chunk(len(group))
            for part, clean in zip(group, made, strict=True):
                sums[part.side] += clean
        positive, *negative = (total / count for total, count in zip(sums, self._counts, strict=True))
        return negative[0] + (positive - negative[0]) * self._cfg if negative else positive

    def _predict(self, x: torch.Tensor, sigma: torch.Tensor, group: list[_Part]) -> torch.Tensor:
        model, batch = self._model, len(x)
        many = torch.cat([x] * len(group))
        spread = (sigma**2 + 1).sqrt()
        text = torch.cat([part.text.expand(batch, -1, -1) for part in group])
        timestep = model.levels.timestep(sigma).expand(len(many))
        noisy = (many / spread).to(model.unet.dtype)
        added = self._added(group, batch) if model.xl else None
        more: dict[str, Any] = {} if added is None else {"added_cond_kwargs": added}
        control = group[0].options.get("control")
        if control is not None:
            more |= self._steer(control, sigma, noisy, timestep, text, added)
        out: torch.Tensor = model.unet(
            noisy, timestep, encoder_hidden_states=text, return_dict=False, **more
        )[0].float()
        if model.v_prediction:
            return many / (sigma**2 + 1) - out * sigma / spread
        return many - out * sigma

    def _added(self, group: list[_Part], batch: int) -> dict[str, torch.Tensor]:
        """SDXL's second text and the sizes: of the original, where it is cut, of the target."""
        height, width = self._size
        pooled = torch.cat([part.options["pooled_output"].expand(batch, -1) for part in group])
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)
        return {
            "text_embeds": pooled.to(group[0].text),
            "time_ids": sizes.expand(len(pooled), -1).to(group[0].text),
        }

    def _steer(
        self,
        control: Control,
        sigma: torch.Tensor,
        noisy: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        added: dict[str, torch.Tensor] | None,
    ) -> dict[str, Any]:
        """What the control networks add, summed up, as arguments of the model."""
        down: list[torch.Tensor] = []
        middle: torch.Tensor | None = None
        step: Control | None = control
        while step is not None:
            if self._acts(step, float(sigma)):
                net = step.net.module
                made_down, made_middle = net(
                    noisy.to(net.dtype),
                    timestep,
                    encoder_hidden_states=text.to(net.dtype),
                    controlnet_cond=self._hint(step, len(noisy)).to(net.dtype),
                    conditioning_scale=step.strength,
                    added_cond_kwargs=added,
                    return_dict=False,
                )
                down = (
                    [one + other for one, other in zip(down, made_down, strict=True)]
                    if down
                    else list(made_down)
                )
                middle = made_middle if middle is None else middle + made_middle
            step = step.before
        if middle is None:
            return {}
        return {
            "down_block_additional_residuals": tuple(one.to(noisy.dtype) for one in down),
            "mid_block_additional_residual": middle.to(noisy.dtype),
        }

    def _acts(self, control: Control, sigma: float) -> bool:
        levels = self._model.levels
        return levels.at_percent(control.end) <= sigma <= levels.at_percent(control.start)

    def _hint(self, control: Control, count: int) -> torch.Tensor:
        """The control's picture in the size of the result, for ``count`` places of the batch."""
        from workflows.nodes.resize import resize

        key = id(control)
        if key not in self._hints:
            height, width = self._size
            picture = resize(control.hint.movedim(1, -1), width, height, "nearest-exact", "center")
            self._hints[key] = picture.movedim(-1, 1)
        hint = self._hints[key]
        repeats = -(-count // len(hint))
        return hint.repeat(repeats, 1, 1, 1)[:count]


def _grouped(parts: Iterable[_Part]) -> Iterable[list[_Part]]:
    groups: list[list[_Part]] = []
    for part in parts:
        home = next((group for group in groups if group[0].fits(part)), None)
        if home is None:
            groups.append([part])
        else:
            home.append(part)
    return groups

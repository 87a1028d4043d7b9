"""What is traced of a frame: three modules from tensors to tensors, of fixed shapes, that read nothing back.

`Encode`, from pictures to latents; `Step`, one call of the network with all that the stream batch does around
it; `Decode`, from clean latents to pictures. As they are, compiled or captured, they are the same code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from headrace.diffusion.rows import COLUMNS
from headrace.diffusion.view import NetworkView


class ControlRows(NamedTuple):
    """What a ControlNet gets for R rows: pictures R x 3 x H x W, weights R x 1 x 1 x 1, time and text."""

    pictures: torch.Tensor
    scales: torch.Tensor
    time: torch.Tensor
    text: torch.Tensor


class StepRows(NamedTuple):
    """The rows of a call: `RowConstants` of all streams, one after another, with indices among all of them.

    ``sources``: the clean latents that rows stand on; ``time``, ``text``: see `NetworkView`.
    """

    sources: torch.Tensor
    residual: torch.Tensor
    columns: torch.Tensor
    offset: torch.Tensor
    base: torch.Tensor
    next_noise: torch.Tensor
    residual_from: torch.Tensor
    partner: torch.Tensor
    time: torch.Tensor
    text: torch.Tensor


class Step(nn.Module):
    """One call of the network: R rows, float32, to their clean latents and the residual noise of guidance."""

    def __init__(self, view: NetworkView, controls: tuple[NetworkView, ...], *, velocity: bool) -> None:
        super().__init__()
        self.view = view
        self.controls = nn.ModuleList(controls)
        self.velocity = velocity
        """Whether the network says velocity (Salimans and Ho 2022, arXiv 2202.00512) and not noise."""
        self.dtype = next(view.parameters()).dtype

    def forward(
        self, rows: StepRows, controls: tuple[ControlRows, ...], given: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        column = {name: rows.columns[:, at].view(-1, 1, 1, 1) for at, name in enumerate(COLUMNS)}
        inputs = column["signal"] * rows.sources + rows.offset
        found = self._predict(inputs, rows, controls, given)
        if self.velocity:
            found = column["signal"] * found + column["noise"] * inputs
        partner = found[rows.partner]
        residual = column["kept"] * rows.residual[rows.residual_from] + rows.base
        residual = torch.where(column["fresh"] > 0, partner, residual)
        negative = column["real_negative"] * partner + column["virtual_negative"] * residual
        guided = column["scale"] * found + (1 - column["scale"]) * negative
        clean = column["from_input"] * inputs + column["from_prediction"] * guided
        # The residual noise that a virtual negative prediction would leave at the next step.
        left = column["from_input"] * (column["noise"] * residual) + column["from_prediction"] * guided
        return clean, rows.next_noise + left * column["to_next"]

    def _predict(
        self,
        inputs: torch.Tensor,
        rows: StepRows,
        controls: tuple[ControlRows, ...],
        given: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """What the network finds; the nets add to its own layers, each row by its own weight."""
        sample = inputs.to(self.dtype)
        down: list[torch.Tensor] = []
        middle: torch.Tensor | None = None
        for net, control in zip(self.controls, controls, strict=True):
            assert isinstance(net, NetworkView)
            own, own_middle = net.control(sample, control.time, control.text, control.pictures.to(self.dtype))
            scales = control.scales.to(self.dtype)
            scaled = [layer * scales for layer in own]
            down = [a + b for a, b in zip(down, scaled, strict=True)] if down else scaled
            middle = own_middle * scales if middle is None else middle + own_middle * scales
        found: torch.Tensor = self.view(sample, rows.time, rows.text, down, middle, given)
        return found.float()


class Encode(nn.Module):
    """Latents, float32, of pictures P x H x W x 3, 0..1; the mean where the autoencoder gives a range."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae: Any = vae

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        images = pictures.permute(0, 3, 1, 2) * 2 - 1
        encoded = self.vae.encode(images.to(self.vae.dtype), return_dict=False)[0]
        latents = encoded if isinstance(encoded, torch.Tensor) else encoded.mode()
        scaled: torch.Tensor = latents.float() * self.vae.config.scaling_factor
        return scaled


class Decode(nn.Module):
    """Pictures, P x H x W x 3, float32, 0..1, of clean latents; what overshoots is cut off."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae: Any = vae

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        given = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        decoded: torch.Tensor = self.vae.decode(given, return_dict=False)[0].float()
        return (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).contiguous()

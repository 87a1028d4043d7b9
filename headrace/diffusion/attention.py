"""The attention of a view (`headrace.diffusion.view`): over the same weights as diffusers' own `Attention`.

Keys and values of the prompt come in ready, for all layers side by side in one tensor, ``text`` in the call
of a block: R x tokens x total, of which each layer knows its part: keys, then values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention

from stream.errors import InvalidInput

Given = Mapping[str, torch.Tensor]
"""What adapters are given for the R rows of a call: tensors R x ... by name."""
Branch = Callable[[torch.Tensor, Given], torch.Tensor]
"""From what goes into a layer (R x ...) to what is added to what comes out of it."""
Recall = Callable[[torch.Tensor, torch.Tensor, Given], tuple[torch.Tensor, torch.Tensor]]
"""From the keys and values of a layer's own tokens, R x tokens x width, to those that it attends to."""

IMAGE_ROWS, IMAGE_SCALES = "image_rows", "image_scales"
"""In ``given``: keys and values of image tokens, R x tokens x total, laid out as those of the text; and their
weight in each layer, R x layers."""


def check_attention(attention: Any) -> None:
    """Raises `InvalidInput` for kinds that Stable Diffusion does not have and a view does not either."""
    parts = ("group_norm", "spatial_norm", "norm_q", "norm_k", "norm_cross", "add_k_proj")
    strange = [name for name in parts if getattr(attention, name, None) is not None]
    if attention.residual_connection or attention.rescale_output_factor != 1.0:
        strange.append("residual_connection")
    if strange:
        raise InvalidInput(f"its attention has {', '.join(strange)}, which no stream has", field="model_id")


class SelfAttention(nn.Module):
    """Among the tokens of one row. ``branches`` and ``recall``: places for adapters."""

    def __init__(self, attention: Any, given: Given) -> None:
        super().__init__()
        check_attention(attention)
        self.heads, self.given = int(attention.heads), given
        self.to_q, self.to_k, self.to_v = attention.to_q, attention.to_k, attention.to_v
        self.to_out = attention.to_out[0]
        self.branches = nn.ModuleDict()
        """Added to queries, keys and values, by ``to_q``, ``to_k`` and ``to_v``."""
        self.recall: Recall | None = None

    def fuse(self) -> None:
        """One product for queries, keys and values, over a copy of their weights."""
        parts = (self.to_q, self.to_k, self.to_v)
        weight = torch.cat([part.weight.detach() for part in parts])
        self.to_qkv = nn.Parameter(weight, requires_grad=False)
        biases = [part.bias for part in parts if part.bias is not None]
        bias = torch.cat([bias.detach() for bias in biases]) if len(biases) == len(parts) else None
        self.to_qkv_bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        del self.to_q, self.to_k, self.to_v

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        if hasattr(self, "to_qkv"):
            q, k, v = linear(hidden_states, self.to_qkv, self.to_qkv_bias).chunk(3, dim=-1)
        else:
            q, k, v = self.to_q(hidden_states), self.to_k(hidden_states), self.to_v(hidden_states)
        if self.branches:
            q, k, v = (
                value + self.branches[name](hidden_states, self.given) if name in self.branches else value
                for name, value in (("to_q", q), ("to_k", k), ("to_v", v))
            )
        if self.recall is not None:
            k, v = self.recall(k, v, self.given)
        found: torch.Tensor = self.to_out(attend(q, k, v, self.heads))
        return found


class CrossAttention(nn.Module):
    """From the tokens of a row to its prompt, and to its image where `IMAGE_ROWS` are given.

    ``number``: which of the layers it is; ``start``: where its part of the text begins.
    """

    def __init__(self, attention: Any, number: int, start: int, given: Given) -> None:
        super().__init__()
        check_attention(attention)
        self.heads, self.number, self.start = int(attention.heads), number, start
        self.width = int(attention.to_k.out_features)
        self.to_q, self.to_out = attention.to_q, attention.to_out[0]
        self.given = given

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        q = self.to_q(hidden_states)
        found = attend(q, *self._part(encoder_hidden_states), self.heads)
        if IMAGE_ROWS in self.given:
            image = attend(q, *self._part(self.given[IMAGE_ROWS]), self.heads)
            scale = self.given[IMAGE_SCALES][:, self.number].view(-1, 1, 1)
            found = found + scale.to(image.dtype) * image
        projected: torch.Tensor = self.to_out(found)
        return projected

    def _part(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        middle = self.start + self.width
        return rows[..., self.start : middle], rows[..., middle : middle + self.width]


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """All R x tokens x width; the result has the tokens of ``q``."""
    q, k, v = (part.view(*part.shape[:2], heads, -1).transpose(1, 2) for part in (q, k, v))
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

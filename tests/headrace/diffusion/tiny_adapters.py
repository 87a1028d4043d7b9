"""IP-Adapters and their image encoder in miniature: random weights in the layouts of the published files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from headrace.models.tiny import fill

Tensors = dict[str, torch.Tensor]
_HIDDEN, _PROJECTED, _INNER, _DEPTH = 24, 20, 64, 4


def image_encoder() -> Any:
    config = CLIPVisionConfig(
        image_size=32, patch_size=8, hidden_size=_HIDDEN, intermediate_size=48, projection_dim=_PROJECTED,
        num_hidden_layers=2, num_attention_heads=4,
    )  # fmt: skip
    return fill(CLIPVisionModelWithProjection(config), "image encoder")


def adapter(unet: Any, kind: str = "plain") -> Tensors:
    """``plain`` (of CLIP's pooled view) or ``plus`` (of all its tokens, by a resampler)."""
    width = int(unet.config.cross_attention_dim)
    random = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random) * shape[-1] ** -0.5

    found = {
        f"image_proj.{name}": value
        for name, value in (_plain(width, drawn) if kind == "plain" else _plus(width, drawn)).items()
    }
    crossing = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(crossing):
        inner = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for part in "kv":
            found[f"ip_adapter.{2 * number + 1}.to_{part}_ip.weight"] = drawn(inner, width)
    return found


def _plain(width: int, drawn: Any) -> Tensors:
    return {
        "proj.weight": drawn(4 * width, _PROJECTED), "proj.bias": drawn(4 * width),
        "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width),
    }  # fmt: skip


def _plus(width: int, drawn: Any) -> Tensors:
    found = {
        "latents": drawn(1, 5, _INNER),
        "proj_in.weight": drawn(_INNER, _HIDDEN), "proj_in.bias": drawn(_INNER),
        "proj_out.weight": drawn(width, _INNER), "proj_out.bias": drawn(width),
        "norm_out.weight": torch.ones(width), "norm_out.bias": torch.zeros(width),
    }  # fmt: skip
    for layer in range(_DEPTH):
        attention, after = f"layers.{layer}.0", f"layers.{layer}.1"
        found |= {
            f"{attention}.to_q.weight": drawn(_INNER, _INNER),
            f"{attention}.to_kv.weight": drawn(2 * _INNER, _INNER),
            f"{attention}.to_out.weight": drawn(_INNER, _INNER),
            f"{after}.1.weight": drawn(4 * _INNER, _INNER),
            f"{after}.3.weight": drawn(_INNER, 4 * _INNER),
        }
        for norm in (f"{attention}.norm1", f"{attention}.norm2", f"{after}.0"):
            found |= {f"{norm}.weight": torch.ones(_INNER), f"{norm}.bias": torch.zeros(_INNER)}
    return found


def write(folder: Path, unet: Any) -> None:
    """``ip-adapter.safetensors`` and ``image_encoder`` in ``folder``."""
    save_file(adapter(unet), folder / "ip-adapter.safetensors")
    image_encoder().save_pretrained(folder / "image_encoder")

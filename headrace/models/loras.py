"""LoRAs: a private copy of what a LoRA changes, over shared tensors for all the rest.

The copy has a key of its own in the cache, so that graphs with the same LoRA at the same strength share it.
Names are those of kohya's programs, of peft and of diffusers; kohya's may be of the original network too.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

log = logging.getLogger(__name__)

_ENDS = (
    ("lora_down.weight", "down"),
    ("lora_up.weight", "up"),
    ("lora_A.weight", "down"),
    ("lora_B.weight", "up"),
    ("lora.down.weight", "down"),
    ("lora.up.weight", "up"),
    ("lora_mid.weight", "mid"),
    ("alpha", "alpha"),
    ("dora_scale", "dora"),
)
_PREFIXES = {
    "unet": ("lora_unet_", "unet.", "diffusion_model."),
    "text_encoder": ("lora_te_", "lora_te1_", "text_encoder."),
    "text_encoder_2": ("lora_te2_", "text_encoder_2."),
}


@dataclass(frozen=True)
class Change:
    """What a LoRA adds to one matrix or kernel: ``up`` times ``down``, times ``scale``."""

    up: torch.Tensor
    down: torch.Tensor
    scale: float

    def on(self, weight: torch.Tensor, strength: float) -> torch.Tensor:
        """``weight`` with the change; raises `ValueError` where the shapes do not fit."""
        up, down = self.up.float().flatten(1), self.down.float().flatten(1)
        if up.shape[1] != down.shape[0] or up.shape[0] * down.shape[1] != weight.numel():
            raise ValueError(
                f"a change of {up.shape[0]} x {down.shape[1]} does not fit {tuple(weight.shape)}"
            )
        delta = (up @ down).reshape(weight.shape).to(weight.device)
        return (weight.float() + delta * (self.scale * strength)).to(weight.dtype)


def changes_for(part: str, module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, Change]:
    """The changes to ``module`` by the names of its parameters; what has no place in it is left out.

    Raises `ValueError` for kinds of LoRA that cannot be read (with a middle, with directions apart).
    """
    names = _names_of(part, module)
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        base, kind = _split(key)
        for prefix in _PREFIXES[part]:
            name = names.get(_plain(base.removeprefix(prefix))) if base.startswith(prefix) else None
            if name is not None and kind:
                found.setdefault(name, {})[kind] = value
    changes = {}
    for name, items in found.items():
        if items.keys() & {"mid", "dora"}:
            raise ValueError(f"the LoRA has a part for {name} of a kind that cannot be read (LoCon, DoRA)")
        if items.keys() >= {"up", "down"}:
            rank = items["down"].shape[0]
            scale = float(items["alpha"]) / rank if "alpha" in items else 1.0
            changes[name] = Change(items["up"], items["down"], scale)
    return changes


def _split(key: str) -> tuple[str, str]:
    for end, kind in _ENDS:
        if key.endswith(f".{end}"):
            return key.removesuffix(f".{end}"), kind
    return key, ""


def _plain(name: str) -> str:
    """Without what only some programs write."""
    name = name.replace(".processor.", ".").replace("_lora", "")
    return re.sub(r"^(base_model[._]model[._])|\.default$", "", name).replace(".", "_")


def _names_of(part: str, module: torch.nn.Module) -> dict[str, str]:
    """From the names that files have for a module's matrices to those of its parameters."""
    known: dict[str, str] = {}
    for name, value in module.named_parameters():
        if name.endswith(".weight") and value.ndim > 1:
            plain = name.removesuffix(".weight").replace(".", "_")
            known[plain] = name
            if part != "unet":
                known[f"text_model_{plain}"] = name
    if part == "unet":
        known |= _original_names(module)
    return known


def _original_names(unet: torch.nn.Module) -> dict[str, str]:
    """The names that the blocks have in the original program, which numbers them through."""
    layers = len(unet.down_blocks[0].resnets)  # type: ignore[index, union-attr]
    found = {}
    for name, value in unet.named_parameters():
        if not name.endswith(".weight") or value.ndim < 2:
            continue
        old = name.removesuffix(".weight")
        for pattern, make in _OLD:
            if match := re.match(pattern, old):
                place, rest = make(layers, *match.groups())
                for new, other in _OLD_RESNET:
                    rest = rest.replace(new, other)
                found[f"{place}.{rest}".replace(".", "_")] = name
                break
    return found


def _down(n: int, level: str, kind: str, at: str, rest: str) -> tuple[str, str]:
    return f"input_blocks.{int(level) * (n + 1) + int(at) + 1}.{kind != 'resnets':d}", rest


def _halving(n: int, level: str) -> tuple[str, str]:
    return f"input_blocks.{(int(level) + 1) * (n + 1)}.0", "op"


def _middle(n: int, kind: str, at: str, rest: str) -> tuple[str, str]:
    return f"middle_block.{1 if kind != 'resnets' else 2 * int(at)}", rest


def _up(n: int, level: str, kind: str, at: str, rest: str) -> tuple[str, str]:
    return f"output_blocks.{int(level) * (n + 1) + int(at)}.{kind != 'resnets':d}", rest


_OLD: tuple[tuple[str, Any], ...] = (
    (r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", _down),
    (r"down_blocks\.(\d+)\.downsamplers\.0\.conv", _halving),
    (r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", _middle),
    (r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", _up),
)
_OLD_RESNET = (
    ("conv1", "in_layers.2"),
    ("conv2", "out_layers.3"),
    ("time_emb_proj", "emb_layers.1"),
    ("conv_shortcut", "skip_connection"),
)


def changed(module: torch.nn.Module, changes: Mapping[str, Change], strength: float) -> torch.nn.Module:
    """Module objects of one's own over the tensors of ``module``, with new ones for what is changed."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    twin = copy.deepcopy(module, shared)
    for name, change in changes.items():
        home, _, leaf = name.rpartition(".")
        weight = change.on(twin.get_parameter(name).data, strength)
        setattr(twin.get_submodule(home), leaf, torch.nn.Parameter(weight, requires_grad=False))
    return twin

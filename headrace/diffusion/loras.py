"""LoRAs of a stream (Hu et al. 2021, arXiv 2106.09685): branches of low rank on a view of the shared network.

Nothing is merged and nothing shared is changed. All streams with the same LoRAs have the same view, so their
rows share calls; how much each LoRA has to say is data of each row, `LORA_SCALES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from headrace.diffusion.lora_branch import LoraBranch
from headrace.diffusion.view import NetworkView
from headrace.models import loading
from headrace.models.errors import ModelNotFound
from headrace.models.live_cache import Held, hold
from headrace.models.loras import Change, changes_for
from headrace.models.store import Located, ModelStore
from stream.errors import InvalidInput

_FILE = "pytorch_lora_weights.safetensors"
"""The name that diffusers saves under."""


@dataclass(frozen=True, slots=True, eq=False)
class LoraFile:
    """A LoRA in memory: its tensors, shared and read-only, and what tells it from others."""

    name: str
    key: str
    held: Held


def find(name: str, store: ModelStore, field: str) -> LoraFile:
    """The LoRA that a file is, or that is alone in a repository or folder; shared by all who ask.

    Raises `ModelNotFound` with the command that fetches it, `InvalidInput` for what is none.
    """
    try:
        found = _file_of(store.find(name), name, field)
    except ModelNotFound as error:
        raise ModelNotFound(error.message, field=field) from None
    held = hold(found, "lora", lambda progress: loading.load_tensors(found), device="cpu")
    return LoraFile(name, f"{found.ref} {found.path.name} {found.revision}", held)


def attach(view: NetworkView, unet: Any, loras: Sequence[LoraFile], field: str) -> None:
    """Put the branches of ``loras`` on a view of one's own on ``unet``.

    Raises `InvalidInput` for a LoRA that is for another kind of network, or of a kind that cannot be read.
    """
    for number, lora in enumerate(loras):
        try:
            changes = changes_for("unet", unet, lora.held.model)
            branches = {
                name.removesuffix(".weight"): _branch(change, unet, name, number)
                for name, change in changes.items()
            }
        except ValueError as error:
            raise InvalidInput(
                f"{field}: {lora.name} does not fit this model: {error}", field=field
            ) from None
        if not branches:
            raise InvalidInput(f"{field}: {lora.name} has nothing for this model's network", field=field)
        for name, branch in branches.items():
            view.attach(name, branch)


def _branch(change: Change, unet: Any, name: str, number: int) -> LoraBranch:
    """On the layer whose weight has that ``name``. Raises `ValueError` where the shapes do not fit."""
    layer, weight = unet.get_submodule(name.removesuffix(".weight")), unet.get_parameter(name)
    down, up = change.down.flatten(1), change.up.flatten(1)
    if up.shape[1] != down.shape[0] or (up.shape[0], down.shape[1]) != weight.flatten(1).shape:
        raise ValueError(
            f"{name} is {tuple(weight.shape)}, not {up.shape[0]} x {down.shape[1]} (rank {down.shape[0]})"
        )
    down = down.to(weight.device, weight.dtype)
    up = (up.to(weight.device).float() * change.scale).to(weight.dtype)
    if not isinstance(layer, torch.nn.Conv2d):
        return LoraBranch(down, up, number, None)
    kernel = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    return LoraBranch(down.view(-1, *weight.shape[1:]), up.view(*up.shape, 1, 1), number, kernel)


def _file_of(found: Located, name: str, field: str) -> Located:
    if found.kind == "safetensors":
        return found
    files = [file for file in found.files if file.endswith(".safetensors")]
    files = [_FILE] if _FILE in files else files
    if len(files) != 1:
        what = (
            f"has {len(files)} files; name one as {name}/FILE.safetensors" if files else "has no safetensors"
        )
        raise InvalidInput(f"{field}: {name} {what}", field=field)
    path = found.path / files[0]
    return Located(
        found.ref, path, "safetensors", found.revision, path.stat().st_size, found.source, found.weights
    )

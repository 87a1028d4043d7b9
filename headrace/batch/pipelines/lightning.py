"""SDXL-Lightning: a distilled unet in a file of its own, over everything else of SDXL's base model.

ai-runner's names for it: ``ByteDance/SDXL-Lightning-4step``; without a number of steps, 8.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from headrace.models import loading, tensors, weights
from headrace.models.store import Located, ModelStore

BASE = "stabilityai/stable-diffusion-xl-base-1.0"
REPOSITORY = "ByteDance/SDXL-Lightning"

_NAME = re.compile(r"ByteDance/SDXL-Lightning(?:.*?(?P<steps>[248])step)?")


def base_of(model: str) -> str | None:
    """The model that ``model`` stands on; None where it is whole in itself."""
    return BASE if _NAME.match(model) else None


def unet_of(model: str, store: ModelStore) -> Located | None:
    """The file with the distilled unet; None for models that are none of this kind."""
    found = _NAME.match(model)
    if found is None:
        return None
    return store.find(f"{REPOSITORY}/sdxl_lightning_{found['steps'] or 8}step_unet.safetensors")


def load_unet(base: Located, unet: Located, *, cache: Path, device: str, dtype: torch.dtype) -> Any:
    """The unet of ``base``'s configuration with the tensors of ``unet``, mapped on a CPU."""
    from diffusers import UNet2DConditionModel
    from safetensors.torch import load_file

    name = unet.path.name
    folder = unet.path.parent
    if device == "cpu":
        identity = f"{unet.ref} {unet.revision}"
        folder = tensors.converted_folder(folder, [name], loading.name_of(dtype), cache, identity)
    with torch.device("meta"):
        module = UNet2DConditionModel.from_config(json.loads((base.path / "unet/config.json").read_text()))
    state = load_file(folder / name, device=device)
    module.load_state_dict({key: value.to(dtype) for key, value in state.items()}, assign=True)
    weights.freeze(module)
    if device == "cpu":
        weights.protect([folder / name])
    return module


def scheduler_for(fresh: Callable[..., Any]) -> Any:
    """Euler with trailing spacing, as its makers say; ``fresh``: `Checkpoint.scheduler` of the model."""
    from diffusers import EulerDiscreteScheduler

    return fresh(EulerDiscreteScheduler, timestep_spacing="trailing")

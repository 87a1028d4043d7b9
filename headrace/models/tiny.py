"""Tiny models of random weights, built from configurations: every pipeline runs on a machine without a hub.

The same recipe gives the same bytes everywhere: parameters are drawn by name from a generator of our own.
They are written as safetensors beside their configurations and tokenizers, and loaded as any other model.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from headrace.models.demos import DEMOS, demo_path
from headrace.models.made_once import made_once
from headrace.models.quiet import hide_progress_bars
from headrace.models.store import Located, ModelStore
from stream.errors import NotInstalled

log = logging.getLogger(__name__)

Recipe = Callable[[Path], None]
"""Writes a model into an empty folder."""

_RECIPES = {
    "tiny-sd": "tiny_diffusion:stable_diffusion",
    "tiny-sdxl": "tiny_diffusion:stable_diffusion_xl",
    "tiny-flux": "tiny_diffusion:flux",
    "tiny-svd": "tiny_diffusion:stable_video_diffusion",
    "tiny-upscaler": "tiny_diffusion:upscaler",
    "tiny-pix2pix": "tiny_diffusion:instruct_pix2pix",
    "tiny-blip": "tiny_vision:blip",
    "tiny-sam2": "tiny_vision:sam2",
    "tiny-whisper": "tiny_speech:whisper",
    "tiny-vits": "tiny_speech:vits",
    "tiny-llama": "tiny_text:llama",
}


def random_weights(name: str, cache: Path) -> Path:
    """The folder of the demo model ``name``, built when it is not there; safe between processes.

    Raises `NotInstalled` without diffusers or transformers.
    """
    return made_once(demo_path(DEMOS[name], cache), lambda work: _build(name, work))


def ensure_built(found: Located, store: ModelStore) -> Located:
    """The same model with its files: a tiny demo model that nobody has used yet is built now."""
    if found.built or found.weights != "random":
        return found
    random_weights(found.ref.name, store.roots.cache)
    return store.find(found.ref)


def _build(name: str, work: Path) -> None:
    log.info("building demo:%s in %s", name, work.parent)
    module, _, function = _RECIPES[name].partition(":")
    try:
        recipe: Recipe = getattr(import_module(f"headrace.models.{module}"), function)
    except ModuleNotFoundError as error:
        raise NotInstalled(
            f"demo:{name} needs {error.name}, which is not installed: pip install 'headrace[engine,batch]'"
        ) from error
    hide_progress_bars()
    recipe(work)


def fill(module: Any, seed: str) -> Any:
    """Draw every parameter anew, by its name and ``seed``; evaluation mode.

    Matrices and kernels are normal with a variance of one over what goes in; biases are zero; what was
    constant (scales of norms) stays.
    """
    import torch

    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            if name.endswith("bias"):
                parameter.zero_()
                continue
            flat = parameter.flatten()
            if bool((flat == flat[0]).all()):
                continue
            fan_in = max(1, flat.numel() // parameter.shape[0]) if parameter.ndim > 1 else flat.numel()
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)
    return module.eval()

"""What goes over the links MODEL, CLIP, VAE, CONTROL_NET and UPSCALE_MODEL. None of it is ever changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from headrace.models.live_cache import Held
from headrace.nodes.files import ModelFiles
from headrace.nodes.schedules import Levels


@dataclass(frozen=True)
class Model:
    """A diffusion network. ``scale``: what its latents are multiplied by. ``held``: whatever it stands on."""

    unet: Any
    levels: Levels
    v_prediction: bool
    scale: float
    held: tuple[Held, ...]

    @classmethod
    def of(cls, held: Held) -> Model:
        """Raises `ValueError` where there is no network of Stable Diffusion."""
        parts: Mapping[str, Any] = held.model
        unet = parts.get("unet")
        if unet is None:
            raise ValueError(f"{held.key.ref} has no network of Stable Diffusion 1, 2 or XL")
        scheduler = parts["scheduler"].config
        xl = getattr(unet.config, "addition_embed_type", None) == "text_time"
        vae = parts.get("vae")
        scale = getattr(vae.config, "scaling_factor", None) if vae is not None else None
        return cls(
            unet,
            Levels.of(scheduler),
            scheduler.get("prediction_type") == "v_prediction",
            float(scale or (0.13025 if xl else 0.18215)),
            (held,),
        )

    @property
    def xl(self) -> bool:
        return getattr(self.unet.config, "addition_embed_type", None) == "text_time"

    def with_unet(self, held: Held) -> Model:
        return replace(self, unet=held.model, held=(*self.held, held))


@dataclass(frozen=True)
class Encoder:
    """A text encoder and its tokenizer. ``projected``: it ends in a projection, whose result is pooled."""

    module: Any
    tokenizer: Any

    @property
    def projected(self) -> bool:
        return hasattr(self.module, "text_projection")

    @property
    def inner(self) -> Any:
        return getattr(self.module, "text_model", self.module)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.inner.embeddings.position_embedding.weight.dtype
        return dtype


@dataclass(frozen=True)
class Clip:
    """The text encoders of a model, CLIP's large one first. ``stop_at``: as `CLIPSetLastLayer` has it."""

    encoders: tuple[Encoder, ...]
    files: ModelFiles
    held: tuple[Held, ...]
    stop_at: int | None = None

    @classmethod
    def of(cls, held: tuple[Held, ...], files: ModelFiles) -> Clip:
        """Raises `ValueError` where there is no text encoder of CLIP."""
        found: list[Encoder] = []
        for one in held:
            for end in ("", "_2"):
                module = one.model.get(f"text_encoder{end}")
                if module is not None and f"tokenizer{end}" in one.model:
                    found.append(Encoder(module, one.model[f"tokenizer{end}"]))
        if not found:
            raise ValueError(f"{held[0].key.ref} has no text encoder of CLIP")
        found.sort(key=lambda encoder: encoder.projected)
        return cls(tuple(found), files, held)


@dataclass(frozen=True)
class Vae:
    """An autoencoder, of the whole kind or the tiny one. ``scale``: of latents, where the module has it."""

    module: Any
    held: Held
    scale: float = 1.0

    @property
    def ratio(self) -> int:
        """Pixels of a side that become one."""
        if type(self.module).__name__ == "AutoencoderTiny":
            return 8
        return int(2 ** (len(self.module.config.block_out_channels) - 1))


@dataclass(frozen=True)
class ControlNet:
    """A network that steers by a picture."""

    module: Any
    held: Held


@dataclass(frozen=True)
class Control:
    """A `ControlNet` at work: ``hint`` [B, 3, H, W]; ``span``: levels between which it acts, high to low."""

    net: ControlNet
    hint: torch.Tensor
    strength: float
    start: float
    end: float
    before: Control | None = None

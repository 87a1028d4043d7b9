"""The networks of a real-time pipeline, and the little that the stream batch asks of them.

SD 1.5, SD-Turbo and SDXL-Turbo families of diffusers, over shared, read-only weights. The autoencoder of a
live path is TAESD (`AutoencoderTiny`); a full one works and costs 4.5 UNets a frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from headrace.diffusion.stream import Conditioning, Rows
from stream.errors import InvalidInput

LATENT_RATIO = 8
"""Pixels along a side for one element of the latent."""
MAX_PROMPTS = 64
"""Encoded prompts that are kept."""


@dataclass
class Networks:
    """``parts``: the components of a diffusers pipeline by name: ``unet``, ``vae``, ``text_encoder``,
    ``tokenizer``, ``scheduler``, for SDXL ``text_encoder_2`` and ``tokenizer_2`` too."""

    parts: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype
    _prompts: dict[str, Conditioning] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = [
            name for name in ("unet", "vae", "text_encoder", "tokenizer") if self.parts.get(name) is None
        ]
        if missing:
            raise InvalidInput(f"the model has no {', '.join(missing)}", field="model_id")
        self.unet, self.vae = self.parts["unet"], self.parts["vae"]
        self.is_xl = self.parts.get("text_encoder_2") is not None
        channels, wanted = self.unet.config.in_channels, self.vae.config.latent_channels
        if channels != wanted:
            raise InvalidInput(
                f"the network takes {channels} channels where the autoencoder gives {wanted}; "
                "models for inpainting or instructions do not run as a stream",
                field="model_id",
            )
        config = self.parts["scheduler"].config if self.parts.get("scheduler") is not None else {}
        self.alphas_cumprod = noise_schedule(config)
        self._predicts_velocity = config.get("prediction_type") == "v_prediction"
        alphas = torch.tensor(self.alphas_cumprod, dtype=torch.float32, device=self.device)
        self._signal, self._noise = alphas.sqrt(), (1 - alphas).sqrt()
        self._scaling = float(self.vae.config.scaling_factor)

    # -- prompts ---------------------------------------------------------------------------------------

    def encode_prompt(self, text: str) -> Conditioning:
        """What ``text`` is to the network; encoded once, then kept."""
        found = self._prompts.pop(text, None) or self._encode_prompt(text)
        self._prompts[text] = found
        while len(self._prompts) > MAX_PROMPTS:
            del self._prompts[next(iter(self._prompts))]
        return found

    @torch.inference_mode()
    def _encode_prompt(self, text: str) -> Conditioning:
        if not self.is_xl:
            encoded = self.parts["text_encoder"](self._tokens("tokenizer", text))[0]
            return Conditioning(encoded.to(self.dtype))
        states = []
        pooled = None
        for end in ("", "_2"):
            encoder = self.parts[f"text_encoder{end}"]
            output = encoder(self._tokens(f"tokenizer{end}", text), output_hidden_states=True)
            pooled = output[0]
            # SDXL takes the last but one layer (Podell et al. 2023, arXiv 2307.01952).
            states.append(output.hidden_states[-2])
        assert pooled is not None
        return Conditioning(torch.cat(states, dim=-1).to(self.dtype), pooled.to(self.dtype))

    def _tokens(self, name: str, text: str) -> torch.Tensor:
        tokenizer = self.parts[name]
        made = tokenizer(
            text,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        ids: torch.Tensor = made.input_ids.to(self.device)
        return ids

    # -- frames ----------------------------------------------------------------------------------------

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return (int(self.unet.config.in_channels), height // LATENT_RATIO, width // LATENT_RATIO)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Latents, float32, of ``images`` (B x 3 x H x W, -1..1); the mean where it gives a range."""
        encoded = self.vae.encode(images.to(self.vae.dtype), return_dict=False)[0]
        latents = encoded.mode() if hasattr(encoded, "mode") and not torch.is_tensor(encoded) else encoded
        scaled: torch.Tensor = latents.float() * self._scaling
        return scaled

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures, B x 3 x H x W in -1..1 with what overshoots, of clean ``latents``."""
        decoded: torch.Tensor = self.vae.decode(
            (latents / self._scaling).to(self.vae.dtype), return_dict=False
        )[0]
        return decoded.float()

    def predict(self, rows: Sequence[Rows]) -> list[torch.Tensor]:
        """The noise that one call of the network finds in the rows of several streams; float32, by stream."""
        latents = torch.cat([stream.latents for stream in rows])
        times = torch.cat([stream.times for stream in rows])
        prompts = [prompt for stream in rows for prompt in stream.prompts]
        given = {
            "sample": latents.to(self.dtype),
            "timestep": times,
            "encoder_hidden_states": torch.cat([prompt.text for prompt in prompts]),
            "added_cond_kwargs": self._added(prompts, latents),
            "return_dict": False,
        }
        found = self.unet(**given, **self._controls(rows, given))[0].float()
        if self._predicts_velocity:
            signal, noise = self._signal[times].view(-1, 1, 1, 1), self._noise[times].view(-1, 1, 1, 1)
            found = signal * found + noise * latents
        return list(found.split([stream.latents.shape[0] for stream in rows]))

    def _controls(self, rows: Sequence[Rows], given: dict[str, Any]) -> dict[str, Any]:
        """What the nets add to the network's own layers, summed over the nets; each row by its own weight."""
        down: list[torch.Tensor] = []
        middle: torch.Tensor | None = None
        for controls in zip(*(stream.controls for stream in rows), strict=True):
            pictures = [control.picture.expand(control.scales.shape[0], -1, -1, -1) for control in controls]
            scales = torch.cat([control.scales for control in controls]).to(self.dtype)
            own, own_middle = controls[0].net(**given, controlnet_cond=torch.cat(pictures).to(self.dtype))
            scaled = [layer * scales for layer in own]
            down = [a + b for a, b in zip(down, scaled, strict=True)] if down else scaled
            middle = own_middle * scales if middle is None else middle + own_middle * scales
        if middle is None:
            return {}
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    def _added(
        self, prompts: Sequence[Conditioning], latents: torch.Tensor
    ) -> dict[str, torch.Tensor] | None:
        if not self.is_xl:
            return None
        height, width = (side * LATENT_RATIO for side in latents.shape[-2:])
        # Original size, crop, target size (SDXL, section 2.2).
        size = torch.tensor([[height, width, 0, 0, height, width]], dtype=self.dtype, device=self.device)
        pooled = [prompt.pooled for prompt in prompts if prompt.pooled is not None]
        return {"text_embeds": torch.cat(pooled), "time_ids": size.expand(len(prompts), -1)}


def noise_schedule(config: Mapping[str, Any]) -> tuple[float, ...]:
    """The model's cumulative products of alpha, one a training step (Ho et al. 2020, arXiv 2006.11239)."""
    steps = int(config.get("num_train_timesteps", 1000))
    first, last = float(config.get("beta_start", 0.00085)), float(config.get("beta_end", 0.012))
    kind = config.get("beta_schedule", "scaled_linear")
    if kind == "scaled_linear":
        betas = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float32) ** 2
    elif kind == "linear":
        betas = torch.linspace(first, last, steps, dtype=torch.float32)
    else:
        raise InvalidInput(f"the noise schedule {kind!r} is not known", field="model_id")
    return tuple(torch.cumprod(1.0 - betas, 0).tolist())

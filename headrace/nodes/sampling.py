"""`KSampler` and `KSamplerAdvanced`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from headrace.nodes.names import sampler_names, scheduler_names
from workflows.nodes.stream import InputTypes

if TYPE_CHECKING:
    import torch

    from headrace.nodes.denoising import Conditioning
    from headrace.nodes.handles import Model

Latent = dict[str, Any]
"""``samples``: [B, 4, H / 8, W / 8]."""
_SEED = ("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True})
_STEPS = ("INT", {"default": 20, "min": 1, "max": 10000})
_CFG = ("FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01})
_FULL = 0.9999


class KSampler:
    """Takes the noise out of a latent, step by step. ``denoise`` below 1 keeps some of what was there."""

    CATEGORY = "sampling"
    DESCRIPTION = "Turns noise into a picture that fits the text, or changes one."
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "sample"
    PACKAGES = ("diffusers",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {
            "required": {
                "model": ("MODEL",),
                "seed": _SEED,
                "steps": _STEPS,
                "cfg": _CFG,
                "sampler_name": (sampler_names(),),
                "scheduler": (scheduler_names(),),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent_image": ("LATENT",),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            }
        }

    def sample(
        self,
        model: Model,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: Latent,
        denoise: float = 1.0,
    ) -> tuple[Latent]:
        from headrace.nodes.schedules import sigmas_for

        sigmas = sigmas_for(model.levels, scheduler, sampler_name, steps, denoise)
        return (sample(model, seed, cfg, sampler_name, sigmas, positive, negative, latent_image),)


class KSamplerAdvanced:
    """A part of the steps, with or without noise at its beginning and its end."""

    CATEGORY = "sampling"
    DESCRIPTION = "Runs some of the steps of a sampler."
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "sample"
    PACKAGES = ("diffusers",)

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:  # noqa: N802
        return {
            "required": {
                "model": ("MODEL",),
                "add_noise": (["enable", "disable"],),
                "noise_seed": _SEED,
                "steps": _STEPS,
                "cfg": _CFG,
                "sampler_name": (sampler_names(),),
                "scheduler": (scheduler_names(),),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent_image": ("LATENT",),
                "start_at_step": ("INT", {"default": 0, "min": 0, "max": 10000}),
                "end_at_step": ("INT", {"default": 10000, "min": 0, "max": 10000}),
                "return_with_leftover_noise": (["disable", "enable"],),
            }
        }

    def sample(
        self,
        model: Model,
        add_noise: str,
        noise_seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: Latent,
        start_at_step: int,
        end_at_step: int,
        return_with_leftover_noise: str,
    ) -> tuple[Latent]:
        from headrace.nodes.schedules import sigmas_for

        sigmas = sigmas_for(model.levels, scheduler, sampler_name, steps, 1.0)
        if end_at_step < len(sigmas) - 1:
            sigmas = sigmas[: end_at_step + 1].clone()
            if return_with_leftover_noise == "disable":
                sigmas[-1] = 0
        sigmas = sigmas[start_at_step:] if start_at_step < len(sigmas) - 1 else sigmas[:0]
        noisy = add_noise == "enable"
        return (
            sample(
                model, noise_seed, cfg, sampler_name, sigmas, positive, negative, latent_image, noisy=noisy
            ),
        )


def sample(
    model: Model,
    seed: int,
    cfg: float,
    sampler: str,
    sigmas: torch.Tensor,
    positive: Conditioning,
    negative: Conditioning,
    latent: Latent,
    *,
    noisy: bool = True,
) -> Latent:
    """A latent after a run of ``sampler`` over ``sigmas``; as it came where these are none.

    The first noise is drawn on the CPU, so that all devices have the same.
    """
    import torch

    from headrace.nodes.denoising import Guided
    from headrace.nodes.samplers import SAMPLERS, Predict, SeededNoise, masked

    if len(sigmas) < 1:
        return latent
    device = model.unet.device
    image = latent["samples"].to(device, torch.float32)
    channels = model.unet.config.in_channels
    if image.ndim != 4 or image.shape[1] != channels:
        raise ValueError(f"the latent has {tuple(image.shape)}; this model takes [B, {channels}, H, W]")
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed)) if noisy else None
    if bool(image.any()):
        image = image * model.scale
    x = image if noise is None else image + noise.to(device) * _first(model, float(sigmas[0]))
    sigmas = sigmas.to(device)
    source = SeededNoise(
        seed, (sigmas.max(), sigmas[sigmas > 0].min() if bool((sigmas > 0).any()) else sigmas[0])
    )
    predict: Predict = Guided(model, positive, negative, cfg, x)
    if "noise_mask" in latent:
        predict = masked(predict, latent["noise_mask"], image, noise)
    made = SAMPLERS[sampler](predict, x, sigmas, source)
    return {**latent, "samples": made / model.scale}


def _first(model: Model, sigma: float) -> float:
    """How much noise is added at first. From the top on, picture and noise together have its deviation."""
    top = model.levels.most
    full = sigma > top or math.isclose(sigma, top, rel_tol=1e-5)
    return math.sqrt(1 + sigma**2) if full else sigma


NODE_CLASS_MAPPINGS: dict[str, Any] = {"KSampler": KSampler, "KSamplerAdvanced": KSamplerAdvanced}

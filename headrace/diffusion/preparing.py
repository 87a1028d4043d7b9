"""From parameters and networks to the settings of a stream: prompts and noise, mixed as asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from headrace.batch.pipelines.pictures import read_picture
from headrace.diffusion.adapters import Recalled
from headrace.diffusion.asked import Adapters, Conditioning, Control, Guidance, Settings
from headrace.diffusion.blending import blend, blend_noise, shares
from headrace.diffusion.loading import Loan
from headrace.diffusion.networks import Networks
from headrace.diffusion.parameters import ControlParams, StreamDiffusionParams, picture_of
from headrace.diffusion.preprocessors import preprocessor_of
from headrace.diffusion.schedule import constants


@torch.inference_mode()
def settings_for(params: StreamDiffusionParams, loan: Loan, height: int, width: int) -> Settings:
    """All that a stream of pictures of ``height`` x ``width`` pixels needs; works out what is new."""
    networks = loan.networks
    needs_negative = guidance_of(params).acting in ("full", "initialize")
    return assembled(
        params,
        networks,
        (height, width),
        _prompt(params, networks),
        networks.encode_prompt(params.negative_prompt) if needs_negative else None,
        tuple(_control(control, loan.nets) for control in params.controlnets if control.enabled),
        _adapters(params, loan),
    )


def guidance_of(params: StreamDiffusionParams) -> Guidance:
    return Guidance(params.cfg_type, params.guidance_scale, params.delta)


@torch.inference_mode()
def assembled(
    params: StreamDiffusionParams,
    networks: Networks,
    size: tuple[int, int],
    positive: Conditioning,
    negative: Conditioning | None,
    controls: tuple[Control, ...],
    adapters: Adapters | None,
) -> Settings:
    """As `settings_for`, of prompts, nets and adapters that are there already. ``size``: height and width."""
    settings = Settings(
        steps=constants(params.t_index_list, params.num_inference_steps, networks.alphas_cumprod),
        noise=_noise(params, networks, *size),
        positive=positive,
        negative=negative,
        guidance=guidance_of(params),
        controls=controls,
        renoise=params.do_add_noise,
        sequential=not params.use_denoising_batch,
        adapters=adapters,
    )
    networks.prepare(settings)
    return settings


def _adapters(params: StreamDiffusionParams, loan: Loan) -> Adapters | None:
    given, kit, wanted = params.lora_dict or {}, loan.kit, params.image_prompt
    # An LCM-LoRA is none of those that have weights.
    scales = [given.get(lora.name, 1.0) for lora in kit.loras]
    own = params.recalls
    recalled = None if own is None else Recalled(own.max_frames, own.interval)
    if wanted is None or kit.image is None:
        return kit.adapters(scales, recalled=recalled)
    assert params.ip_adapter_style_image_url is not None
    picture = read_picture(picture_of(params.ip_adapter_style_image_url), "ip_adapter_style_image_url")
    weights = kit.image.scales(wanted.scale, wanted.weight_type or "linear")
    return kit.adapters(scales, kit.image.prompt(picture), weights, recalled)


def _control(params: ControlParams, nets: Mapping[str, Any]) -> Control:
    return Control(
        nets[params.model_id],
        preprocessor_of(params),
        params.conditioning_scale,
        params.control_guidance_start,
        params.control_guidance_end,
    )


def _prompt(params: StreamDiffusionParams, networks: Networks) -> Conditioning:
    weights = shares(
        [weight for _, weight in params.prompts], normalised=params.normalize_prompt_weights, field="prompt"
    )
    parts = [networks.encode_prompt(text) for text, _ in params.prompts]
    if len(parts) == 1 and weights[0] == 1.0:
        return parts[0]  # of which more is known already
    method = params.prompt_interpolation_method
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return Conditioning(
        blend([part.text for part in parts], weights, method),
        blend(pooled, weights, method) if pooled else None,
    )


def _noise(params: StreamDiffusionParams, networks: Networks, height: int, width: int) -> torch.Tensor:
    """One slot for each step, drawn on the CPU, so that a seed gives the same noise on every device."""
    weights = shares(
        [weight for _, weight in params.seeds], normalised=params.normalize_seed_weights, field="seed"
    )
    shape = (len(params.t_index_list), *networks.latent_shape(height, width))
    parts = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed, _ in params.seeds]
    mixed = blend_noise(
        parts, weights, params.seed_interpolation_method, normalised=params.normalize_seed_weights
    )
    return mixed.to(networks.device)

"""Diffusion pipelines in miniature: the real classes over networks of a few hundred thousand parameters.

The autoencoders keep the real ratio of eight (four in the upscaler), so that sizes behave as the real ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PNDMScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    StableDiffusionXLPipeline,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from headrace.models.tiny import fill
from headrace.models.tiny_text import (
    clip_text,
    clip_text_with_projection,
    clip_tokenizer,
    t5_encoder,
    t5_tokenizer,
)

_BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_WIDTH = 32


def _vae(levels: int = 4, channels: int = 4, scaling: float = 0.18215, **more: Any) -> Any:
    """A KL autoencoder whose side ratio is two to the power of ``levels`` - 1."""
    vae = AutoencoderKL(
        block_out_channels=(8,) * (levels - 1) + (16,),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        scaling_factor=scaling,
        sample_size=64,
        **more,
    )
    return fill(vae, f"vae {levels} {channels}")


def _unet(channels: int = 4, cross: int = _WIDTH, **more: Any) -> Any:
    unet = UNet2DConditionModel(
        sample_size=64,
        in_channels=channels,
        out_channels=4,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=4,
        cross_attention_dim=cross,
        **more,
    )
    return fill(unet, f"unet {channels} {cross}")


def stable_diffusion(folder: Path) -> None:
    tokenizer = clip_tokenizer(folder / "tokenizer")
    StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=clip_text(tokenizer),
        tokenizer=tokenizer,
        unet=_unet(),
        scheduler=PNDMScheduler(skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False, **_BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def instruct_pix2pix(folder: Path) -> None:
    tokenizer = clip_tokenizer(folder / "tokenizer")
    StableDiffusionInstructPix2PixPipeline(
        vae=_vae(),
        text_encoder=clip_text(tokenizer),
        tokenizer=tokenizer,
        unet=_unet(channels=8),
        scheduler=EulerDiscreteScheduler(steps_offset=1, **_BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def upscaler(folder: Path) -> None:
    tokenizer = clip_tokenizer(folder / "tokenizer")
    StableDiffusionUpscalePipeline(
        vae=_vae(levels=3, scaling=0.08333),
        text_encoder=clip_text(tokenizer),
        tokenizer=tokenizer,
        unet=_unet(channels=7, num_class_embeds=1000),
        low_res_scheduler=DDPMScheduler(**_BETAS),
        scheduler=DDIMScheduler(steps_offset=1, prediction_type="v_prediction", **_BETAS),
        max_noise_level=350,
    ).save_pretrained(folder)


def stable_diffusion_xl(folder: Path) -> None:
    tokenizer = clip_tokenizer(folder / "tokenizer")
    # Six numbers of size and crop, each as a wave of eight, beside the pooled text.
    unet = _unet(
        cross=2 * _WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + _WIDTH,
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
    )
    StableDiffusionXLPipeline(
        vae=_vae(scaling=0.13025, force_upcast=True),
        text_encoder=clip_text(tokenizer),
        text_encoder_2=clip_text_with_projection(tokenizer),
        tokenizer=tokenizer,
        tokenizer_2=clip_tokenizer(folder / "tokenizer_2"),
        unet=unet,
        scheduler=EulerDiscreteScheduler(steps_offset=1, **_BETAS),
    ).save_pretrained(folder)


def flux(folder: Path) -> None:
    tokenizer, tokenizer_2 = clip_tokenizer(folder / "tokenizer"), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=_WIDTH,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=False,
    )
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=_vae(
            channels=4, scaling=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=clip_text(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=t5_encoder(tokenizer_2),
        tokenizer_2=tokenizer_2,
        transformer=fill(transformer, "flux"),
    ).save_pretrained(folder)


def stable_video_diffusion(folder: Path) -> None:
    unet = UNetSpatioTemporalConditionModel(
        # Its norms have groups of 32, whatever is asked for.
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        layers_per_block=1,
        num_attention_heads=(2, 4),
        cross_attention_dim=_WIDTH,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=3 * 8,
        transformer_layers_per_block=1,
        num_frames=14,
        sample_size=64,
    )
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        sample_size=64,
        scaling_factor=0.18215,
    )
    # The pipeline makes its pictures 224 pixels wide for the encoder, whatever this says.
    vision = CLIPVisionConfig(
        image_size=224, patch_size=32, hidden_size=32, intermediate_size=64, projection_dim=_WIDTH,
        num_hidden_layers=2, num_attention_heads=4,
    )  # fmt: skip
    StableVideoDiffusionPipeline(
        vae=fill(vae, "svd vae"),
        image_encoder=fill(CLIPVisionModelWithProjection(vision), "svd vision"),
        unet=fill(unet, "svd unet"),
        scheduler=EulerDiscreteScheduler(
            prediction_type="v_prediction", use_karras_sigmas=True, timestep_type="continuous",
            sigma_min=0.002, sigma_max=700.0, timestep_spacing="leading", steps_offset=1, **_BETAS,
        ),
        feature_extractor=CLIPImageProcessor(
            size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}
        ),
    ).save_pretrained(folder)  # fmt: skip

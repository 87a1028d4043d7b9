"""Configurations of diffusers and transformers, read off the shapes of tensors that have their names.

No torch. What shapes cannot tell (heads, activations, groups of norms) follows from the family.
"""

from __future__ import annotations

from typing import Any

from headrace.models.single.layout import Family, Shapes, count
from stream.errors import InvalidInput

Config = dict[str, Any]

BETAS: Config = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
SCALING = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025, "sdxl-refiner": 0.13025, "flux": 0.3611}
FLUX_SHIFT = 0.1159
SAMPLE_SIDE = {"sd1": 64, "sd2": 96, "sdxl": 128, "sdxl-refiner": 128, "flux": 128}
_HEAD = 64
"""Channels of an attention head, where it is not eight heads (Stable Diffusion 1)."""


def unet_config(shapes: Shapes, family: Family) -> Config:
    """Of `UNet2DConditionModel`. Raises `InvalidInput` for what is no such network."""
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": shapes["conv_in.weight"][1],
        "out_channels": shapes["conv_out.weight"][0],
        "up_block_types": [
            "CrossAttnUpBlock2D" if count(shapes, f"up_blocks.{level}.attentions.{{}}.") else "UpBlock2D"
            for level in range(count(shapes, "up_blocks.{}."))
        ],
        **_down_config(shapes, family),
    }


def controlnet_config(shapes: Shapes, family: Family) -> Config:
    """Of `ControlNetModel`."""
    embedding = "controlnet_cond_embedding"
    widths = [shapes[f"{embedding}.conv_in.weight"][0]]
    blocks = count(shapes, f"{embedding}.blocks.{{}}.")
    widths += [shapes[f"{embedding}.blocks.{number}.weight"][0] for number in range(1, blocks, 2)]
    down = _down_config(shapes, family)
    down.pop("sample_size")
    return {
        "_class_name": "ControlNetModel",
        "in_channels": shapes["conv_in.weight"][1],
        "conditioning_channels": shapes[f"{embedding}.conv_in.weight"][1],
        "conditioning_embedding_out_channels": widths,
        **down,
    }


def _down_config(shapes: Shapes, family: Family) -> Config:
    levels = range(count(shapes, "down_blocks.{}."))
    if not levels or "mid_block.resnets.0.conv1.weight" not in shapes:
        raise InvalidInput("its blocks are not those of Stable Diffusion", field="model_id")
    channels = [shapes[f"down_blocks.{level}.resnets.0.conv1.weight"][0] for level in levels]
    depths = [count(shapes, f"down_blocks.{level}.attentions.0.transformer_blocks.{{}}.") for level in levels]
    middle = count(shapes, "mid_block.attentions.0.transformer_blocks.{}.")
    linear = any(len(s) == 2 for n, s in shapes.items() if n.endswith(".proj_in.weight"))
    config: Config = {
        "block_out_channels": channels,
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else "UNetMidBlock2D",
        "layers_per_block": count(shapes, "down_blocks.0.resnets.{}."),
        "transformer_layers_per_block": [*(depth or 1 for depth in depths[:-1]), depths[-1] or middle or 1],
        "cross_attention_dim": next(
            (s[1] for n, s in shapes.items() if n.endswith("attn2.to_k.weight")), channels[-1]
        ),
        "use_linear_projection": linear,
        "attention_head_dim": [width // _HEAD for width in channels] if linear else 8,
        "sample_size": SAMPLE_SIDE.get(family, 64),
    }
    added = shapes.get("add_embedding.linear_1.weight")
    if added is not None:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": added[1],
        }
    return config


def vae_config(shapes: Shapes, family: Family) -> Config:
    """Of `AutoencoderKL`. ``family`` of the network beside it; alone, latents are told apart by channels."""
    levels = range(count(shapes, "decoder.up_blocks.{}."))
    channels = [shapes[f"decoder.up_blocks.{level}.resnets.0.conv1.weight"][0] for level in levels]
    latents = shapes["decoder.conv_in.weight"][1]
    flux = latents == 16
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "latent_channels": latents,
        "block_out_channels": channels[::-1],
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
        "layers_per_block": count(shapes, "decoder.up_blocks.0.resnets.{}.") - 1,
        "norm_num_groups": 32,
        "sample_size": 8 * SAMPLE_SIDE.get(family, 64),
        "scaling_factor": SCALING["flux"] if flux else SCALING.get(family, SCALING["sd1"]),
        "shift_factor": FLUX_SHIFT if flux else None,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "force_upcast": family.startswith("sdxl"),
    }


def clip_config(shapes: Shapes, *, open_clip: bool) -> Config:
    """Of `CLIPTextModel`, from names that begin with ``text_model.``."""
    rows, width = shapes["text_model.embeddings.token_embedding.weight"]
    projection = shapes.get("text_projection.weight")
    kind = "CLIPTextModelWithProjection" if projection and open_clip else "CLIPTextModel"
    return {
        "architectures": [kind],
        "model_type": "clip_text_model",
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": count(shapes, "text_model.encoder.layers.{}."),
        "num_attention_heads": max(1, width // _HEAD),
        "max_position_embeddings": shapes["text_model.embeddings.position_embedding.weight"][0],
        "hidden_act": "gelu" if open_clip else "quick_gelu",
        "projection_dim": projection[0] if projection else width,
        "bos_token_id": rows - 2,
        "eos_token_id": rows - 1,
        "pad_token_id": 1,
    }


def t5_config(shapes: Shapes) -> Config:
    """Of `T5EncoderModel`, version 1.1."""
    rows, width = shapes["shared.weight"]
    buckets, heads = shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    gated = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "vocab_size": rows,
        "d_model": width,
        "d_kv": shapes["encoder.block.0.layer.0.SelfAttention.q.weight"][0] // heads,
        "d_ff": shapes[gated][0],
        "num_layers": count(shapes, "encoder.block.{}."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "is_encoder_decoder": False,
    }


def flux_config(shapes: Shapes) -> Config:
    """Of `FluxTransformer2DModel`, from the names of its makers' files."""
    return {
        "_class_name": "FluxTransformer2DModel",
        "patch_size": 1,
        "in_channels": shapes["img_in.weight"][1],
        "num_layers": count(shapes, "double_blocks.{}."),
        "num_single_layers": count(shapes, "single_blocks.{}."),
        "attention_head_dim": 128,
        "num_attention_heads": shapes["img_in.weight"][0] // 128,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        "axes_dims_rope": [16, 56, 56],
    }


def scheduler_config(family: Family, *, v_prediction: bool, zero_snr: bool) -> Config:
    """The scheduler that a pipeline of the family runs with unless asked for another."""
    prediction = "v_prediction" if v_prediction else "epsilon"
    if family == "flux":
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "use_dynamic_shifting": True}
    if family in ("sd1", "sd2"):
        return {
            "_class_name": "PNDMScheduler" if not v_prediction else "DDIMScheduler",
            **BETAS,
            "steps_offset": 1,
            "set_alpha_to_one": False,
            "prediction_type": prediction,
            **({"skip_prk_steps": True} if not v_prediction else {"clip_sample": False}),
        }
    return {
        "_class_name": "EulerDiscreteScheduler",
        **BETAS,
        "steps_offset": 1,
        "timestep_spacing": "trailing" if zero_snr else "leading",
        "rescale_betas_zero_snr": zero_snr,
        "prediction_type": prediction,
    }

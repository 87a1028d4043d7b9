"""Checkpoints in one file, in the layout of the original programs: small, of random weights.

The names are built here from the shape of a network, so that the reading of such files has something to be
held against that it was not made from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

Names = Iterator[tuple[str, str]]
"""A name in diffusers and the same in the file; both are beginnings, up to a dot."""


def unet_names(levels: int, layers: int, attention: tuple[bool, ...], prefix: str) -> Names:
    yield "conv_in.", f"{prefix}input_blocks.0.0."
    yield "time_embedding.linear_1.", f"{prefix}time_embed.0."
    yield "time_embedding.linear_2.", f"{prefix}time_embed.2."
    yield "add_embedding.linear_1.", f"{prefix}label_emb.0.0."
    yield "add_embedding.linear_2.", f"{prefix}label_emb.0.2."
    yield "conv_norm_out.", f"{prefix}out.0."
    yield "conv_out.", f"{prefix}out.2."
    number = 0
    for level in range(levels):
        for layer in range(layers):
            number += 1
            yield from resnet(f"down_blocks.{level}.resnets.{layer}.", f"{prefix}input_blocks.{number}.0.")
            yield f"down_blocks.{level}.attentions.{layer}.", f"{prefix}input_blocks.{number}.1."
        if level < levels - 1:
            number += 1
            yield f"down_blocks.{level}.downsamplers.0.conv.", f"{prefix}input_blocks.{number}.0.op."
    yield from resnet("mid_block.resnets.0.", f"{prefix}middle_block.0.")
    yield "mid_block.attentions.0.", f"{prefix}middle_block.1."
    yield from resnet("mid_block.resnets.1.", f"{prefix}middle_block.2.")
    number = 0
    for level in range(levels):
        attends = attention[levels - 1 - level]
        for layer in range(layers + 1):
            yield from resnet(f"up_blocks.{level}.resnets.{layer}.", f"{prefix}output_blocks.{number}.0.")
            yield f"up_blocks.{level}.attentions.{layer}.", f"{prefix}output_blocks.{number}.1."
            if layer == layers and level < levels - 1:
                place = 2 if attends else 1
                yield f"up_blocks.{level}.upsamplers.0.", f"{prefix}output_blocks.{number}.{place}."
            number += 1


def controlnet_names(levels: int, layers: int, prefix: str) -> Names:
    yield from unet_names(levels, layers, (True,) * levels, prefix)
    blocks = levels * (layers + 1)
    for number in range(blocks):
        yield f"controlnet_down_blocks.{number}.", f"{prefix}zero_convs.{number}.0."
    yield "controlnet_mid_block.", f"{prefix}middle_block_out.0."
    yield "controlnet_cond_embedding.conv_in.", f"{prefix}input_hint_block.0."
    for number in range(6):
        yield f"controlnet_cond_embedding.blocks.{number}.", f"{prefix}input_hint_block.{2 * number + 2}."
    yield "controlnet_cond_embedding.conv_out.", f"{prefix}input_hint_block.14."


def resnet(new: str, old: str) -> Names:
    pairs = (
        ("norm1", "in_layers.0"),
        ("conv1", "in_layers.2"),
        ("time_emb_proj", "emb_layers.1"),
        ("norm2", "out_layers.0"),
        ("conv2", "out_layers.3"),
        ("conv_shortcut", "skip_connection"),
    )
    yield from ((f"{new}{a}.", f"{old}{b}.") for a, b in pairs)


def vae_names(levels: int, layers: int, prefix: str) -> Names:
    for side, blocks in (("encoder", layers), ("decoder", layers + 1)):
        for name in ("conv_in", "conv_out"):
            yield f"{side}.{name}.", f"{prefix}{side}.{name}."
        yield f"{side}.conv_norm_out.", f"{prefix}{side}.norm_out."
        for number in (0, 1):
            yield f"{side}.mid_block.resnets.{number}.", f"{prefix}{side}.mid.block_{number + 1}."
        pairs = (
            ("group_norm", "norm"),
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("to_out.0", "proj_out"),
        )
        for new, old in pairs:
            yield f"{side}.mid_block.attentions.0.{new}.", f"{prefix}{side}.mid.attn_1.{old}."
        for level in range(levels):
            old_level = level if side == "encoder" else levels - 1 - level
            new_way, old_way = ("down", "down") if side == "encoder" else ("up", "up")
            base = f"{prefix}{side}.{old_way}.{old_level}"
            for block in range(blocks):
                yield f"{side}.{new_way}_blocks.{level}.resnets.{block}.", f"{base}.block.{block}."
            sample = "downsample" if side == "encoder" else "upsample"
            yield f"{side}.{new_way}_blocks.{level}.{sample}rs.0.conv.", f"{base}.{sample}.conv."
    yield "quant_conv.", f"{prefix}quant_conv."
    yield "post_quant_conv.", f"{prefix}post_quant_conv."


def renamed(module: torch.nn.Module, names: Names) -> dict[str, torch.Tensor]:
    """The tensors of ``module`` under the names of the file; every one must have one."""
    table = list(names)
    found: dict[str, torch.Tensor] = {}
    for name, value in module.state_dict().items():
        old = next((o + name.removeprefix(n) for n, o in table if name.startswith(n)), None)
        assert old is not None, f"{name} has no name in the file"
        found[old.replace("conv_shortcut", "nin_shortcut")] = value
    return found


def drawn(module: torch.nn.Module, seed: int, *, gain: float = 1.0) -> Any:
    """Every parameter drawn anew; what a half holds, so that files of either type are the same."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                fan = parameter[0].numel()
                value = torch.randn(parameter.shape, generator=generator) * gain * fan**-0.5
            else:
                value = torch.randn(parameter.shape, generator=generator) * 0.05
                value += 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(value.half().float())
    return module.eval()


def small_unet(*, width: int = 32, xl: bool = False, context: int | None = None) -> Any:
    from diffusers import UNet2DConditionModel

    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    more: dict[str, Any] = {"attention_head_dim": 8}
    if xl:
        more = {
            "attention_head_dim": [width // 64, 2 * width // 64],
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 1280 + 6 * 256,
            "transformer_layers_per_block": (1, 2),
        }
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(width, 2 * width),
        down_block_types=down[::-1] if xl else down,
        up_block_types=up[::-1] if xl else up,
        layers_per_block=1,
        cross_attention_dim=context or (2048 if xl else 768),
        **more,
    )  # fmt: skip


def small_vae(width: int = 32) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(width,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
    )


def small_clip(width: int = 768, layers: int = 2, rows: int = 49408) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=rows, hidden_size=width, intermediate_size=64, num_hidden_layers=layers,
            num_attention_heads=width // 64, max_position_embeddings=77, hidden_act="quick_gelu",
            bos_token_id=rows - 2, eos_token_id=rows - 1,
        )
    )  # fmt: skip


def clip_tensors(module: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}text_model.{n.removeprefix('text_model.')}": v for n, v in module.state_dict().items()}


def open_clip_tensors(module: Any) -> dict[str, torch.Tensor]:
    """OpenCLIP's names: three matrices of the attention in one, the projection the other way round."""
    module.config.hidden_act = "gelu"
    for layer in module.encoder.layers:
        layer.mlp.activation_fn = torch.nn.GELU()
    state = module.state_dict()
    width = module.config.hidden_size
    found = {
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": torch.randn(width, width),
        "logit_scale": torch.tensor(1.0),
    }
    for number in range(module.config.num_hidden_layers):
        old, new = f"encoder.layers.{number}.", f"transformer.resblocks.{number}."
        for end in ("weight", "bias"):
            qkv = [state[f"{old}self_attn.{letter}_proj.{end}"] for letter in "qkv"]
            found[f"{new}attn.in_proj_{end}"] = torch.cat(qkv)
            found[f"{new}attn.out_proj.{end}"] = state[f"{old}self_attn.out_proj.{end}"]
            found[f"{new}ln_1.{end}"] = state[f"{old}layer_norm1.{end}"]
            found[f"{new}ln_2.{end}"] = state[f"{old}layer_norm2.{end}"]
            found[f"{new}mlp.c_fc.{end}"] = state[f"{old}mlp.fc1.{end}"]
            found[f"{new}mlp.c_proj.{end}"] = state[f"{old}mlp.fc2.{end}"]
    return found


def vae_tensors(vae: torch.nn.Module, prefix: str = "first_stage_model.") -> dict[str, torch.Tensor]:
    found = renamed(vae, vae_names(4, 1, prefix))
    # The attention of the original is made of convolutions.
    return {
        name: value[..., None, None] if ".attn_1." in name and value.ndim == 2 else value
        for name, value in found.items()
    }


def unet_tensors(
    unet: torch.nn.Module, attention: tuple[bool, ...], prefix: str = "model.diffusion_model."
) -> Any:
    return {
        name.replace("nin_shortcut", "skip_connection"): value
        for name, value in renamed(unet, unet_names(2, 1, attention, prefix)).items()
    }


def write(path: Path, tensors: dict[str, torch.Tensor], change: Callable[[Any], Any] = lambda t: t) -> Path:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({n: change(v).contiguous().clone() for n, v in tensors.items()}, path)
    return path

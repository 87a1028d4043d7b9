"""Networks for measuring: SD-Turbo's at full size, and miniature ones; random weights."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderTiny, DiffusionPipeline, UNet2DConditionModel

from headrace.diffusion.loras import LoraFile
from headrace.models import tiny_diffusion
from headrace.models.tiny import fill


def tiny(device: str, dtype: torch.dtype) -> Any:
    """The demo's miniature of Stable Diffusion with a miniature TAESD."""
    with tempfile.TemporaryDirectory() as folder:
        tiny_diffusion.stable_diffusion(Path(folder))
        pipe = DiffusionPipeline.from_pretrained(folder)
    small = (16,) * 4
    pipe.vae = fill(
        AutoencoderTiny(
            encoder_block_out_channels=small,
            decoder_block_out_channels=small,
            num_encoder_blocks=(1,) * 4,
            num_decoder_blocks=(1,) * 4,
        ),
        "taesd",
    )
    return pipe.to(device, dtype)


def lora(unet: Any, rank: int = 4) -> LoraFile:
    """On every matrix and kernel of a network, in the names of kohya's programs; weak random weights."""
    random = torch.Generator().manual_seed(1)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in unet.named_parameters():
        if not name.endswith(".weight") or weight.ndim < 2:
            continue
        key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        kernel = weight.shape[2:]
        down = torch.randn((rank, weight.shape[1], *kernel), generator=random)
        tensors[f"{key}.lora_down.weight"] = down * weight[0].numel() ** -0.5
        tensors[f"{key}.lora_up.weight"] = 0.05 * torch.randn(
            (weight.shape[0], rank, *(1,) * len(kernel)), generator=random
        )
    held: Any = SimpleNamespace(model=tensors)
    return LoraFile("measured", "measured", held)


def full_size(device: str, dtype: torch.dtype) -> Any:
    """SD-Turbo's UNet (that of SD 2.1, 866 M parameters) and TAESD. The text encoder stays a small one of the
    right width: it does not run for frames."""
    pipe = tiny(device, dtype)
    width = pipe.text_encoder.config.hidden_size
    with torch.device(device):
        unet = UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
        )
        vae = AutoencoderTiny()
    pipe.unet, pipe.vae = unet.to(dtype).eval(), vae.to(dtype).eval()
    encoder = pipe.text_encoder

    class Widened(torch.nn.Module):
        """The small encoder's states, repeated to the width that the network takes."""

        config, dtype = encoder.config, encoder.dtype

        def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
            return (encoder(*args, **kwargs)[0].repeat(1, 1, 1024 // width),)

    pipe.text_encoder = Widened()
    return pipe

"""Networks in miniature with random weights, of the classes that SD and SDXL are made of."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny

from headrace.diffusion.networks import Networks
from headrace.models.tiny import fill


def tiny_autoencoder() -> Any:
    """TAESD's class with its ratio of eight, a quarter as wide."""
    return fill(
        AutoencoderTiny(
            encoder_block_out_channels=(16,) * 4,
            decoder_block_out_channels=(16,) * 4,
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1),
        ),
        "tiny taesd",
    ).eval()


@cache
def pipeline(kind: str, folder: Path) -> Any:
    """A pipeline of diffusers: ``sd`` or ``sdxl``, written to ``folder`` and read again."""
    from diffusers import DiffusionPipeline

    from headrace.models import tiny_diffusion

    build = {"sd": tiny_diffusion.stable_diffusion, "sdxl": tiny_diffusion.stable_diffusion_xl}[kind]
    build(folder / kind)
    made = DiffusionPipeline.from_pretrained(folder / kind, torch_dtype=torch.float32)
    made.vae = tiny_autoencoder()
    for part in (made.unet, made.text_encoder):
        part.eval()
    return made


def networks(kind: str, folder: Path) -> Networks:
    return Networks(dict(pipeline(kind, folder).components), torch.device("cpu"), torch.float32)

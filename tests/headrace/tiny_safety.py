"""The safety checker in miniature, with random weights."""

from __future__ import annotations

from pathlib import Path

import torch

from headrace.models.tiny import fill


def make_checker(folder: Path, threshold: float) -> None:
    """The real class in miniature. ``threshold``: of all concepts; below -1 all pictures are flagged."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    vision = {
        "image_size": 224, "patch_size": 32, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 4,
    }  # fmt: skip
    checker = fill(StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16)), "safe")
    with torch.no_grad():
        checker.concept_embeds.copy_(torch.randn(17, 16, generator=torch.Generator().manual_seed(0)))
        checker.concept_embeds_weights.fill_(threshold)
        checker.special_care_embeds_weights.fill_(2.0)
    checker.save_pretrained(folder)

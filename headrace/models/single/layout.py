"""What a file of weights holds, by the names and shapes of its tensors. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Part = Literal["unet", "vae", "clip", "open_clip", "t5", "controlnet", "flux", "taesd"]
Family = Literal["sd1", "sd2", "sdxl", "sdxl-refiner", "flux", ""]

_MARKS: tuple[tuple[Part, tuple[str, ...], tuple[str, ...]], ...] = (
    ("unet", ("model.diffusion_model.", ""), ("input_blocks.0.0.weight", "time_embed.0.weight")),
    ("unet", ("",), ("time_embedding.linear_1.weight", "down_blocks.0.resnets.0.conv1.weight")),
    ("vae", ("first_stage_model.", "vae.", ""), ("decoder.mid.block_1.conv1.weight",)),
    ("vae", ("",), ("decoder.conv_in.weight", "decoder.mid_block.resnets.0.conv1.weight")),
    ("flux", ("model.diffusion_model.", ""), ("double_blocks.0.img_attn.qkv.weight", "img_in.weight")),
    ("t5", ("text_encoders.t5xxl.transformer.", ""), ("encoder.block.0.layer.0.SelfAttention.q.weight",)),
    ("controlnet", ("control_model.", ""), ("input_hint_block.0.weight", "input_blocks.0.0.weight")),
    ("controlnet", ("",), ("controlnet_cond_embedding.conv_in.weight", "conv_in.weight")),
    ("taesd", ("",), ("taesd_decoder.1.weight", "taesd_encoder.0.weight")),
)  # fmt: skip
"""A part, the prefixes that it may have, and names below them that are all there when it is."""

_CLIPS = (
    "cond_stage_model.transformer.",
    "conditioner.embedders.0.transformer.",
    "text_encoders.clip_l.transformer.",
    "text_encoders.clip_g.transformer.",
    "",
)
_OPEN_CLIPS = (
    "cond_stage_model.model.",
    "conditioner.embedders.0.model.",
    "conditioner.embedders.1.model.",
    "",
)
_CLIP_MARK = "embeddings.token_embedding.weight"
_OPEN_CLIP_MARK = "transformer.resblocks.0.attn.in_proj_weight"


@dataclass(frozen=True, slots=True)
class Found:
    """One part of a file. ``names`` leads from the names without the prefix to those in the file."""

    part: Part
    prefix: str
    names: Mapping[str, str]

    def shapes(self, of_file: Shapes) -> dict[str, Shape]:
        return {name: of_file[original] for name, original in self.names.items()}


def parts_of(shapes: Shapes) -> list[Found]:
    """The parts of a file; empty when it is of no kind that is known here."""
    found: list[Found] = []
    for part, prefixes, marks in _MARKS:
        if part == "unet" and any(item.part in ("unet", "controlnet") for item in found):
            continue
        prefix = next((p for p in prefixes if all(f"{p}{mark}" in shapes for mark in marks)), None)
        if prefix is not None and not any(item.part == part for item in found):
            found.append(_take(part, prefix, shapes))
    if any(item.part == "controlnet" for item in found):
        found = [item for item in found if item.part != "unet"]
    for prefix in _CLIPS:
        if f"{prefix}text_model.{_CLIP_MARK}" in shapes or f"{prefix}{_CLIP_MARK}" in shapes:
            found.append(_take("clip", prefix, shapes))
    found += [_take("open_clip", p, shapes) for p in _OPEN_CLIPS if f"{p}{_OPEN_CLIP_MARK}" in shapes]
    return found


def _take(part: Part, prefix: str, shapes: Shapes) -> Found:
    return Found(part, prefix, {n.removeprefix(prefix): n for n in shapes if n.startswith(prefix)})


def family_of(shapes: Shapes, parts: list[Found]) -> Family:
    """Which model a diffusion network is of, by the width of its text and of what is added to its time."""
    if any(item.part == "flux" for item in parts):
        return "flux"
    unet = next((item for item in parts if item.part in ("unet", "controlnet")), None)
    if unet is None:
        return ""
    of_unet = unet.shapes(shapes)
    text = next((s[1] for n, s in of_unet.items() if n.endswith("attn2.to_k.weight")), 0)
    added = of_unet.get("label_emb.0.0.weight") or of_unet.get("add_embedding.linear_1.weight")
    if added is None:
        return {768: "sd1", 1024: "sd2"}.get(text, "")  # type: ignore[return-value]
    return {2048: "sdxl", 1280: "sdxl-refiner"}.get(text, "")  # type: ignore[return-value]


def count(names: Shapes, pattern: str) -> int:
    """How many of ``pattern``, with a number from 0 on in place of {}, begin a name."""
    number = 0
    while any(name.startswith(pattern.format(number)) for name in names):
        number += 1
    return number

"""Tensors of one part of a file, under the names that diffusers and transformers have for them.

The renaming itself is diffusers' own (`diffusers.loaders.single_file_utils`); nothing is fetched.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from headrace.models.errors import LoadFailed
from headrace.models.single import configs
from headrace.models.single.configs import Config
from headrace.models.single.layout import Family, Found, Shapes, count

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

Tensors = Mapping[str, "torch.Tensor"]
_SHOWN = 5
_IGNORED = ("position_ids", "logit_scale", "num_batches_tracked")
"""Ends of names that carry no weights."""


@dataclass(frozen=True)
class Converted:
    """A part as a module would save it. ``library`` and ``kind``: its class, as ``model_index.json`` says."""

    library: str
    kind: str
    config: Config
    tensors: dict[str, torch.Tensor]


def convert(found: Found, tensors: Tensors, family: Family) -> Converted:
    """The part ``found``, whose ``tensors`` have their names without its prefix.

    Raises `LoadFailed` that names what is missing or has another shape; what is too much is logged.
    """
    made = _CONVERTERS[found.part](dict(tensors), family)
    _compare(made, found)
    return made


def _unet(tensors: dict[str, torch.Tensor], family: Family) -> Converted:
    from diffusers.loaders import single_file_utils as files

    if "input_blocks.0.0.weight" in tensors:
        hints: Config = {"layers_per_block": _layers(tensors)}
        if "label_emb.0.0.weight" in tensors:
            hints["addition_embed_type"] = "text_time"
        prefixed = {f"model.diffusion_model.{name}": value for name, value in tensors.items()}
        tensors = files.convert_ldm_unet_checkpoint(prefixed, hints)
    return Converted(
        "diffusers", "UNet2DConditionModel", configs.unet_config(shapes_of(tensors), family), tensors
    )


def _controlnet(tensors: dict[str, torch.Tensor], family: Family) -> Converted:
    from diffusers.loaders import single_file_utils as files

    if "input_blocks.0.0.weight" in tensors:
        added = {name: value for name, value in tensors.items() if name.startswith("label_emb.")}
        tensors = files.convert_controlnet_checkpoint(tensors, {"layers_per_block": _layers(tensors)})
        for old, new in (("label_emb.0.0.", "linear_1."), ("label_emb.0.2.", "linear_2.")):
            tensors |= {
                f"add_embedding.{new}{name.removeprefix(old)}": value
                for name, value in added.items()
                if name.startswith(old)
            }
    config = configs.controlnet_config(shapes_of(tensors), family)
    return Converted("diffusers", "ControlNetModel", config, tensors)


def _layers(tensors: Tensors) -> int:
    """Residual blocks of each level: between two that halve the picture."""
    blocks = count(shapes_of(tensors), "input_blocks.{}.")
    halvings = [number for number in range(blocks) if f"input_blocks.{number}.0.op.weight" in tensors]
    return (halvings[0] if halvings else blocks) - 1


def _vae(tensors: dict[str, torch.Tensor], family: Family) -> Converted:
    from diffusers.loaders import single_file_utils as files

    if "decoder.mid.block_1.conv1.weight" in tensors:
        levels = count(shapes_of(tensors), "decoder.up.{}.")
        blocks = {"down_block_types": [""] * levels, "up_block_types": [""] * levels}
        tensors = files.convert_ldm_vae_checkpoint(tensors, blocks)
    return Converted("diffusers", "AutoencoderKL", configs.vae_config(shapes_of(tensors), family), tensors)


def _clip(tensors: dict[str, torch.Tensor], family: Family) -> Converted:
    if "embeddings.token_embedding.weight" in tensors:
        tensors = {
            name if name.startswith("text_projection") else f"text_model.{name}": value
            for name, value in tensors.items()
        }
    shapes = shapes_of(tensors)
    # Alone in a file, the encoders of OpenCLIP have these names too; theirs are wider than CLIP's large one.
    wide = shapes["text_model.embeddings.token_embedding.weight"][1] > 768
    return _encoder(tensors, open_clip=wide)


def _open_clip(tensors: dict[str, torch.Tensor], family: Family) -> Converted:
    from diffusers.loaders import single_file_utils as files

    width = tensors["token_embedding.weight"].shape[1]
    prefix = "cond_stage_model.model."
    prefixed = {f"{prefix}{name}": value for name, value in tensors.items()}
    stand_in = SimpleNamespace(config=SimpleNamespace(hidden_size=width))
    if family == "sd2":
        # Its network was trained on what comes out of the last layer but one, and takes nothing pooled.
        prefixed.pop(f"{prefix}text_projection", None)
        last = count(shapes_of(tensors), "transformer.resblocks.{}.") - 1
        prefixed = {
            n: v for n, v in prefixed.items() if not n.startswith(f"{prefix}transformer.resblocks.{last}.")
        }
    else:
        prefix = "conditioner.embedders.1.model."
        prefixed = {f"{prefix}{name}": value for name, value in tensors.items()}
    return _encoder(files.convert_open_clip_checkpoint(stand_in, prefixed, prefix=prefix), open_clip=True)


def _encoder(tensors: dict[str, torch.Tensor], *, open_clip: bool) -> Converted:
    config = configs.clip_config(shapes_of(tensors), open_clip=open_clip)
    kind = config["architectures"][0]
    if kind == "CLIPTextModel":
        tensors = {
            n.removeprefix("text_model."): v for n, v in tensors.items() if n != "text_projection.weight"
        }
    return Converted("transformers", kind, config, tensors)


def _t5(tensors: dict[str, torch.Tensor], family: Family) -> Converted:
    if "shared.weight" not in tensors:
        tensors["shared.weight"] = tensors["encoder.embed_tokens.weight"]
    tensors.pop("encoder.embed_tokens.weight", None)
    return Converted("transformers", "T5EncoderModel", configs.t5_config(shapes_of(tensors)), tensors)


def _flux(tensors: dict[str, torch.Tensor], family: Family) -> Converted:
    from diffusers.loaders import single_file_utils as files

    config = configs.flux_config(shapes_of(tensors))
    made = files.convert_flux_transformer_checkpoint_to_diffusers(tensors)
    return Converted("diffusers", "FluxTransformer2DModel", config, made)


_CONVERTERS = {
    "unet": _unet,
    "controlnet": _controlnet,
    "vae": _vae,
    "clip": _clip,
    "open_clip": _open_clip,
    "t5": _t5,
    "flux": _flux,
}


def shapes_of(tensors: Tensors) -> Shapes:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _compare(made: Converted, found: Found) -> None:
    """Hold the tensors against the module that the configuration makes."""
    wanted = shapes_of(empty(made).state_dict())
    here = shapes_of(made.tensors)
    missing = [n for n in wanted if n not in here and not n.endswith(_IGNORED) and not _tied(n)]
    other = [f"{n} is {here[n]}, not {wanted[n]}" for n in wanted if n in here and here[n] != wanted[n]]
    extra = [n for n in here if n not in wanted]
    for name in extra:
        made.tensors.pop(name)
    extra = [n for n in extra if not n.endswith(_IGNORED)]
    if extra:
        log.warning("%s: %d tensors are not used: %s", found.part, len(extra), _some(extra))
    if missing or other:
        what = f"{len(missing)} tensors are missing: {_some(missing)}" if missing else _some(other)
        raise LoadFailed(f"the {found.part} of the file is not whole: {what}", field="model_id")


def _tied(name: str) -> bool:
    return name == "encoder.embed_tokens.weight"


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def empty(made: Converted) -> Any:
    """The module of a converted part, without memory for its weights."""
    import importlib

    import torch

    kind = getattr(importlib.import_module(made.library), made.kind)
    with torch.device("meta"):
        if made.library == "diffusers":
            return kind.from_config({k: v for k, v in made.config.items() if k != "_class_name"})
        return kind(kind.config_class(**made.config))

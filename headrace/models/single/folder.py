"""A checkpoint of one file as a folder of diffusers, made once and kept beside the other converted copies.

So everything else (types, sharing between engines, the endpoints) takes it as any pipeline.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.models import tensors
from headrace.models.made_once import made_once
from headrace.models.single import configs
from headrace.models.single.layout import Family, Found, Shapes, family_of, parts_of
from headrace.models.single.vocabulary import write_tokenizer
from headrace.models.store import Located
from stream.errors import InvalidInput

if TYPE_CHECKING:
    import torch

_PIPELINES = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sdxl-refiner": "StableDiffusionXLImg2ImgPipeline",
    "flux": "FluxPipeline",
}
_VERSION = 1
"""Goes up when a conversion changes, so that what older ones made is made anew."""
_V_PREDICTION_SPREAD = 0.09
"""Stable Diffusion 2 does not say what it predicts; a bias near its end spreads wider where that is v."""


def is_single(found: Located) -> bool:
    """Whether a model is one file of tensors."""
    return found.kind in ("safetensors", "pickle")


def pipeline_class(found: Located) -> str:
    """The pipeline of diffusers that a whole checkpoint is of, from the names in the file.

    Raises `InvalidInput` (field ``model_id``) for a file of another kind, or with a part alone.
    """
    name = class_of(found)
    if name is None:
        what = (
            ", ".join(sorted({item.part for item in parts_of(file_shapes(found))})) or "no part that is known"
        )
        raise InvalidInput(
            f"model {found.ref} is one file with {what}; a checkpoint of pictures has a network of Stable "
            "Diffusion 1, 2 or XL, its text encoder and its vae",
            field="model_id",
        )
    return name


def class_of(found: Located) -> str | None:
    """`pipeline_class`; None in the place of `InvalidInput`."""
    shapes = file_shapes(found)
    parts = parts_of(shapes)
    family = family_of(shapes, parts)
    have = {item.part for item in parts}
    if family not in _PIPELINES or not {"unet", "vae"} <= have or not have & {"clip", "open_clip"}:
        return None
    return _class_of(family, shapes, parts)


def _class_of(family: Family, shapes: Shapes, parts: list[Found]) -> str:
    if family == "sd1" and _inputs(shapes, parts) == 8:
        return "StableDiffusionInstructPix2PixPipeline"
    return _PIPELINES.get(family, "DiffusionPipeline")


def _inputs(shapes: Shapes, parts: list[Found]) -> int:
    unet = next(item for item in parts if item.part == "unet").shapes(shapes)
    return (unet.get("input_blocks.0.0.weight") or unet["conv_in.weight"])[1]


def file_shapes(found: Located) -> Shapes:
    """Names and shapes of the tensors of a file."""
    if found.kind == "pickle":
        return {
            name: tuple(value.shape)
            for name, value in tensors.read_pickle(found.path).items()
            if hasattr(value, "shape")
        }
    return {name: tuple(item["shape"]) for name, item in tensors.read_header(found.path).items()}


def prepared(found: Located, cache: Path, dtype: str) -> Located:
    """The file as a folder with a part each and floats of ``dtype``, made when it is not there.

    ``model_index.json`` names what the file has: one that is a part alone has that part alone. Raises
    `InvalidInput` for files of no known kind, `LoadFailed` for ones that are not whole.
    """
    identity = f"{found.ref} {found.revision} {_VERSION}"
    digest = hashlib.sha256(f"{identity}\n{dtype}".encode()).hexdigest()[:24]
    target = cache / "converted" / f"{digest}-{dtype}-single"
    made_once(target, lambda work: _write(found, dtype, work))
    os.utime(target)
    names = tuple(sorted(p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()))
    index = json.loads((target / "model_index.json").read_text())
    size = sum((target / name).stat().st_size for name in names if name.endswith(".safetensors"))
    return dataclasses.replace(
        found,
        path=target,
        kind="diffusers",
        files=names,
        bytes=size,
        index=index["_class_name"],
        variant=None,
    )


class _Reader:
    """Tensors of a file by name, read when they are asked for."""

    def __init__(self, found: Located, stack: ExitStack) -> None:
        self._pickle: Mapping[str, Any] = {}
        self._safe: Any = None
        if found.kind == "pickle":
            self._pickle = tensors.read_pickle(found.path)
        else:
            from safetensors import safe_open

            self._safe = stack.enter_context(safe_open(found.path, "pt"))
        self.shapes = file_shapes(found)

    def part(self, found: Found) -> dict[str, torch.Tensor]:
        return {name: self[original] for name, original in found.names.items() if original in self.shapes}

    def __getitem__(self, name: str) -> torch.Tensor:
        value: torch.Tensor = self._pickle[name] if self._safe is None else self._safe.get_tensor(name)
        return value


def _write(found: Located, dtype: str, folder: Path) -> None:
    from headrace.models.single.convert import convert

    with ExitStack() as stack:
        reader = _Reader(found, stack)
        parts = parts_of(reader.shapes)
        family = family_of(reader.shapes, parts)
        if not parts or any(item.part == "taesd" for item in parts):
            raise InvalidInput(f"model {found.ref} is a file of no kind that is known here", field="model_id")
        if any(name.endswith("scaled_fp8") for name in reader.shapes):
            raise InvalidInput(
                f"model {found.ref} has weights of 8 bits with scales of their own, which cannot be read",
                field="model_id",
            )
        index: dict[str, Any] = {"_class_name": "DiffusionPipeline"}
        clips = [item for item in parts if item.part in ("clip", "open_clip")]
        for item in parts:
            name = _name_of(item, family, clips)
            made = convert(item, reader.part(item), family)
            _save(made.tensors, made.config, folder / name, dtype, made.library)
            index[name] = [made.library, made.kind]
            if item in clips:
                second = name.removeprefix("text_encoder")
                write_tokenizer(
                    folder / f"tokenizer{second}", pad="!" if item.part == "open_clip" else "<|endoftext|>"
                )
                index[f"tokenizer{second}"] = ["transformers", "CLIPTokenizer"]
        if any(item.part in ("unet", "flux") for item in parts):
            index["scheduler"] = ["diffusers", _write_scheduler(reader, parts, family, folder / "scheduler")]
            index["_class_name"] = _class_of(family, reader.shapes, parts)
        if index["_class_name"].startswith(("StableDiffusionPipeline", "StableDiffusionInstruct")):
            index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
        if family == "sdxl-refiner":
            index |= {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}
        (folder / "model_index.json").write_text(json.dumps(index, indent=1))


def _name_of(item: Found, family: Family, clips: list[Found]) -> str:
    """The component's name in a pipeline. SDXL's second encoder is OpenCLIP's, and the refiner's only one."""
    if item not in clips:
        return {"flux": "transformer", "t5": "text_encoder"}.get(item.part, item.part)
    if family.startswith("sdxl") and item.part == "open_clip":
        return "text_encoder_2"
    return "text_encoder" if clips.index(item) == 0 else f"text_encoder_{clips.index(item) + 1}"


def _save(
    made: dict[str, torch.Tensor], config: dict[str, Any], folder: Path, dtype: str, library: str
) -> None:
    import torch
    from safetensors.torch import save_file

    wanted: torch.dtype = getattr(torch, dtype)
    name = "diffusion_pytorch_model" if library == "diffusers" else "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    cast = {n: (t.to(wanted) if t.is_floating_point() else t).contiguous() for n, t in made.items()}
    save_file(cast, folder / f"{name}.safetensors", metadata={"format": "pt"})


def _write_scheduler(reader: _Reader, parts: list[Found], family: Family, folder: Path) -> str:
    zero_snr = "ztsnr" in reader.shapes
    v_prediction = "v_pred" in reader.shapes
    unet = next((item for item in parts if item.part == "unet"), None)
    key = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
    if family == "sd2" and unet is not None and key in unet.names and _inputs(reader.shapes, parts) == 4:
        v_prediction = float(reader[unet.names[key]].float().std(unbiased=False)) > _V_PREDICTION_SPREAD
    config = configs.scheduler_config(family, v_prediction=v_prediction, zero_snr=zero_snr)
    folder.mkdir()
    (folder / "scheduler_config.json").write_text(json.dumps(config, indent=1))
    return str(config["_class_name"])

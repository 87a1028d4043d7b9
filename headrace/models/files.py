"""Which files of a repository or folder make a model: safetensors and small text, never pickles.

Works on lists of names, so that it serves the hub before a download and a folder after it alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from headrace.models.errors import UnsafeFile

Layout = Literal["diffusers", "transformers", "gguf", "file", "other"]

TEXT = (".json", ".txt", ".model", ".jinja", ".md.license")
"""Configurations, tokenizers (merges, vocabularies, sentencepiece), chat templates."""
PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".onnx", ".onnx_data")
_OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")
_SKIPPED_FOLDERS = ("onnx", "openvino", "flax", "coreml", ".git", "original")


@dataclass(frozen=True, slots=True)
class Choice:
    """The files to use, by their names relative to the model's folder. ``variant``: ``fp16`` or None."""

    layout: Layout
    weights: tuple[str, ...]
    text: tuple[str, ...]
    variant: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.text, *self.weights)


def choose(
    names: Iterable[str],
    *,
    variant: str | None = None,
    index: Mapping[str, Any] | None = None,
    name: str = "model",
) -> Choice:
    """The files of a model among ``names``.

    ``variant``: ``fp16`` takes those files where every folder that has weights has them so, or at least those
    that do. ``index``: the contents of ``model_index.json``, whose components are all that is needed. Raises
    `UnsafeFile` where there are only pickles, naming one.
    """
    all_names = sorted(n for n in names if n.split("/")[0] not in _SKIPPED_FOLDERS)
    layout: Layout = (
        "diffusers"
        if "model_index.json" in all_names
        else "transformers"
        if "config.json" in all_names
        else "other"
    )
    folders = _folders(all_names, layout, index)
    weights: list[str] = []
    for folder in folders:
        here = [n for n in all_names if n.rpartition("/")[0] == folder]
        weights += _weights(here, variant, name)
    if not weights and layout == "other":
        weights = [n for n in all_names if n.endswith((".gguf", ".safetensors"))]
    text = [n for n in all_names if n.endswith(TEXT) and n.rpartition("/")[0] in {*folders, ""}]
    text = [n for n in text if not _is_index(n) or _index_wanted(n, weights)]
    found = variant if variant and any(f".{variant}." in w for w in weights) else None
    return Choice(layout, tuple(weights), tuple(text), found)


def _folders(names: Collection[str], layout: Layout, index: Mapping[str, Any] | None) -> list[str]:
    """The folders whose weights count: the components of a pipeline, or the top."""
    if layout != "diffusers":
        return [""]
    folders = sorted({n.split("/")[0] for n in names if n.count("/") == 1})
    if index is not None:
        wanted = components(index)
        folders = [folder for folder in folders if folder in wanted]
    return folders


def components(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Library and class of each part that a ``model_index.json`` names and that is there."""
    return {
        part: (value[0], value[1])
        for part, value in index.items()
        if not part.startswith("_") and isinstance(value, list) and len(value) == 2 and value[0] and value[1]
    }


def _weights(here: list[str], variant: str | None, name: str) -> list[str]:
    """The files of weights of one folder."""
    safe = [n for n in here if n.endswith(".safetensors")]
    if not safe:
        gguf = [n for n in here if n.endswith(".gguf")]
        pickle = next((n for n in here if n.endswith((".bin", ".pth", ".pt", ".ckpt"))), None)
        if pickle is not None and not gguf and _has_model(here):
            raise UnsafeFile(
                f"{name} has its weights only as {pickle}, a pickle, which can run code; ask its authors for "
                "safetensors, or convert it on another machine",
                field="model_id",
            )
        return gguf[:1] if len(gguf) == 1 else []
    plain = [n for n in safe if not _variant_of(n)]
    special = [n for n in safe if variant is not None and _variant_of(n) == variant]
    chosen = special or plain or [n for n in safe if _variant_of(n) == "fp16"] or safe
    # Beside a model of several files, the same in one file is the same again.
    shards = [n for n in chosen if "-of-" in n]
    main = [n for n in chosen if _stem(n) in ("model", "diffusion_pytorch_model")]
    return main or shards or chosen


def _has_model(here: Iterable[str]) -> bool:
    return any(n.rpartition("/")[2] in ("config.json", "model_index.json") for n in here)


def _stem(file: str) -> str:
    """``model`` for ``unet/model.fp16.safetensors``."""
    return file.rpartition("/")[2].split(".")[0]


def _variant_of(file: str) -> str | None:
    """``fp16`` for ``unet/model.fp16.safetensors`` and ``model.fp16-00001-of-00002.safetensors``."""
    words = file.rpartition("/")[2].split(".")[1:-1]
    return next((word.split("-")[0] for word in words if word.split("-")[0]), None)


def _is_index(file: str) -> bool:
    return file.endswith((".index.json", ".index.fp16.json")) or ".safetensors.index." in file


def _index_wanted(file: str, weights: Iterable[str]) -> bool:
    folder = file.rpartition("/")[0]
    sharded = any(w.rpartition("/")[0] == folder and "-of-" in w for w in weights)
    return sharded and ".safetensors." in file and ".bin." not in file


def missing(
    choice: Choice,
    exists: Callable[[str], bool],
    read: Callable[[str], str],
    index: Mapping[str, Any] | None = None,
) -> list[str]:
    """Files without which the model cannot be loaded: shards that an index names, parts without weights."""
    lost = [name for name in choice.files if not exists(name)]
    for part in components(index or {}):
        here = [name for name in choice.files if name.startswith(f"{part}/")]
        if part in _OPTIONAL:
            continue
        if not here:
            lost.append(part)
        elif f"{part}/config.json" in here and not any(name in here for name in choice.weights):
            lost.append(f"{part}/*.safetensors")
    for name in choice.text:
        if ".safetensors.index" not in name or not exists(name):
            continue
        folder = name.rpartition("/")[0]
        try:
            shards = set(json.loads(read(name))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            lost.append(name)
            continue
        lost += [s for s in (f"{folder}/{shard}" if folder else shard for shard in shards) if not exists(s)]
    return sorted(set(lost))

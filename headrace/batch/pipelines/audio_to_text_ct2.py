"""Whisper from CTranslate2's files to those of transformers, once; the copy is kept below the cache folder.

The format, as OpenNMT/CTranslate2's model_spec.py writes it: a version, the name of the specification and its
revision, then each variable with name, shape, type and bytes, then other names for some of them.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from headrace.models.errors import LoadFailed
from headrace.models.made_once import made_once
from headrace.models.store import Located

_VERSION = 6
_FLOATS = {0: torch.float32, 4: torch.float16, 5: torch.bfloat16}
_INTEGERS = {1: torch.int8, 2: torch.int16, 3: torch.int32}
_MULTILINGUAL = 51865
"""Tokens from which on a Whisper vocabulary has languages."""


def prepared(found: Located, cache: Path) -> Located:
    """The same model as a folder that transformers loads. Raises `LoadFailed` for what is no such model."""
    digest = hashlib.sha256(f"{found.ref} {found.revision}".encode()).hexdigest()[:24]
    folder = cache / "converted" / f"{digest}-ct2"
    made_once(folder, lambda work: convert(found.path, work))
    names = tuple(sorted(file.name for file in folder.iterdir()))
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return replace(found, path=folder, kind="transformers", files=names, bytes=size)


def convert(source: Path, target: Path) -> None:
    """Write model, tokenizer and feature extractor of transformers into ``target``."""
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor
    from transformers import WhisperForConditionalGeneration as Whisper

    try:
        variables = read_variables(source / "model.bin")
        told = json.loads((source / "config.json").read_text())
        tokens = json.loads((source / "tokenizer.json").read_text())
        config = _config(variables, told, tokens)
        with torch.device("meta"):
            model = Whisper(WhisperConfig(**config))
        model.load_state_dict(_renamed(variables), assign=True, strict=False)
        model.tie_weights()
    except (OSError, KeyError, ValueError, IndexError, struct.error, RuntimeError) as error:
        raise LoadFailed(
            f"{source.name} is no Whisper of CTranslate2: {error!r}", field="model_id"
        ) from error
    lost = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if lost:
        raise LoadFailed(f"{source.name} lacks {', '.join(lost[:5])}", field="model_id")
    model.generation_config = GenerationConfig(**_generation(config, told, tokens))
    model.to(torch.float32).save_pretrained(target)
    _tokenizer(tokens).save_pretrained(target)
    WhisperFeatureExtractor(feature_size=config["num_mel_bins"]).save_pretrained(target)


def read_variables(path: Path) -> dict[str, torch.Tensor]:
    """Every variable of a ``model.bin`` by its name. Raises `LoadFailed` for quantised or unknown ones."""
    data = bytearray(path.read_bytes())
    at = 0

    def number(kind: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from("<" + kind, data, at)
        at += struct.calcsize(kind)
        return int(value)

    def name() -> str:
        nonlocal at
        size = number("H")
        at += size
        return data[at - size : at - 1].decode()

    if (version := number("I")) != _VERSION:
        raise LoadFailed(f"{path.name} has version {version} of the format; {_VERSION} can be read")
    name()
    number("I")
    found: dict[str, torch.Tensor] = {}
    for _ in range(number("I")):
        label, shape = name(), [number("I") for _ in range(number("B"))]
        dtype = (_FLOATS | _INTEGERS).get(number("B"))
        size = number("I")
        if dtype is None or (dtype in _INTEGERS.values() and shape):
            raise LoadFailed(f"{path.name} is quantised ({label}); only floats can be read", field="model_id")
        if at + size > len(data):
            raise LoadFailed(f"{path.name} ends in the middle of {label}", field="model_id")
        found[label] = torch.frombuffer(data, dtype=dtype, count=size // dtype.itemsize, offset=at).view(
            shape
        )
        at += size
    return found


def _config(
    variables: dict[str, torch.Tensor], told: dict[str, Any], tokens: dict[str, Any]
) -> dict[str, Any]:
    number = _numbers(tokens)
    vocabulary, width = variables["decoder/embeddings/weight"].shape
    end = number["<|endoftext|>"]

    def layers(side: str) -> int:
        return len({n.split("/")[1] for n in variables if n.startswith(f"{side}/layer_") and "/ffn/" in n})

    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "num_mel_bins": variables["encoder/conv1/weight"].shape[1],
        "encoder_layers": layers("encoder"),
        "decoder_layers": layers("decoder"),
        "encoder_attention_heads": int(variables["encoder/num_heads"]),
        "decoder_attention_heads": int(variables["decoder/num_heads"]),
        "encoder_ffn_dim": variables["encoder/layer_0/ffn/linear_0/weight"].shape[0],
        "decoder_ffn_dim": variables["decoder/layer_0/ffn/linear_0/weight"].shape[0],
        "max_source_positions": variables["encoder/position_encodings/encodings"].shape[0],
        "max_target_positions": variables["decoder/position_encodings/encodings"].shape[0],
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": number["<|startoftranscript|>"],
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
    }


def _generation(config: dict[str, Any], told: dict[str, Any], tokens: dict[str, Any]) -> dict[str, Any]:
    number = _numbers(tokens)
    known: dict[str, Any] = {
        "decoder_start_token_id": config["decoder_start_token_id"],
        "eos_token_id": config["eos_token_id"],
        "bos_token_id": config["bos_token_id"],
        "pad_token_id": config["pad_token_id"],
        "max_length": config["max_target_positions"],
        "is_multilingual": config["vocab_size"] >= _MULTILINGUAL,
        "no_timestamps_token_id": number["<|notimestamps|>"],
        "prev_sot_token_id": number["<|startofprev|>"],
        "max_initial_timestamp_index": 50,
        "return_timestamps": False,
        "suppress_tokens": told.get("suppress_ids"),
        "begin_suppress_tokens": told.get("suppress_ids_begin"),
        "alignment_heads": told.get("alignment_heads"),
    }
    if known["is_multilingual"]:
        languages = set(told.get("lang_ids") or ())
        known["lang_to_id"] = {word: token for word, token in number.items() if token in languages}
        known["task_to_id"] = {task: number[f"<|{task}|>"] for task in ("transcribe", "translate")}
    return known


def _numbers(tokens: dict[str, Any]) -> dict[str, int]:
    return {entry["content"]: entry["id"] for entry in tokens["added_tokens"]}


def _tokenizer(tokens: dict[str, Any]) -> Any:
    from transformers import WhisperTokenizer

    number = _numbers(tokens)
    end = "<|endoftext|>"
    # In this order: whoever decodes timestamps counts from the last of them.
    special = [word for word, _ in sorted(number.items(), key=lambda item: item[1]) if word != end]
    return WhisperTokenizer(
        vocab={**tokens["model"]["vocab"], **number},
        merges=[tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in tokens["model"]["merges"]],
        unk_token=end,
        bos_token=end,
        eos_token=end,
        pad_token=end,
        extra_special_tokens=special,
    )


def _renamed(variables: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The variables by the names of transformers; queries, keys and values apart."""
    state: dict[str, torch.Tensor] = {}
    for label, value in variables.items():
        side, part, *rest = label.split("/")
        if part.startswith("layer_") and not part.startswith("layer_norm"):
            _layer(state, f"model.{side}.layers.{part[6:]}", rest, value)
        elif part in ("conv1", "conv2"):
            state[f"model.{side}.{part}.{rest[0]}"] = value
        elif part == "layer_norm":
            state[f"model.{side}.layer_norm.{_NORM[rest[0]]}"] = value
        elif part == "embeddings":
            state[f"model.{side}.embed_tokens.weight"] = state["proj_out.weight"] = value
        elif part == "position_encodings":
            state[f"model.{side}.embed_positions.weight"] = value
    return state


_NORM = {"gamma": "weight", "beta": "bias"}
_BLOCKS = {"self_attention": "self_attn", "attention": "encoder_attn"}
_PARTS = {
    ("self_attn", "linear_0"): ("q_proj", "k_proj", "v_proj"),
    ("self_attn", "linear_1"): ("out_proj",),
    ("encoder_attn", "linear_0"): ("q_proj",),
    ("encoder_attn", "linear_1"): ("k_proj", "v_proj"),
    ("encoder_attn", "linear_2"): ("out_proj",),
}


def _layer(state: dict[str, torch.Tensor], prefix: str, rest: list[str], value: torch.Tensor) -> None:
    block, part, kind = rest
    if block == "ffn":
        place = {"linear_0": "fc1", "linear_1": "fc2", "layer_norm": "final_layer_norm"}[part]
        state[f"{prefix}.{place}.{_NORM.get(kind, kind)}"] = value
        return
    attention = _BLOCKS[block]
    if part == "layer_norm":
        state[f"{prefix}.{attention}_layer_norm.{_NORM[kind]}"] = value
        return
    names = _PARTS[(attention, part)]
    for name, piece in zip(names, value.chunk(len(names)), strict=True):
        # Whisper's keys have no bias; the file has zeros for it.
        if not (name == "k_proj" and kind == "bias"):
            state[f"{prefix}.{attention}.{name}.{kind}"] = piece

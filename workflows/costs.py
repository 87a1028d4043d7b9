"""What a change of a literal costs where it is not seen at the next frame: told from definitions alone."""

from __future__ import annotations

from typing import Any

from workflows.definitions import InputDefinition, NodeDefinition

# What holds weights, by ComfyUI's names, and two of Headrace's own.
_WEIGHTS = frozenset(
    {"AUDIO_ENCODER", "CLIP", "CLIP_VISION", "CONTROL_NET", "GLIGEN", "LORA_MODEL", "MODEL", "MODEL_PATCH"}
    | {"PHOTOMAKER", "STREAM_DIFFUSION", "STREAM_IP_ADAPTER", "STYLE_MODEL"}
    | {"UPSCALE_MODEL", "VAE"}
)
_FILES = (".bin", ".ckpt", ".gguf", ".onnx", ".pt", ".pt2", ".pth", ".safetensors", ".sft")


def recompute_cost(
    definition: NodeDefinition, declared: InputDefinition | None, name: str, value: Any
) -> str:
    """``reload`` for what chooses the weights that a node loads, else ``recompute``.

    A node that gives weights and takes none is a loader, and each of its choices and texts has it load again;
    one that takes some (a LoRA on a model) loads by its files alone.
    """
    if not any(output.type in _WEIGHTS for output in definition.outputs):
        return "recompute"
    if _names_file(declared, name, value):
        return "reload"
    takes_weights = any(one.type in _WEIGHTS for one in definition.inputs.values())
    chooses = isinstance(value, str) or (declared is not None and declared.choices is not None)
    return "reload" if chooses and not takes_weights else "recompute"


def _names_file(declared: InputDefinition | None, name: str, value: Any) -> bool:
    texts = [value, *((declared.choices or ()) if declared is not None else ())]
    return any(isinstance(text, str) and text.lower().endswith(_FILES) for text in texts) or (
        isinstance(value, str)
        and name.endswith("_name")
        and declared is not None
        and declared.choices is not None
    )

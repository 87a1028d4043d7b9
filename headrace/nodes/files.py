"""Files of models under the names that ComfyUI has for them: relative to a folder for each kind.

Standard library only, so that the worker can list what there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from headrace.models.errors import ModelNotFound
from headrace.models.refs import WEIGHT_SUFFIXES
from headrace.models.roots import Roots

FOLDERS = {
    "checkpoints": ("checkpoints",),
    "diffusion_models": ("unet", "diffusion_models"),
    "text_encoders": ("text_encoders", "clip"),
    "vae": ("vae",),
    "vae_approx": ("vae_approx",),
    "loras": ("loras",),
    "controlnet": ("controlnet",),
    "upscale_models": ("upscale_models",),
    "embeddings": ("embeddings",),
}
"""Folders below the models folder, by kind; in each the first that has a file of a name counts."""
DEMOS = ("demo:tiny-sd", "demo:tiny-sdxl")
_SUFFIXES = (*(suffix for suffix in WEIGHT_SUFFIXES if suffix != ".gguf"), ".bin")
_EMBEDDING_ENDS = ("", ".safetensors", ".pt", ".bin")
_MAX_LISTED = 10_000
_MAX_SEEN = 100_000


@dataclass(frozen=True)
class ModelFiles:
    """What is in the models folder of ``roots``."""

    roots: Roots

    def names(self, kind: str) -> list[str]:
        """The files of a kind, relative to its folder, by name."""
        return sorted(islice(dict.fromkeys(self._walk(kind)), _MAX_LISTED))

    def ref(self, kind: str, name: str) -> str:
        """What `headrace.models.store` calls the file. Raises `ModelNotFound` with the folder."""
        if name.startswith("demo:"):
            return name
        for folder in FOLDERS[kind]:
            top = self.roots.models / folder
            if (top / name).is_file() and _inside(top / name, top):
                return f"{folder}/{name}"
        raise ModelNotFound(f"there is no file {name!r} in {self.folder(kind)}", field="model_id")

    def folder(self, kind: str) -> Path:
        """Where a file of the kind belongs."""
        return self.roots.models / FOLDERS[kind][0]

    def embedding(self, name: str) -> Path | None:
        """The file of a textual inversion, whose ending may be left out."""
        for top in self._tops("embeddings"):
            places = [top, *sorted(path for path in islice(top.rglob("*"), _MAX_SEEN) if path.is_dir())]
            for place in places:
                for end in _EMBEDDING_ENDS:
                    path = place / f"{name}{end}"
                    if "\0" not in name and path.is_file() and _inside(path, top):
                        return path
        return None

    def _tops(self, kind: str) -> list[Path]:
        tops = [self.roots.models / folder for folder in FOLDERS[kind]]
        return [top for top in tops if top.is_dir()]

    def _walk(self, kind: str) -> Iterator[str]:
        for top in self._tops(kind):
            for path in islice(top.rglob("*"), _MAX_SEEN):
                if path.suffix.lower() in _SUFFIXES and path.is_file():
                    yield path.relative_to(top).as_posix()


def _inside(path: Path, top: Path) -> bool:
    return path.resolve().is_relative_to(top.resolve())

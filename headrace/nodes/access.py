"""What nodes load: files by the names that workflows use, out of the live engine's cache."""

from __future__ import annotations

from headrace.models.errors import LoadFailed
from headrace.models.live_cache import Held, hold_parts
from headrace.models.roots import Roots
from headrace.models.single.folder import file_shapes, is_single
from headrace.models.single.layout import family_of, parts_of
from headrace.models.store import Located, ModelStore
from headrace.nodes.files import ModelFiles


class Models:
    """Loads what nodes name. ``roots`` as in `ModelStore`."""

    def __init__(self, roots: Roots) -> None:
        self.files = ModelFiles(roots)
        self._store = ModelStore(roots)

    def find(self, kind: str, name: str) -> Located:
        """Raises `ModelNotFound`, or what the store raises."""
        return self._store.find(self.files.ref(kind, name))

    def parts(self, kind: str, name: str) -> Held:
        """The modules of a checkpoint or of a file with a part alone, by their names in a pipeline."""
        return hold_parts(self.find(kind, name), self._store)

    def network(self, kind: str, name: str) -> Held:
        """`parts` of what has a diffusion network. Raises `LoadFailed` for one that is sampled in another way
        than Stable Diffusion's, before it is read."""
        found = self.find(kind, name)
        if is_single(found):
            shapes = file_shapes(found)
            flux = family_of(shapes, parts_of(shapes)) == "flux"
        else:
            flux = found.index == "FluxPipeline"
        if flux:
            raise LoadFailed(
                f"{name} is a network of Flux; the built-in nodes sample Stable Diffusion 1, 2 and XL. "
                "A ComfyUI runs it: --comfyui DIR",
                field="unet_name" if kind == "diffusion_models" else "ckpt_name",
            )
        return hold_parts(found, self._store)

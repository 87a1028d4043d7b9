"""What nodes load: files by the names that workflows use, out of the live engine's cache."""

from __future__ import annotations

from headrace.models.live_cache import Held, hold_parts
from headrace.models.roots import Roots
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

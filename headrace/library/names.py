"""Every workflow that a name means: the bundled ones, which are read-only, and those that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headrace.library.store import Kept, WorkflowStore, checked_name, default_folder, tag_of
from stream.errors import Conflict, HeadraceError, NotFound
from workflows import library
from workflows.values import nearest


class Library:
    """Workflows by name. Of a name that both have, the bundled workflow is meant."""

    def __init__(self, folder: Path | None = None) -> None:
        """``folder``: where workflows are kept (None: `default_folder`)."""
        self.store = WorkflowStore(folder or default_folder())
        self._bundled = {name: library.load_bundled(name) for name in library.names()}

    @property
    def bundled(self) -> list[str]:
        """Names of the bundled workflows, in alphabetical order."""
        return list(self._bundled)

    def kept(self) -> list[str]:
        """Names of the kept ones that are not hidden by bundled ones."""
        return [name for name in self.store.names() if name not in self._bundled]

    def is_bundled(self, name: str) -> bool:
        return name in self._bundled

    def load(self, name: str) -> Any:
        """The JSON data of the workflow of that name; never touches a file outside.

        Raises `NotFound` with the nearest name, `InvalidWorkflow` for a kept file that is not JSON.
        """
        if name in self._bundled:
            return library.load_bundled(name)
        if name in self.store:
            return self.store.load(checked_name(name))
        kept = self.kept()
        also = f"; kept are {', '.join(kept[:20])}{' and more' if len(kept) > 20 else ''}" if kept else ""
        raise NotFound(
            f"there is no workflow {name[:80]!r}{nearest(name, [*self._bundled, *kept])}; bundled are "
            f"{', '.join(self._bundled)}{also}",
            field="workflow",
        )

    def read(self, name: str) -> tuple[bytes, Kept]:
        """The file of a workflow as it is. Raises as `load`."""
        if name not in self._bundled:
            self.load(name)
            return self.store.read(checked_name(name))
        content = library.content(name)
        return content, Kept(name, tag_of(content), len(content), 0.0)

    def check_own(self, name: str) -> None:
        """Raise `Conflict` for the name of a bundled workflow, which cannot be written or removed."""
        if name in self._bundled:
            raise Conflict(
                f"{name} comes with Headrace and stays as it is; keep yours under another name", field="name"
            )

    def names_of(self, data: Any) -> list[str]:
        """Every name under which this very workflow is known, a bundled one first."""
        found = [name for name, known in self._bundled.items() if known == data]
        for name in self.kept():
            try:
                if self.store.load(name) == data:
                    found.append(name)
            except HeadraceError:
                continue
        return found

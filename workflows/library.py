"""Workflows that come with Headrace, and workflows in files."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from stream.errors import NotFound, TooLarge
from workflows.carriers import PICTURE_SUFFIXES
from workflows.graph import load_json
from workflows.reading import load as load_content
from workflows.values import nearest

_SUFFIX = ".json"
_MAX_PICTURE_BYTES = 64 * 1024 * 1024


def names() -> list[str]:
    """The bundled workflows, in alphabetical order."""
    return sorted(
        entry.name.removesuffix(_SUFFIX) for entry in _folder().iterdir() if entry.name.endswith(_SUFFIX)
    )


def load(name_or_path: str | Path) -> Any:
    """The JSON data of a bundled workflow, or of a file.

    What contains a slash or ends in .json, or as a picture does, is a path. A picture carries its workflow.
    Raises `NotFound` (which lists the bundled names), `InvalidWorkflow` with line and column when the text is
    not JSON, `TooLarge`.
    """
    if isinstance(name_or_path, Path) or is_path(name_or_path):
        return _load_file(Path(name_or_path))
    return load_bundled(name_or_path)


def is_path(name: str) -> bool:
    """Whether a text that an operator gave means a file, not the name of a workflow."""
    return "/" in name or name.lower().endswith((_SUFFIX, *PICTURE_SUFFIXES))


def load_bundled(name: str) -> Any:
    """The JSON data of a bundled workflow; never touches another file, whatever ``name`` is."""
    return load_json(content(name), name)


def content(name: str) -> bytes:
    """The file of a bundled workflow as it is. Raises `NotFound`."""
    known = names()
    if name not in known:
        raise NotFound(
            f"there is no workflow {name!r}{nearest(name, known)}; bundled are {', '.join(known)}, "
            "and a path to a JSON file works too",
            field="workflow",
        )
    found: bytes = (_folder() / f"{name}{_SUFFIX}").read_bytes()
    return found


def _load_file(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            read = file.read(_MAX_PICTURE_BYTES + 1)
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror or error}", field="workflow") from error
    if len(read) > _MAX_PICTURE_BYTES:
        raise TooLarge(f"{path}: over {_MAX_PICTURE_BYTES} bytes", field="workflow")
    return load_content(read, str(path))


def _folder() -> Any:
    return resources.files("workflows") / "bundled"

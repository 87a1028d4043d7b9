"""A ComfyUI installation on the disk: where it is, which interpreter it has, and what state it is in.

Looks at files alone; nothing of it is imported here.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stream.errors import InvalidInput

_INTERPRETERS = (
    "venv/bin/python",
    ".venv/bin/python",
    "python_embeded/bin/python3",
    "../python_embeded/bin/python3",
    "../venv/bin/python",
    "../.venv/bin/python",
)
_NEEDED = ("main.py", "folder_paths.py", "nodes.py")
_VERSION = re.compile(r"__version__\s*=\s*[\"']([^\"']+)[\"']")


@dataclass(frozen=True)
class Installation:
    """``directory`` is absolute; ``python`` is the command of its interpreter."""

    directory: Path
    python: str

    @classmethod
    def at(cls, directory: Path, python: str | None = None) -> Installation:
        """Raises `InvalidInput` when there is no ComfyUI, or no interpreter of its own and none is named."""
        directory = directory.expanduser().resolve()
        missing = [name for name in _NEEDED if not (directory / name).is_file()]
        if missing:
            raise InvalidInput(
                f"{directory} is not a ComfyUI installation: {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} missing",
                field="comfyui",
            )
        if python is not None:
            return cls(directory, python)
        for candidate in _INTERPRETERS:
            # Not resolved: the link is what makes it the virtual environment's.
            path = Path(os.path.normpath(directory / candidate))
            if path.is_file() and os.access(path, os.X_OK):
                return cls(directory, str(path))
        raise InvalidInput(
            f"{directory} has no interpreter of its own ({', '.join(_INTERPRETERS)}); name the one that "
            "ComfyUI runs with: --comfyui-python PATH",
            field="comfyui_python",
        )

    @property
    def version(self) -> str:
        """As its own file says; ``unknown`` without one."""
        try:
            found = _VERSION.search((self.directory / "comfyui_version.py").read_text(errors="replace"))
        except OSError:
            return "unknown"
        return found[1] if found else "unknown"

    def state(self, *more: str) -> str:
        """A digest of what its definitions depend on: version, nodes, packs, and whatever is named beside."""
        digest = hashlib.sha256()
        for part in (str(self.directory), self.python, self.version, *more, *self._stamps()):
            digest.update(part.encode(errors="surrogateescape") + b"\0")
        return digest.hexdigest()[:32]

    def _stamps(self) -> Iterator[str]:
        """Names and times of the files that make its nodes, down to the top level of each pack."""
        for name in ("nodes.py", "extra_model_paths.yaml", "comfy_extras"):
            yield _stamp(self.directory / name)
        for pack in _entries(self.directory / "custom_nodes"):
            yield _stamp(pack)
            for file in _entries(pack) if pack.is_dir() else ():
                if file.suffix in (".py", ".toml"):
                    yield _stamp(file)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.name != "__pycache__")
    except OSError:
        return []


def _stamp(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return f"{path}: none"
    # A folder's own time changes when byte code is written into it.
    return f"{path}: {found.st_mtime_ns} {found.st_size}" if path.is_file() else f"{path}: folder"

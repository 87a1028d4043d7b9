"""The folder that recordings lie in: names that stay in it, what is there, and what may be removed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stream.errors import InvalidInput, NotFound, SinkError

MAX_NAME = 120
SUFFIXES = frozenset({".mp4", ".webm", ".mkv"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def checked_name(name: object, field: str = "name") -> str:
    """A name without a suffix that means a file of the folder; `InvalidInput` for anything else."""
    if not isinstance(name, str) or len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{field} has at most {MAX_NAME} letters, digits, dots, dashes and underscores and begins with a"
            f" letter or digit, not {repr(name)[:80]}",
            field=field,
        )
    return name


def name_from(session_id: str) -> str:
    """The closest allowed name to a session's id."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", session_id)[:64].strip("-._")
    return name or "recording"


@dataclass(frozen=True, slots=True)
class RecordingFolder:
    """The files of recordings below ``path``, without sub-folders."""

    path: Path

    def prepare(self) -> None:
        """Make it, where it is missing; raises `SinkError`."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SinkError(f"the folder of recordings cannot be made: {error}") from error

    def is_taken(self, stem: str) -> bool:
        """Whether a file of that name exists, whatever its format."""
        return any((self.path / f"{stem}{suffix}").exists() for suffix in SUFFIXES)

    def find(self, file: str) -> Path:
        """The recording of that file name. Raises `NotFound`, for links and for what is no recording too."""
        path = self.path / file
        proper = _NAME.fullmatch(file) is not None and path.suffix in SUFFIXES
        if not proper or path.is_symlink() or not path.is_file():
            raise NotFound(f"there is no recording {file[:80]!r}", field="file")
        return path

    def list(self) -> list[dict[str, Any]]:
        """Every recording, newest first: its file name, bytes, and when it was last written (epoch s)."""
        found = []
        if self.path.is_dir():
            for path in self.path.iterdir():
                if path.suffix in SUFFIXES and not path.is_symlink() and path.is_file():
                    about = path.stat()
                    found.append({"file": path.name, "bytes": about.st_size, "modified": about.st_mtime})
        return sorted(found, key=lambda entry: -float(entry["modified"]))

    def remove(self, file: str) -> None:
        """Remove a recording; raises `NotFound`, or `SinkError` when the system refuses."""
        path = self.find(file)
        try:
            path.unlink()
        except OSError as error:
            raise SinkError(f"{file} cannot be removed: {error.strerror or error}", field="file") from error

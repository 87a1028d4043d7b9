"""What an installation's classes are: told by its engine, kept on the disk for the time before it is up."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

MAX_BYTES = 64 << 20
"""Of one installation's object info; ComfyUI 0.3.64 has half a megabyte."""
KEPT = 16
"""States of installations that are kept; the oldest goes."""


class KnownClasses:
    """Object infos in ``folder``, each by the state of its installation (`Installation.state`)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, state: str) -> dict[str, Any] | None:
        """What was kept for that state; None without anything that can be read."""
        try:
            data = json.loads((self._folder / f"{state}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return data if isinstance(data, dict) else None

    def save(self, state: str, data: bytes) -> None:
        """Keep it, whole or not at all; a disk that is full is no reason to stop."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
                file.write(data)
            os.replace(file.name, self._folder / f"{state}.json")
            self._forget_old()
        except OSError as error:
            log.warning("the classes of ComfyUI cannot be kept in %s: %s", self._folder, error)

    def _forget_old(self) -> None:
        files = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        for path in files[:-KEPT]:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def read_object_info(data: bytes) -> dict[str, Any] | None:
    """An engine's object info, None when it is none."""
    try:
        found = json.loads(data) if len(data) <= MAX_BYTES else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None

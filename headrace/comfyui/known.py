"""What an installation's classes are: told by its engine, kept on the disk for the time before it is up."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from workflows.definitions import Definitions, InputDefinition
from workflows.model_files import FOLDERS, takes_uploads
from workflows.registry import definitions_from_object_info

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
        """The object info that was kept for that state; None without anything that can be read."""
        return self._read(f"{state}.json")

    def facts(self, state: str) -> dict[str, Any] | None:
        """What else the engine said of that state (packs, version)."""
        return self._read(f"{state}.facts")

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            data = json.loads((self._folder / name).read_bytes())
        except (OSError, ValueError):
            return None
        return data if isinstance(data, dict) else None

    def save(self, state: str, info: bytes, facts: bytes = b"{}") -> None:
        """Keep both, each whole or not at all; a disk that is full is no reason to stop."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for name, data in ((f"{state}.facts", facts), (f"{state}.json", info)):
                self._write(self._folder / name, data)
            self._forget_old()
        except OSError as error:
            log.warning("the classes of ComfyUI cannot be kept in %s: %s", self._folder, error)

    def _write(self, path: Path, data: bytes) -> None:
        with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.replace(file.name, path)
            except OSError:
                os.unlink(file.name)
                raise

    def _forget_old(self) -> None:
        files = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        for path in files[:-KEPT]:
            for old in (path, path.with_suffix(".facts")):
                with contextlib.suppress(FileNotFoundError):
                    old.unlink()


def definitions_of(info: Mapping[str, Any], facts: Mapping[str, Any]) -> Definitions:
    """An installation's classes; those that choose uploaded files know where these lie on this machine."""
    found = definitions_from_object_info(info)
    folder = facts.get("input_folder")
    if not isinstance(folder, str):
        return found
    # Those of an engine's outputs change with each start.
    folders = {"input": folder, "output": None, "temp": None}

    def placed(one: InputDefinition) -> InputDefinition:
        return replace(one, options={**one.options, FOLDERS: folders}) if _is_upload(one) else one

    for class_type, definition in list(found.items()):
        if any(map(_is_upload, definition.inputs.values())):
            inputs = {name: placed(one) for name, one in definition.inputs.items()}
            found[class_type] = replace(definition, inputs=inputs)
    return found


def _is_upload(one: InputDefinition) -> bool:
    place = one.options.get("image_folder", "input")
    return one.choices is not None and takes_uploads(one) and place == "input"


def read_object_info(data: bytes) -> dict[str, Any] | None:
    """An engine's object info, None when it is none."""
    try:
        found = json.loads(data) if len(data) <= MAX_BYTES else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None

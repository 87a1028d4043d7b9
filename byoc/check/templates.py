"""Folders to begin with, made of the examples."""

from __future__ import annotations

import re
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from stream.errors import Conflict, InvalidInput, NotFound

NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
"""What is good for a folder, an image and a capability."""


def names() -> list[str]:
    return sorted(entry.name for entry in _folder().iterdir() if (entry / "worker.py").is_file())


def described() -> dict[str, str]:
    """Each template with the first line of its README's text."""
    return {name: _lines(_folder() / name / "README.md")[2] for name in names()}


def make(name: str, template: str, place: Path) -> Path:
    """Copy a template to ``place / name``, called by that name. Raises `InvalidInput`, `NotFound`, and
    `Conflict` when something is there."""
    if not NAME.fullmatch(name):
        raise InvalidInput(
            f"a capability's name has small letters, digits, dots and dashes, not {name!r}", field="NAME"
        )
    if template not in names():
        raise NotFound(
            f"there is no template {template!r}; known are {', '.join(names())}", field="--template"
        )
    target = place / name
    try:
        target.mkdir(parents=True)
        for entry in (_folder() / template).iterdir():
            if entry.is_file():
                (target / entry.name).write_text(_renamed(entry.read_text(), template, name))
    except FileExistsError:
        raise Conflict(f"{target} is there already", field="NAME") from None
    except OSError as error:
        raise InvalidInput(f"{target} cannot be made: {error.strerror}", field="NAME") from None
    return target


def _renamed(text: str, template: str, name: str) -> str:
    """The capability's and the image's name; what the program itself is called stays."""
    for before in ("CAPABILITY_NAME=", "docker build -t ", "8000:8000 "):
        text = text.replace(before + template, before + name)
    return re.sub(rf"^# {re.escape(template)}$", f"# {name}", text, flags=re.MULTILINE)


def _lines(file: Traversable) -> list[str]:
    return file.read_text().splitlines()


def _folder() -> Traversable:
    return resources.files("byoc") / "examples"

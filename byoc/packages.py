"""Notices what hides Headrace's packages: their names are short, and Python takes the first that it finds.

Standard library only, and nothing that hides one of ours is imported to find that out.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

ROOMS = ("stream", "workflows", "byoc", "headrace")
EMPTY = ("stream", "workflows", "headrace")
"""Packages whose ``__init__.py`` is an empty file."""
HOME = Path(__file__).resolve().parent.parent


def hidden(rooms: Iterable[str] = ROOMS) -> list[str]:
    """What is wrong with those of our packages, one sentence each; an empty list when all are ours."""
    return [problem for room in rooms if (problem := _problem(room)) is not None]


def _problem(room: str) -> str | None:
    ours = HOME / room / "__init__.py"
    found = _origin(room)
    if found is None:
        return f"Headrace's package {room!r} is missing; install Headrace again"
    if found.resolve() != ours:
        return f"{_place(found)} hides Headrace's package {room!r} in {ours.parent}; {_advice(room, found)}"
    if room in EMPTY and ours.stat().st_size:
        place = f"another package {room!r} was installed over Headrace's in {ours.parent}"
        return f"{place}; {_advice(room, found)}"
    return None


def _origin(room: str) -> Path | None:
    """The file that ``import room`` loads, or has loaded."""
    try:
        spec = importlib.util.find_spec(room)
    except (ImportError, ValueError):
        # A module that was put there by hand has no specification.
        spec = None
    loaded = getattr(sys.modules.get(room), "__file__", None)
    origin = loaded or (spec.origin if spec is not None else None)
    return Path(origin) if origin else None


def _place(found: Path) -> Path:
    return found.parent if found.name == "__init__.py" else found


def _advice(room: str, found: Path) -> str:
    others = [name for name in metadata.packages_distributions().get(room, ()) if name.lower() != "headrace"]
    if others:
        names = " ".join(sorted(set(others)))
        return f"it belongs to {names}: keep Headrace in its own environment, or `pip uninstall {names}`"
    return f"rename it, or take {_place(found).parent} out of the path (the current folder, PYTHONPATH)"

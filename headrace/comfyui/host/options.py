"""What an engine in an installation is told: where it is, how it is started, and what is off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

MODULE = "headrace.comfyui.host.home"
"""The module whose ``open_home`` takes these."""


@dataclass(frozen=True)
class ComfyOptions:
    """``directory``: the installation. ``arguments``: its own command line. ``scratch``: a folder of ours for
    what nodes and packs write as output, temporary files and settings of users.

    ``classes``: patterns (``KSampler*``) of the node classes that callers may use, none: all. ``folders``:
    further folders that absolute paths in workflows may lead into. ``skip_packs``: folders of custom nodes
    that are not loaded. ``keep``: seconds after its last use for which a model, or a stream, is in use.
    """

    directory: str
    scratch: str
    arguments: tuple[str, ...] = ()
    input_folder: str | None = None
    prestart: bool = False
    network: bool = False
    skip_packs: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    keep: float = 10.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ComfyOptions:
        """Raises TypeError for what is not such a dictionary."""
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in data.items()
            if name in known
        }
        return cls(**values)

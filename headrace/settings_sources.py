"""Where settings come from besides flags and ``HEADRACE_*``: names of ai-runner and PyTrickle, and a file."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from stream.errors import InvalidInput

PREFIX: Final = "HEADRACE_"

PEER_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "token": ("AUTH_TOKEN",),
    "capacity": ("CAPABILITY_CAPACITY",),
    "pipeline": ("PIPELINE",),
    "model_id": ("CAPABILITY_NAME", "MODEL_ID"),
    "capabilities": ("CAPABILITY_NAME", "MODEL_ID"),
    "orchestrator": ("ORCH_URL",),
    "orchestrator_secret": ("ORCH_SECRET",),
    "capability_url": ("CAPABILITY_URL",),
    "capability_description": ("CAPABILITY_DESCRIPTION",),
    "capability_price": ("CAPABILITY_PRICE_PER_UNIT",),
    "capability_price_scaling": ("CAPABILITY_PRICE_SCALING",),
}
"""Variables of ai-runner and PyTrickle that mean the same as a setting; the first that is set counts."""

TOGETHER: Final = (
    ("ORCH_URL", "HEADRACE_ORCHESTRATOR"),
    ("ORCH_SECRET", "HEADRACE_ORCHESTRATOR_SECRET"),
)
"""What registering with an orchestrator takes, each under two names."""


class PeerNames(PydanticBaseSettingsSource):
    """`PEER_NAMES` from the environment; empty ones count as not set."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        for name in PEER_NAMES.get(field_name, ()):
            if value := os.environ.get(name):
                # CAPABILITY_NAME may hold several names; the first is what the worker calls itself.
                first = value.partition(",")[0].strip() if field_name == "model_id" else value
                return first, field_name, False
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        values = {name: self.get_field_value(field, name)[0] for name, field in self._fields}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def _fields(self) -> Iterable[tuple[str, FieldInfo]]:
        return self.settings_cls.model_fields.items()


class ConfigFile(PydanticBaseSettingsSource):
    """A TOML file whose keys are the names of settings.

    Raises `InvalidInput` when it cannot be read, is not TOML, or has a key that is no setting.
    """

    def __init__(self, settings_cls: type[BaseSettings], path: Path | None) -> None:
        super().__init__(settings_cls)
        self._path = path

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        known = [name for name in self.settings_cls.model_fields if name != "config"]
        return read_config(self._path, known)


def read_config(path: Path, known: Iterable[str]) -> dict[str, Any]:
    """The values of a TOML file; raises `InvalidInput` naming the file and what is wrong with it."""
    names = list(known)
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", field="config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is not TOML: {error}", field="config") from None
    problems = [
        {"field": key, "message": f"{path}: {key!r} is no setting{_suggest(key, names)}"}
        for key in values
        if key not in names
    ]
    if problems:
        text = "; ".join(problem["message"] for problem in problems)
        raise InvalidInput(text, field="config", details=problems)
    return values


def notes_on_environment(environment: Mapping[str, str], known: Iterable[str]) -> list[str]:
    """What an operator may have meant but that has no effect, as sentences."""
    names = list(known)
    present = [next((name for name in either if environment.get(name)), None) for either in TOGETHER]
    notes = [
        f"{given} is set without {either[0]}: the worker registers with no orchestrator"
        for given, either in zip(present, reversed(TOGETHER), strict=True)
        if given is not None and None in present
    ]
    for variable in sorted(environment):
        name = variable.removeprefix(PREFIX).lower()
        if variable.startswith(PREFIX) and name not in names:
            suggestion = _suggest(name, names, lambda found: f"{PREFIX}{found.upper()}")
            notes.append(f"{variable} is no setting{suggestion}")
    return notes


def _suggest(name: str, known: Iterable[str], spell: Any = str) -> str:
    near = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return f"; did you mean {spell(near[0])}?" if near else ""

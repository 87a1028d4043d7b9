"""What a container's folder says of how it is checked: ``check.toml``. Pure but for reading the file."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stream.errors import InvalidInput, NotFound

FILE = "check.toml"
PROGRAM = "worker.py"


class PlannedRequest(BaseModel):
    """A batch request and what it must be answered with."""

    model_config = ConfigDict(extra="forbid")

    path: str
    body: Any = None
    status: int = 200
    events: bool = Field(False, description="the answer is a stream of events")


class CheckPlan(BaseModel):
    """``command`` runs in the folder, with ``PORT`` and PyTrickle's variables set."""

    model_config = ConfigDict(extra="forbid")

    command: list[str] = [sys.executable, PROGRAM]
    stream: bool = Field(True, description="whether it works on streams")
    params: dict[str, Any] = Field({}, description="parameters that it must take")
    refused: dict[str, Any] | None = Field(None, description="parameters that it must refuse")
    data: bool = Field(False, description="whether something must come on the data channel")
    request: list[PlannedRequest] = []


def read_plan(folder: Path, command: list[str] | None = None) -> CheckPlan:
    """The plan of a folder; without a file, that of a `worker.py` that works on streams. ``command`` comes
    before what the file says. Raises `NotFound` and `InvalidInput`."""
    if not folder.is_dir():
        raise NotFound(f"{folder} is not a folder", field="DIR")
    try:
        data = tomllib.loads((folder / FILE).read_text())
    except FileNotFoundError:
        data = {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"{folder / FILE} cannot be read: {error}", field=FILE) from None
    try:
        plan = CheckPlan.model_validate(data if command is None else {**data, "command": command})
    except ValidationError as error:
        text = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors())
        raise InvalidInput(f"{folder / FILE}: {text}", field=FILE) from None
    if not plan.command:
        raise InvalidInput("the command is empty", field="command")
    if plan.command == [sys.executable, PROGRAM] and not (folder / PROGRAM).exists():
        raise NotFound(f"{folder} has no {PROGRAM}; name the command by --command or in {FILE}", field="DIR")
    return plan

"""What an engine is started with, and what it says of itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stream.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """One engine process and the patience of its guardian. Times are in seconds.

    ``python``: the command of a foreign interpreter (with options, if it needs any); None is the worker's
    own. A foreign one finds of Headrace only what the engine's host needs.
    ``device``: ``auto`` (CUDA where there is some, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.
    ``threads``: threads of one torch operation on the CPU.
    ``extra_path``: folders in which the engine looks for the modules of class targets, after its own; None
    is the working directory for the worker's own interpreter and nothing for a foreign one.
    ``env``: environment variables on top of the worker's.
    ``nice``: added to the process's niceness.
    ``holders``: by kind of device (``cuda``, ``cpu``) how the addresses of the processes begin that hold
    weights for several engines; one of the worker's own interpreter shares them.
    ``home``: the installation that it lives in, ``module`` and ``options`` as in `headrace.engine.home`.
    """

    name: str = "default"
    python: tuple[str, ...] | None = None
    device: str = "auto"
    threads: int = 1
    extra_path: tuple[str, ...] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    nice: int = 0
    holders: Mapping[str, str] = field(default_factory=dict)
    home: Mapping[str, Any] | None = None

    start_timeout: float = 120.0
    """From the spawn to the engine's word that it is ready."""
    call_timeout: float = 5.0
    """An engine that owes answers and gives none for so long hangs. Warm up in `load_model`."""
    open_timeout: float = 300.0
    """The same while a session loads; any sign of life counts there."""
    stop_timeout: float = 5.0
    """From the wish to stop to the last resort, and the bound on closing a session."""

    backoff_first: float = 0.1
    backoff_ceiling: float = 15.0
    stable_after: float = 30.0
    """Ready for so long, an engine is taken for sound, and the next restart is a first one again."""
    attempts: int = 5
    """Starts in a row that may end before the engine is ready; then it counts as failed and tries slowly."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device):
            raise InvalidInput(
                f"device must be auto, cpu, cuda or cuda:N, not {self.device!r}", field="device"
            )
        for name in ("start_timeout", "call_timeout", "open_timeout", "stop_timeout"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be over 0 seconds")
        if not 0 < self.backoff_first <= self.backoff_ceiling:
            raise ValueError(
                f"backoff_first is {self.backoff_first}; it must lie between 0 and backoff_ceiling "
                f"({self.backoff_ceiling})"
            )
        if self.threads < 1 or self.attempts < 1:
            raise ValueError(f"threads ({self.threads}) and attempts ({self.attempts}) must be at least 1")


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What a ready engine has said of itself. ``pixel_format`` is how it wants pictures to cross."""

    pid: int
    python: str
    torch: str
    device: str
    device_name: str
    pixel_format: str
    import_seconds: float

    @classmethod
    def from_message(cls, body: Mapping[str, Any]) -> EngineFacts:
        """Raises KeyError, TypeError or ValueError for what is not such a message."""
        return cls(
            pid=int(body["pid"]),
            python=str(body["python"]),
            torch=str(body["torch"]),
            device=str(body["device"]),
            device_name=str(body["device_name"]),
            pixel_format=str(body["pixel_format"]),
            import_seconds=float(body["import_seconds"]),
        )

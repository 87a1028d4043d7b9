"""What an engine has taken of its device since it was ready, told to the worker when it changes."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.engine.link import Link, LinkError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

SESSION = "*memory*"
"""The name under which it is told; no stream has one like it."""
EVERY = 2.0
STEP = 16 * 1024 * 1024
"""Bytes by which it must have changed to be told again."""


class MemoryReports:
    """Belongs to the loop. Looks every `EVERY` seconds until the link closes."""

    def __init__(self, link: Link, device: torch.device) -> None:
        self._link = link
        self._device = device
        self._begun = taken(device)
        self._told = 0
        self._loop = asyncio.get_running_loop()
        self._loop.call_later(EVERY, self._look)

    def now(self) -> int:
        """Bytes that were taken since the engine was ready; from any thread."""
        return max(0, taken(self._device) - self._begun)

    def _look(self) -> None:
        if self._link.closed:
            return
        self._loop.call_later(EVERY, self._look)
        size = self.now()
        # No frame waits behind it: where the worker is behind, the next look does.
        if abs(size - self._told) < STEP or self._link.backlog:
            return
        try:
            self._link.send({"op": "words", "session": SESSION, "device": str(self._device), "bytes": size})
        except LinkError as error:
            log.debug("memory cannot be told: %s", error.message)
            return
        self._told = size


def taken(device: torch.device) -> int:
    """Bytes that torch has of a CUDA device, or what this process has of the machine's for itself alone."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.memory_reserved(device))
    resident, shared = Path("/proc/self/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")

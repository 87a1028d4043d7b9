"""What NVIDIA's own tool says of the machine's GPUs. Needs no CUDA, no torch and no package."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

FIELDS = (
    "index",
    "uuid",
    "name",
    "memory.total",
    "memory.free",
    "compute_cap",
    "utilization.gpu",
    "utilization.memory",
    "driver_version",
)
TIMEOUT = 3.0
"""Seconds; the tool takes a second where the driver is not kept loaded, and for ever on a lost GPU."""
LAST_WAIT = 1.0
"""Seconds for a killed tool to go; one that hangs in the driver does not."""
KEPT = 3.0
"""Seconds for which an answer is good."""
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU; memory in bytes, utilisation in percent (0 where the GPU does not tell)."""

    index: int
    uuid: str
    name: str
    memory_total: int
    memory_free: int
    major: int
    minor: int
    utilization_compute: int
    utilization_memory: int
    driver: str

    def info(self) -> dict[str, Any]:
        """As ai-runner and PyTrickle tell it under ``gpu_info``."""
        return {**self._common(), "major": self.major, "minor": self.minor}

    def stats(self) -> dict[str, Any]:
        """As ai-runner and PyTrickle tell it under ``gpu_stats``."""
        return {
            **self._common(),
            "utilization_compute": self.utilization_compute,
            "utilization_memory": self.utilization_memory,
        }

    def _common(self) -> dict[str, Any]:
        return {
            "id": self.uuid,
            "name": self.name,
            "memory_total": self.memory_total,
            "memory_free": self.memory_free,
        }


def parse_gpus(text: str) -> list[Gpu]:
    """The GPUs of ``nvidia-smi --format=csv,noheader,nounits`` over `FIELDS`; other lines are left out."""
    gpus = []
    for line in text.splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) != len(FIELDS) or not values[0].isdecimal():
            continue
        index, uuid, name, total, free, capability, compute, memory, driver = values
        major, _, minor = capability.partition(".")
        gpus.append(
            Gpu(
                index=int(index),
                uuid=uuid,
                name=name,
                memory_total=_number(total) * MIB,
                memory_free=_number(free) * MIB,
                major=_number(major),
                minor=_number(minor),
                utilization_compute=_number(compute),
                utilization_memory=_number(memory),
                driver=driver,
            )
        )
    return gpus


def _number(text: str) -> int:
    """A count; 0 for what the GPU does not tell, as ``[N/A]``."""
    return int(text) if text.isdecimal() else 0


async def read_gpus(tool: str = "nvidia-smi", timeout: float = TIMEOUT) -> list[Gpu]:
    """Ask the tool; an empty list where there is no GPU, no tool, or no answer within ``timeout`` s."""
    path = shutil.which(tool)
    if path is None:
        return []
    arguments = (f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits")
    try:
        process = await asyncio.create_subprocess_exec(
            path, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
    except OSError as error:
        log.warning("%s cannot be run: %s", path, error)
        return []
    try:
        async with asyncio.timeout(timeout):
            output, _ = await process.communicate()
    except TimeoutError:
        log.warning("%s gave no answer within %g s", path, timeout)
        return []
    finally:
        if process.returncode is None:
            process.kill()
            try:
                async with asyncio.timeout(LAST_WAIT):
                    await process.wait()
            except TimeoutError:
                log.warning("%s does not end; leaving it", path)
    return parse_gpus(output.decode(errors="replace")) if process.returncode == 0 else []


class GpuWatch:
    """The GPUs as they were at most `KEPT` seconds ago; however many ask, the tool runs once."""

    def __init__(self, tool: str = "nvidia-smi") -> None:
        self._tool = tool
        self._gpus: Sequence[Gpu] = ()
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def gpus(self) -> Sequence[Gpu]:
        async with self._reading:
            if time.monotonic() - self._read_at > KEPT:
                self._gpus = await read_gpus(self._tool)
                self._read_at = time.monotonic()
            return self._gpus

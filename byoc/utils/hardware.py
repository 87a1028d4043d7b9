"""What the machine's GPUs are and do, as NVIDIA's tool says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from pydantic import BaseModel

from stream.gpus import Gpu, read_gpus

log = logging.getLogger(__name__)


class GPUBaseInfo(BaseModel):
    """Memory in bytes."""

    id: str
    name: str
    memory_total: int
    memory_free: int


class GPUComputeInfo(GPUBaseInfo):
    """``major`` and ``minor``: the compute capability."""

    major: int
    minor: int


class GPUUtilizationInfo(GPUBaseInfo):
    """Utilisation in percent."""

    utilization_compute: int
    utilization_memory: int


class GPUInfo(GPUComputeInfo, GPUUtilizationInfo):
    """All of it."""


class HardwareInfo:
    """Asks when it is asked; empty answers without a GPU. It takes up to three seconds and an event loop of
    its own, so a coroutine calls it in a thread. The server's own routes do not use it."""

    def get_cuda_info(self) -> dict[int, GPUInfo]:
        return {gpu.index: GPUInfo(**{**gpu.info(), **gpu.stats()}) for gpu in _read()}

    def get_gpu_compute_info(self) -> dict[int, GPUComputeInfo]:
        return {gpu.index: GPUComputeInfo(**gpu.info()) for gpu in _read()}

    def get_gpu_utilization_stats(self) -> dict[int, GPUUtilizationInfo]:
        return {gpu.index: GPUUtilizationInfo(**gpu.stats()) for gpu in _read()}

    def log_gpu_compute_info(self) -> None:
        """Write one line for each GPU to the log."""
        for index, info in self.get_gpu_compute_info().items():
            log.info("GPU %d: %s", index, info)


def _read() -> Sequence[Gpu]:
    return asyncio.run(read_gpus())

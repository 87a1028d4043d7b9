"""Weights that processes share on the CPU: mapped files that nobody can write to.

safetensors maps a file privately, so its pages are those of the page cache, in memory once for all processes,
until somebody writes to them. `protect` takes the right to write away: a write then ends the process with a
fault that names its line (faulthandler), in the place of a model that is silently another one.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.models.memory import Mapping, file_mappings, tensors_of

if TYPE_CHECKING:
    import torch

_PROT_READ = 1  # <sys/mman.h>


def protect(files: Iterable[Path]) -> int:
    """Make this process's mappings of ``files`` readable alone (mprotect(2)); how many bytes that are.

    Raises `OSError` when the kernel refuses.
    """
    wanted = {_identity(file.stat()) for file in files if file.suffix == ".safetensors"}
    libc = ctypes.CDLL(None, use_errno=True)
    size = 0
    for mapping in file_mappings():
        if _identity_of(mapping) not in wanted:
            continue
        size += mapping.end - mapping.start
        if "w" not in mapping.permissions:
            continue
        length = mapping.end - mapping.start
        if libc.mprotect(ctypes.c_void_p(mapping.start), ctypes.c_size_t(length), _PROT_READ) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"mprotect of {mapping.path}: {os.strerror(number)}")
    return size


def _identity(facts: os.stat_result) -> tuple[int, int, int]:
    return os.major(facts.st_dev), os.minor(facts.st_dev), facts.st_ino


def _identity_of(mapping: Mapping) -> tuple[int, int, int]:
    major, _, minor = mapping.device.partition(":")
    return int(major, 16), int(minor, 16), mapping.inode


def freeze(model: Any) -> None:
    """Evaluation mode and no gradients, for every module in ``model`` (a module, or a dictionary of them)."""
    import torch

    parts = model.values() if isinstance(model, dict) else [model]
    for part in parts:
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)


def shares(tensor: torch.Tensor) -> bool:
    """Whether a tensor lies in a mapped file that this process cannot write to."""
    address = tensor.untyped_storage().data_ptr()
    return any(m.start <= address < m.end and "w" not in m.permissions for m in file_mappings())


def shared_bytes(model: Any) -> tuple[int, int]:
    """Bytes of ``model`` in mapped files, and bytes of its own."""
    ranges = [(m.start, m.end) for m in file_mappings()]
    mapped = own = 0
    for tensor in tensors_of(model):
        address = tensor.data_ptr()
        if any(start <= address < end for start, end in ranges):
            mapped += tensor.nbytes
        else:
            own += tensor.nbytes
    return mapped, own

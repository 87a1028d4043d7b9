"""Memory of a process and its device: what a model takes, when there is none left, giving it back.

torch is used where it has been imported already, and never imported here.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.models import sharing
from stream.heap import give_back

if TYPE_CHECKING:
    import torch

_OUT_OF_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Cannot allocate memory",
)


HELD: dict[int, tuple[str, int]] = {}
"""Memory of this process that the holder of weights has for all: its address, name and bytes."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch's allocator for the CPU says so by a plain RuntimeError."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(mark in str(error) for mark in _OUT_OF_MEMORY)


def trim(device: str) -> None:
    """Give what nobody uses any more back to the device and to the system."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and device.startswith("cuda") and torch.cuda.is_initialized():
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    give_back()
    sharing.sweep()


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def taken(device: str) -> int:
    """Bytes that torch has of ``device``, or this process of the machine's memory."""
    torch = sys.modules.get("torch")
    if torch is not None and device.startswith("cuda") and torch.cuda.is_initialized():
        return int(torch.cuda.memory_allocated(device))
    return resident()


def total(device: str) -> int:
    """Bytes of memory that ``device`` has in all; of the machine's, what this container may have."""
    torch = sys.modules.get("torch")
    if torch is not None and device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[1])
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemTotal":
            return min(int(rest.split()[0]) * 1024, _container_limit())
    raise OSError("/proc/meminfo does not say how much memory there is")


def _container_limit() -> int:
    """The limit of the control group (cgroups(7), version 2) that a container sees as its own."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return sys.maxsize
    return int(text) if text.isdigit() else sys.maxsize


def tensors_of(model: Any) -> Iterator[torch.Tensor]:
    """Every parameter and buffer of a module, or of the modules in a list, a dictionary or a pipeline."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    waiting: list[Any] = [model]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            yield one
        elif isinstance(one, torch.nn.Module):
            yield from one.parameters()
            yield from one.buffers()
        elif isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, (list, tuple)):
            waiting += one
        elif isinstance(getattr(one, "components", None), dict):
            waiting += one.components.values()
        elif hasattr(one, "__dict__") and getattr(type(one), "__module__", "").startswith("headrace"):
            waiting += vars(one).values()


def parts_of(model: Any, *, name: str) -> dict[str, int]:
    """Names and bytes of the memory that a model's tensors lie in, each storage once.

    What is mapped from a file, or has been read by the holder, is a part of its own, by the file, so that all
    who have it share it.
    """
    private = 0
    mapped: dict[str, int] = {}
    files = file_mappings()
    seen: set[int] = set()
    for tensor in tensors_of(model):
        if tensor.is_meta:
            continue
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address in seen:
            continue
        seen.add(address)
        held = HELD.get(address)
        if held is not None and held[1] == storage.nbytes():
            mapped[held[0]] = held[1]
            continue
        mapping = (
            next((m for m in files if m.start <= address < m.end), None)
            if tensor.device.type == "cpu"
            else None
        )
        if mapping is None:
            private += storage.nbytes()
        else:
            mapped[f"file:{mapping.device}:{mapping.inode}"] = mapping.file_size
    return {**mapped, name: private} if private or not mapped else mapped


class Mapping:
    """One mapping of a file, from /proc/self/maps (proc(5))."""

    __slots__ = ("device", "end", "inode", "offset", "path", "permissions", "start")

    def __init__(self, line: str) -> None:
        addresses, self.permissions, offset, self.device, inode, path = line.split(maxsplit=5)
        self.start, self.end = (int(part, 16) for part in addresses.split("-"))
        self.offset, self.inode, self.path = int(offset, 16), int(inode), path.rstrip("\n")

    @property
    def file_size(self) -> int:
        try:
            return Path(self.path).stat().st_size
        except OSError:
            return self.end - self.start


def file_mappings(suffixes: Iterable[str] = (".safetensors",)) -> list[Mapping]:
    """The mappings of files of weights in this process."""
    wanted = tuple(suffixes)
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        lines = [line for line in maps if line.rstrip("\n").removesuffix(" (deleted)").endswith(wanted)]
    return [Mapping(line) for line in lines]

"""An engine's way to weights that a holder has: its modules' tensors become views of the holder's buffers."""

from __future__ import annotations

import mmap
import socket
import threading
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from headrace.engine.host_errors import rebuild
from headrace.engine.link import Link, Message
from headrace.engine.memory import BLOCK_SEALS, check_file
from headrace.models.memory import file_mappings
from stream.errors import EngineError

TIMEOUT = 300.0
"""Seconds for reading one file onto the device."""


class HolderClient:
    """A connection to the holder at ``address``. From any thread, one request at a time."""

    def __init__(self, address: str | bytes) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(address)
        except OSError as error:
            sock.close()
            raise EngineError(f"no holder of weights answers: {error}") from None
        self._link = Link(sock)
        self._sock = sock
        self._lock = threading.Lock()

    def hold(self, path: Path) -> torch.Tensor:
        """The bytes of a file as a uint8 tensor on the holder's device, read there once for all engines.

        Not to be written to. Raises what the holder answers, and `EngineError` when it does not.
        """
        with self._lock:
            self._link.send({"op": "hold", "path": str(path)})
            message = self._receive()
            try:
                if message.op == "failed":
                    raise rebuild(message.body.get("error"))
                return _opened(message)
            finally:
                message.close()

    def drop(self, path: Path) -> None:
        """The file is not needed any more; views of it must be gone."""
        with self._lock:
            self._link.send({"op": "drop", "path": str(path)})

    def close(self) -> None:
        """Let go of everything."""
        self._link.close()

    def _receive(self) -> Message:
        deadline = time.monotonic() + TIMEOUT
        while (message := self._link.receive()) is None:
            if time.monotonic() > deadline:
                raise EngineError(f"the holder of weights gave no answer for {TIMEOUT:g} s")
            self._wait(deadline)
        return message

    def _wait(self, deadline: float) -> None:
        import select

        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.poll(max(0.0, deadline - time.monotonic()) * 1000)


def _opened(message: Message) -> torch.Tensor:
    handle, size = message.body["handle"], int(message.body["size"])
    if handle["kind"] == "file":
        fd = message.take_fd()
        with open(fd, "rb") as file:
            check_file(fd, size, BLOCK_SEALS)
            mapped = mmap.mmap(file.fileno(), size, mmap.MAP_SHARED, mmap.PROT_READ)
        with warnings.catch_warnings():
            # It says that the memory cannot be written to, which is what is wanted.
            warnings.simplefilter("ignore", UserWarning)
            return torch.frombuffer(mapped, dtype=torch.uint8)
    storage: Any = torch.UntypedStorage
    opened = storage._new_shared_cuda(
        handle["device"],
        bytes.fromhex(handle["memory"]),
        handle["size"],
        handle["offset"],
        bytes.fromhex(handle["counter"]),
        handle["counter_offset"],
        bytes.fromhex(handle["event"]),
        handle["wait"],
    )
    return torch.empty(0, dtype=torch.uint8, device=f"cuda:{handle['device']}").set_(opened)[:size]


def adopt(module: torch.nn.Module, files: Iterable[Path], client: HolderClient) -> int:
    """Put the holder's bytes in the place of every tensor of ``module`` that is mapped from ``files``.

    ``module`` comes from ``from_pretrained`` on the CPU and has the type of its files. How many bytes were
    adopted; what is not mapped (a few buffers) stays where it is, for ``module.to`` to move.
    """
    wanted = {(facts.st_ino, facts.st_size): path for path in files if (facts := path.stat())}
    mappings = [(m, wanted[key]) for m in file_mappings() if (key := (m.inode, m.file_size)) in wanted]
    buffers: dict[Path, torch.Tensor] = {}
    found: dict[int, torch.Tensor] = {}

    def held(tensor: torch.Tensor) -> torch.Tensor | None:
        address = tensor.data_ptr()
        for mapping, path in mappings:
            if mapping.start <= address < mapping.end:
                if path not in buffers:
                    buffers[path] = client.hold(path)
                return _view(buffers[path], address - mapping.start + mapping.offset, tensor)
        return None

    old: list[torch.Tensor] = []  # kept to the end, so that each of them has a number of its own
    for part in module.modules():
        # New objects: the old ones keep their mapping alive, whatever data they are given.
        tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for own in tables:
            for name, tensor in own.items():
                if tensor is None:
                    continue
                if id(tensor) not in found and (data := held(tensor)) is not None:
                    old.append(tensor)
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    found[id(tensor)] = (
                        torch.nn.Parameter(data, requires_grad=False) if is_parameter else data
                    )
                own[name] = found.get(id(tensor), tensor)
    return sum(tensor.nbytes for tensor in found.values())


def _view(buffer: torch.Tensor, offset: int, like: torch.Tensor) -> torch.Tensor | None:
    """The part of ``buffer`` with the bytes of ``like``; None where they do not begin as its type must."""
    if offset % like.element_size():
        return None
    data = buffer[offset : offset + _extent(like)].view(like.dtype)
    return data.as_strided(like.shape, like.stride())


def _extent(tensor: torch.Tensor) -> int:
    """Bytes from a tensor's first element to its last."""
    if tensor.numel() == 0:
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return (1 + sum((side - 1) * step for side, step in steps)) * tensor.element_size()

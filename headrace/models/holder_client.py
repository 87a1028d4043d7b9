"""An engine's way to weights that a holder has: its modules' tensors become views of the holder's buffers."""

from __future__ import annotations

import mmap
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from headrace.engine.host_errors import rebuild
from headrace.engine.link import Link, Message
from headrace.engine.memory import BLOCK_SEALS, check_file
from headrace.models import memory
from headrace.models.holder import Identity, identity_of, user_of
from headrace.models.memory import file_mappings
from stream.errors import EngineError

TIMEOUT = 300.0
"""Seconds for reading one file onto the device."""


class _Opened:
    """A buffer of the holder that this process has opened, by a reference that does not keep it."""

    def __init__(self, buffer: torch.Tensor, identity: Identity) -> None:
        storage = buffer.untyped_storage()
        self.identity = identity
        self.address = storage.data_ptr()
        make: Any = StorageWeakRef
        self._ref: Any = make(storage)
        size = storage.nbytes()
        memory.HELD[self.address] = (f"held:{':'.join(map(str, identity))}", size)

    @property
    def expired(self) -> bool:
        return bool(self._ref.expired())

    def buffer(self) -> torch.Tensor | None:
        """The buffer again, None when nothing used it any more."""
        untyped: Any = torch.UntypedStorage
        storage = untyped._new_with_weak_ptr(self._ref.cdata)
        if storage is None:
            return None
        return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)

    def forget(self) -> None:
        memory.HELD.pop(self.address, None)


class HolderClient:
    """A connection to the holder at ``address``. From any thread, one request at a time.

    A leading ``@`` of the address is one without a file. Raises `EngineError` when nobody of ours answers.
    """

    def __init__(self, address: str) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
            if user_of(sock) != os.getuid():
                raise EngineError("another user answers in the place of the holder of weights")
        except OSError as error:
            sock.close()
            raise EngineError(f"no holder of weights answers: {error}") from None
        except EngineError:
            sock.close()
            raise
        self._link = Link(sock)
        self._sock = sock
        self._lock = threading.Lock()
        self._opened: dict[Path, _Opened] = {}

    def hold(self, path: Path) -> torch.Tensor:
        """The bytes of a file as a uint8 tensor on the holder's device, read there once for all engines.

        Not to be written to; the holder keeps it until `sweep` finds that neither it nor a view of it is
        left. Raises what the holder answers, and `EngineError` when it does not.
        """
        with self._lock:
            identity = identity_of(path)
            opened = self._opened.get(path)
            if opened is not None and opened.identity == identity and (kept := opened.buffer()) is not None:
                return kept
            self._link.send({"op": "hold", "path": str(path)})
            message = self._receive()
            try:
                if message.op == "failed":
                    raise rebuild(message.body.get("error"))
                buffer = _opened(message)
            finally:
                message.close()
            self._opened[path] = _Opened(buffer, identity)
            return buffer

    def sweep(self) -> None:
        """Tell the holder which files are not used here any more. Raises `LinkError` when it is gone."""
        with self._lock:
            for path in [path for path, opened in self._opened.items() if opened.expired]:
                self._opened.pop(path).forget()
                self._link.send({"op": "drop", "path": str(path)})

    def in_use(self) -> bool:
        """Whether something of the holder's memory is in use here."""
        with self._lock:
            return any(not opened.expired for opened in self._opened.values())

    def close(self) -> None:
        """Let go of everything."""
        self._link.close()
        for opened in self._opened.values():
            opened.forget()

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

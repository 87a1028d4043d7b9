"""A process that holds weights on a device and does nothing else, so that engines share them.

It reads files of weights into one buffer of bytes each and gives engines handles to them: CUDA's own
(cuIpcGetMemHandle) on a GPU, a sealed memory file on a CPU. A buffer lives as long as one engine that asked
for it is connected and has not let go. No pickle crosses: handles are numbers and bytes in a message of
`headrace.engine.link`.

    engine to holder   {"op": "hold", "path"}
                       {"op": "drop", "path"}                           not answered
    holder to engine   {"op": "held", "path", "size", "handle"}         on a CPU with a descriptor
                       {"op": "failed", "path", "error"}                in its place
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import selectors
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.engine.bootstrap import die_with_parent
from headrace.engine.link import Link, LinkClosed, LinkError, Message
from headrace.engine.memory import BLOCK_SEALS, memory_file
from headrace.models.errors import LoadFailed, OutOfMemory
from headrace.models.memory import is_out_of_memory
from stream.errors import HeadraceError, InvalidInput

if TYPE_CHECKING:
    import torch

CHUNK = 16 * 1024 * 1024
MAX_CLIENTS = 16
_SEALS = BLOCK_SEALS | fcntl.F_SEAL_WRITE

Identity = tuple[int, int, int, int]
"""Device, inode, size and time of a file: another file under the same path is another buffer."""


class Held:
    """The bytes of one file on the device."""

    def __init__(self, size: int, fd: int = -1, buffer: torch.Tensor | None = None) -> None:
        self.size = size
        self.fd = fd
        self.buffer = buffer

    def handle(self) -> dict[str, Any]:
        """What another process opens it by; a new one for every process (CUDA counts them)."""
        if self.buffer is None:
            return {"kind": "file"}
        shared: Any = self.buffer.untyped_storage()
        parts = shared._share_cuda_()
        names = ("device", "memory", "size", "offset", "counter", "counter_offset", "event", "wait")
        data = {n: v.hex() if isinstance(v, bytes) else v for n, v in zip(names, parts, strict=True)}
        return {"kind": "cuda", **data}

    def close(self) -> None:
        self.buffer = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Holder:
    """Serves clients that connect to ``listener`` (a SEQPACKET socket) until the process ends."""

    def __init__(self, listener: socket.socket, device: str) -> None:
        self._listener = listener
        self._device = device
        self._selector = selectors.DefaultSelector()
        self._held: dict[Identity, Held] = {}
        self._uses: dict[Link, dict[str, Identity]] = {}
        self._counted: dict[Link, dict[str, dict[str, Any]]] = {}
        """Handles that torch counts as used until their process lets go, which one that was killed cannot."""

    def serve(self) -> None:
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        while True:
            for ready, _ in self._selector.select():
                if ready.data is None:
                    self._accept()
                else:
                    self._read(ready.data)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        if len(self._uses) >= MAX_CLIENTS or user_of(sock) != os.getuid():
            sock.close()
            return
        fd = sock.fileno()
        link = Link(sock)
        self._uses[link], self._counted[link] = {}, {}
        self._selector.register(fd, selectors.EVENT_READ, link)

    def _read(self, link: Link) -> None:
        try:
            while (message := link.receive()) is not None:
                with contextlib.closing(message):
                    self._answer(link, message)
        except LinkError as error:
            if not isinstance(error, LinkClosed):
                print(f"a client is dropped: {error.message}", file=sys.stderr)  # noqa: T201 (its log)
            self._leave(link)

    def _leave(self, link: Link) -> None:
        for key, entry in list(self._selector.get_map().items()):
            if entry.data is link:
                self._selector.unregister(key)
        link.close()
        del self._uses[link]
        for handle in self._counted.pop(link).values():
            _discount(handle)
        self._sweep()

    def _answer(self, link: Link, message: Message) -> None:
        path = str(message.body.get("path"))
        if message.op == "drop":
            self._uses[link].pop(path, None)
            self._counted[link].pop(path, None)
            self._sweep()
            return
        try:
            if message.op != "hold":
                raise InvalidInput(f"{message.op!r} is no word to the holder", field="op")
            held = self._hold(link, path)
            handle = held.handle()
        except HeadraceError as error:
            link.send({"op": "failed", "path": path, "error": error.as_dict()})
            return
        if handle["kind"] == "cuda":
            self._counted[link][path] = handle
        fds = [held.fd] if held.fd >= 0 else []
        link.send({"op": "held", "path": path, "size": held.size, "handle": handle}, fds)

    def _hold(self, link: Link, path: str) -> Held:
        identity = identity_of(path)
        if identity not in self._held:
            try:
                read = _to_memory_file if self._device == "cpu" else _to_device
                self._held[identity] = read(Path(path), identity[2], self._device)
            except (OSError, RuntimeError) as error:
                if is_out_of_memory(error):
                    raise OutOfMemory(f"{self._device} has no memory left for {path}") from None
                raise LoadFailed(f"{path} cannot be read: {error}") from None
        self._uses[link][path] = identity
        return self._held[identity]

    def _sweep(self) -> None:
        """Free what nobody uses."""
        used = {identity for uses in self._uses.values() for identity in uses.values()}
        unused = [identity for identity in self._held if identity not in used]
        for identity in unused:
            self._held.pop(identity).close()
        if unused and self._device != "cpu":
            _give_back()


def identity_of(path: str | Path) -> Identity:
    """Raises `LoadFailed` for what is not there."""
    try:
        facts = os.stat(path)
    except OSError as error:
        raise LoadFailed(f"{path} cannot be read: {error.strerror}") from None
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def user_of(sock: socket.socket) -> int:
    """Who is at the other end (unix(7), SO_PEERCRED)."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(data[4:8], sys.byteorder)


def _to_memory_file(path: Path, size: int, device: str) -> Held:
    fd = memory_file("headrace-weights")
    try:
        with path.open("rb") as file:
            done = 0
            while done < size:
                count = os.sendfile(fd, file.fileno(), done, size - done)
                if count == 0:
                    raise OSError(f"{path} became shorter")
                done += count
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return Held(size, fd=fd)


def _to_device(path: Path, size: int, device: str) -> Held:
    import torch

    buffer = torch.empty(size, dtype=torch.uint8, device=device)
    staging = torch.empty(min(CHUNK, size), dtype=torch.uint8, pin_memory=True)
    view: memoryview = staging.numpy().data
    with path.open("rb", buffering=0) as file:
        done = 0
        while done < size:
            count = file.readinto(view[: min(CHUNK, size - done)])
            if not count:
                raise OSError(f"{path} became shorter")
            buffer[done : done + count].copy_(staging[:count])
            done += count
    torch.cuda.synchronize(device)
    return Held(size, buffer=buffer)


def _discount(handle: dict[str, Any]) -> None:
    """Take back a use that a process which has ended has not taken back; once too often does no harm."""
    import torch

    storage: Any = torch.UntypedStorage
    with contextlib.suppress(RuntimeError):
        storage._release_ipc_counter_cuda(bytes.fromhex(handle["counter"]), handle["counter_offset"])


def _give_back() -> None:
    """What was freed goes back to the device, for others to use."""
    import torch

    cuda: Any = torch.cuda
    cuda.ipc_collect()
    cuda.empty_cache()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a holder over a listening socket that the parent left open."""
    parser = argparse.ArgumentParser(prog="headrace.models.holder", description="Holds weights for engines.")
    parser.add_argument("--fd", type=int, required=True, help="a listening AF_UNIX SEQPACKET socket")
    parser.add_argument("--parent", type=int, default=0, help="process id of the worker")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if options.device != "cpu":
        import torch

        torch.zeros(1, device=options.device)  # the context; without a device it ends here, and says so
    Holder(socket.socket(fileno=options.fd), options.device).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())

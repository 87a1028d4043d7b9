"""Memory files that two processes map, and what can go wrong on the link that carries them.

Standard library only: any interpreter can load this module.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os

from stream.errors import EngineError

BLOCK_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_MFD_NOEXEC_SEAL = 0x0008  # <linux/memfd.h>, since Linux 6.3


class LinkError(EngineError):
    """The link cannot carry this message, or can carry none any more."""


class LinkClosed(LinkError):
    """The other side is gone, or this side has closed the link."""


class LinkOverflow(LinkError):
    """The other side does not read; the queue of outgoing messages is at its bound."""


class MalformedMessage(LinkError):
    """What arrived is not what the protocol says; the message names the difference."""


class SharedBlock:
    """Memory that two processes map: a memory file sealed against shrinking, growing and further seals.

    The seals are what makes a mapping safe: a file that shrank under its reader would kill it by SIGBUS.
    """

    __slots__ = ("_fd", "_map", "size")

    def __init__(self, fd: int, mapping: mmap.mmap, size: int) -> None:
        self._fd = fd
        self._map: mmap.mmap | None = mapping
        self.size = size

    @classmethod
    def create(cls, size: int, name: str = "headrace") -> SharedBlock:
        """A new zeroed block of ``size`` bytes. Raises `LinkError` where memory or descriptors run out."""
        try:
            fd = memory_file(name)
        except OSError as error:
            raise LinkError(f"no shared memory: {error}") from error
        try:
            os.ftruncate(fd, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, BLOCK_SEALS)
            return cls(fd, mmap.mmap(fd, size), size)
        except (OSError, ValueError, OverflowError) as error:
            os.close(fd)
            raise LinkError(f"no shared memory of {size} bytes: {error}") from error

    @classmethod
    def attach(cls, fd: int, size: int, *, writable: bool = False) -> SharedBlock:
        """Map what the other side made; takes over ``fd`` and closes it in every case.

        Raises `MalformedMessage` when the file lacks a seal or has another size.
        """
        try:
            if type(size) is not int or size <= 0:
                raise MalformedMessage(f"{size!r} is not the size of a shared block")
            check_file(fd, size, BLOCK_SEALS)
            protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
            return cls(-1, mmap.mmap(fd, size, mmap.MAP_SHARED, protection), size)
        except (OSError, ValueError) as error:
            raise MalformedMessage(f"a shared block that cannot be mapped: {error}") from error
        finally:
            os.close(fd)

    @property
    def fd(self) -> int:
        """The descriptor to send; only on the side that created the block, until `forget_fd`."""
        if self._fd < 0:
            raise LinkError("this block has no descriptor to send")
        return self._fd

    @property
    def buffer(self) -> mmap.mmap:
        if self._map is None:
            raise LinkError("this block is closed")
        return self._map

    def forget_fd(self) -> None:
        """Close the descriptor; the mapping stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        """Unmap, or, where an array still looks at the memory, leave that to the end of the array."""
        self.forget_fd()
        if self._map is not None:
            mapping, self._map = self._map, None
            with contextlib.suppress(BufferError):
                mapping.close()


def memory_file(name: str) -> int:
    """A new empty memory file that can be sealed."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        # Without this flag systems with vm.memfd_noexec=2 refuse the file.
        return os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    except OSError:
        return os.memfd_create(name, flags)


def check_file(fd: int, size: int, seals: int) -> None:
    """Raise `MalformedMessage` unless ``fd`` is a memory file of that size with at least those seals."""
    try:
        found = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise MalformedMessage(f"a descriptor that is not a memory file: {error}") from error
    if found & seals != seals:
        raise MalformedMessage(f"a memory file with seals {found:#x}; {seals:#x} are needed")
    length = os.fstat(fd).st_size
    if length != size:
        raise MalformedMessage(f"a memory file of {length} bytes that was announced with {size}")

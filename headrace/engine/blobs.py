"""Named bytes in one sealed memory file, whose descriptor crosses beside a message.

Standard library only: any interpreter can load this module.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Mapping
from typing import Any

from headrace.engine.memory import BLOCK_SEALS, LinkError, MalformedMessage, check_file, memory_file

_SEALS = BLOCK_SEALS | fcntl.F_SEAL_WRITE

Index = list[dict[str, Any]]
"""``[{"name", "size"}, ...]``, in the order in which the blobs lie in the file."""


def pack(blobs: Mapping[str, bytes | bytearray | memoryview]) -> tuple[int | None, Index]:
    """The descriptor of a new memory file with all of ``blobs``, the caller's to close, and their index.

    The descriptor is None when there is no byte to carry. Raises `LinkError` where memory runs out.
    """
    parts = {name: memoryview(blob).cast("B") for name, blob in blobs.items()}
    index: Index = [{"name": name, "size": len(part)} for name, part in parts.items()]
    if not any(parts.values()):
        return None, index
    try:
        fd = memory_file("headrace-blobs")
    except OSError as error:
        raise LinkError(f"no memory file: {error}") from error
    try:
        for part in parts.values():
            while part:
                part = part[os.write(fd, part) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        os.close(fd)
        size = sum(entry["size"] for entry in index)
        raise LinkError(f"no memory file of {size} bytes: {error}") from error
    return fd, index


def sizes(index: object) -> list[tuple[str, int]]:
    """Names and sizes in an index that came over the link. Raises `MalformedMessage`."""
    if not isinstance(index, list):
        raise MalformedMessage(f"an index of blobs that is a {type(index).__name__}")
    found: list[tuple[str, int]] = []
    for entry in index:
        name, size = (entry.get("name"), entry.get("size")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or type(size) is not int or size < 0:
            raise MalformedMessage(f"{entry!r} is not an entry of an index of blobs")
        found.append((name, size))
    return found


class Blobs:
    """What the other side packed, mapped read-only; takes over ``fd`` and closes it in every case.

    Raises `MalformedMessage` when file and index do not fit each other.
    """

    def __init__(self, fd: int | None, index: object) -> None:
        self._map: mmap.mmap | None = None
        try:
            entries = sizes(index)
            total = sum(size for _, size in entries)
            if (fd is None) != (total == 0):
                raise MalformedMessage(f"{total} bytes of blobs are announced, with descriptor {fd}")
            if fd is not None:
                check_file(fd, total, _SEALS)
                self._map = mmap.mmap(fd, total, mmap.MAP_SHARED, mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise MalformedMessage(f"blobs that cannot be mapped: {error}") from error
        finally:
            if fd is not None:
                os.close(fd)
        self.size = total
        whole = memoryview(b"" if self._map is None else self._map)
        self.views: dict[str, memoryview] = {}
        start = 0
        for name, size in entries:
            self.views[name] = whole[start : start + size]
            start += size
        whole.release()

    def copies(self) -> dict[str, bytes]:
        return {name: bytes(view) for name, view in self.views.items()}

    def close(self) -> None:
        """Unmap, or, where somebody still looks at the memory, leave that to the end of the last look."""
        views, self.views = self.views, {}
        for view in views.values():
            try:
                view.release()
            except BufferError:
                continue
        if self._map is not None:
            mapping, self._map = self._map, None
            try:
                mapping.close()
            except BufferError:
                return

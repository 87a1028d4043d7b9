"""Which frame was seen when: pairs of a frame's number and `time.monotonic_ns`, kept in a file.

Several processes of one machine write them about the same clip, so what one saw can be set against
another. Needs the standard library alone, so that any process under test can load it.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

PAIR = struct.Struct("<qq")


class Notes:
    """Appends pairs to a file; what a killed process noted stays."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def note(self, number: int, at: int = 0) -> None:
        """Frame ``number`` was seen ``at`` (now)."""
        os.write(self._file, PAIR.pack(number, at or time.monotonic_ns()))

    def close(self) -> None:
        os.close(self._file)


def read(path: Path) -> Iterator[tuple[int, int]]:
    """Every whole pair in the file, in the order of writing; nothing when there is no file."""
    data = path.read_bytes() if path.exists() else b""
    yield from PAIR.iter_unpack(data[: len(data) // PAIR.size * PAIR.size])


def first(path: Path) -> dict[int, int]:
    """When each number was seen first."""
    seen: dict[int, int] = {}
    for number, at in read(path):
        seen.setdefault(number, at)
    return seen

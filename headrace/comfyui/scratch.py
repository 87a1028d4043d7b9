"""The folder that nodes write into instead of the installation's own: a stream may write for days."""

from __future__ import annotations

import contextlib
import heapq
import os
from pathlib import Path

EVERY = 30.0
"""Seconds between two looks."""
MAX_BYTES = 1 << 30
MAX_FILES = 10_000


def sweep(folder: Path, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES) -> int:
    """Remove the oldest files below ``folder`` until at most ``max_bytes`` in ``max_files`` are left; how
    many went. Blocks on the disk. Links are neither followed nor removed."""
    found: list[tuple[int, int, str]] = []
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            with contextlib.suppress(FileNotFoundError):
                facts = os.lstat(path)
                if not os.path.islink(path):
                    found.append((facts.st_mtime_ns, facts.st_size, path))
    total, removed = sum(size for _, size, _ in found), 0
    heapq.heapify(found)
    while found and (total > max_bytes or len(found) > max_files):
        _, size, path = heapq.heappop(found)
        total -= size
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
            removed += 1
    return removed

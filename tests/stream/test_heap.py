"""A worker's memory is given back after sessions, once for several that end together."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest

from stream import heap


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def test_memory_that_sessions_freed_goes_back_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "DELAY", 0.01)
    trimmer = heap.HeapTrimmer()
    # Small pieces with some left between them, which glibc keeps.
    pieces = [bytes(20_000) for _ in range(4000)]
    kept = pieces[::100]
    full = resident()
    pieces.clear()
    for _ in range(3):
        trimmer.session_ended(None)
    async with asyncio.timeout(20):
        while resident() > full - 40_000_000:  # noqa: ASYNC110 (the figure has no event)
            await asyncio.sleep(0.01)
    assert kept
    trimmer.close()


async def test_nothing_is_left_to_do_after_the_close() -> None:
    trimmer = heap.HeapTrimmer()
    trimmer.session_ended(None)
    trimmer.close()
    assert trimmer._due is None


def test_what_there_is_at_the_start_is_not_looked_at_again() -> None:
    before = gc.get_freeze_count()
    try:
        heap.settle()
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()

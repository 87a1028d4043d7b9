"""No test here hangs: one that takes a minute is cancelled, and so says where it was."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

LONGEST = 60.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        test = getattr(item, "obj", None)
        if Path(__file__).parent in item.path.parents and inspect.iscoroutinefunction(test):
            item.obj = bounded(test)


def bounded(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def run(*args: object, **kwargs: object) -> None:
        async with asyncio.timeout(LONGEST):
            await test(*args, **kwargs)

    return run

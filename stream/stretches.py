"""What a coroutine does between two waits, with something around each such stretch.

Standard library only: foreign interpreters load this module.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

T = TypeVar("T")


async def in_stretches(
    work: Coroutine[Any, Any, T], around: Callable[[], AbstractContextManager[object]]
) -> T:
    """What ``work`` gives. Each stretch of it is run within ``around()``, whose end sees a `StopIteration`
    where the work is done."""
    return await _driven(work, around)


@types.coroutine
def _driven(
    work: Coroutine[Any, Any, T], around: Callable[[], AbstractContextManager[object]]
) -> Generator[Any, Any, T]:
    answer: Any = None
    failure: BaseException | None = None
    while True:
        try:
            with around():
                waited = work.send(answer) if failure is None else work.throw(failure)
        except StopIteration as stop:
            value: T = stop.value
            return value
        answer = failure = None
        try:
            answer = yield waited
        except GeneratorExit:
            work.close()
            raise
        except BaseException as error:  # noqa: BLE001 (whatever it is, it is handed to the work)
            failure = error

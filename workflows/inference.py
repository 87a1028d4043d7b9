"""Async work in torch's inference mode.

The mode is the thread's, not the task's: held across an ``await`` it would be that of whatever runs
meanwhile, and two that end in another order than they began would leave it on for good.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


async def in_inference_mode(work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` gives; the mode is on while it runs, and as it was while it waits.

    Where nobody has imported torch there is no mode.
    """
    return await _driven(work)


@types.coroutine
def _driven(work: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    torch = sys.modules.get("torch")
    mode: Any = contextlib.nullcontext if torch is None else torch.inference_mode
    answer: Any = None
    failure: BaseException | None = None
    while True:
        with mode():
            try:
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

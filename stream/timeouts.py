"""Bounds on awaiting, also for Python 3.10, which interpreters of existing installations may be.

Standard library only: foreign interpreters load this module.
"""

from __future__ import annotations

import asyncio
import sys
from types import TracebackType

TIMED_OUT = (TimeoutError, asyncio.TimeoutError)
"""What a wait that took too long raises: one class from Python 3.11 on, two before."""

if sys.version_info >= (3, 11):  # noqa: UP036 (the worker needs 3.11, what it lends this to does not)
    timeout = asyncio.timeout
else:

    class timeout:  # noqa: N801 (it takes the place of asyncio's)
        """`asyncio.timeout` as far as one bound on the present task goes."""

        def __init__(self, delay: float) -> None:
            self._delay = delay
            self._expired = False
            self._handle: asyncio.TimerHandle | None = None

        def expired(self) -> bool:
            return self._expired

        async def __aenter__(self) -> timeout:
            task = asyncio.current_task()
            if task is None:
                raise RuntimeError("a timeout needs a task")
            self._handle = asyncio.get_running_loop().call_later(self._delay, self._expire, task)
            return self

        async def __aexit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> None:
            if self._handle is not None:
                self._handle.cancel()
            if self._expired and kind is asyncio.CancelledError:
                raise TimeoutError from error

        def _expire(self, task: asyncio.Task[object]) -> None:
            self._expired = True
            task.cancel()


def is_cancelled() -> bool:
    """Whether the present task itself is being cancelled, and not just something that it awaited.

    Python 3.10 cannot tell; there it is the task.
    """
    task = asyncio.current_task()
    if task is None:
        return False
    cancelling = getattr(task, "cancelling", None)
    return cancelling is None or cancelling() > 0

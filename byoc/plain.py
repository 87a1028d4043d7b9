"""Threads for plain functions, for which a program does not wait at its end."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

IDLE = 10.0
"""Seconds after which a thread without work ends."""

Work = Callable[[], Callable[[], None]]
"""Does what is to be done; what it returns tells of the result."""


class DaemonThreads:
    """As many as there are calls at a time; one that is free is taken again, with whatever libraries keep for
    each thread."""

    def __init__(self) -> None:
        self._free: list[SimpleQueue[Work]] = []
        self._lock = threading.Lock()

    def begin(self, work: Work) -> None:
        with self._lock:
            queue = self._free.pop() if self._free else None
        if queue is None:
            queue = SimpleQueue()
            threading.Thread(target=self._serve, args=(queue,), name="plain handler", daemon=True).start()
        queue.put(work)

    def _serve(self, queue: SimpleQueue[Work]) -> None:
        while True:
            try:
                tell = queue.get(timeout=IDLE)()
            except Empty:
                with self._lock:
                    if queue in self._free:
                        self._free.remove(queue)
                        return
                # It was taken this moment.
                continue
            with self._lock:
                self._free.append(queue)
            tell()
            del tell


_threads = DaemonThreads()


async def in_daemon_thread(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """What a plain function returns or raises, called in another thread with the caller's context.

    As `asyncio.to_thread`, whose threads a program waits for at its end, however long their calls take.
    """
    answer: Future[Any] = Future()
    context = contextvars.copy_context()

    def work() -> Callable[[], None]:
        if not answer.set_running_or_notify_cancel():
            return _nothing
        try:
            result = context.run(function, *arguments, **keywords)
        except BaseException as error:  # noqa: BLE001 (the edge of a thread: everything is handed over)
            failure = error
            return lambda: answer.set_exception(failure)
        return lambda: answer.set_result(result)

    _threads.begin(work)
    return await asyncio.wrap_future(answer)


def _nothing() -> None:
    """Nobody wants to know."""

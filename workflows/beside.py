"""Work that takes long, beside the frames: in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from stream.errors import ProcessorError

T = TypeVar("T")


async def run_beside(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Await ``work()`` in a thread that uses torch as the present one does; raises what it raises.

    A thread cannot be stopped: when this is cancelled, what it does in the end is thrown away. As a daemon it
    holds up no process that wants to end.
    """
    import torch

    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    threads = torch.get_num_threads()
    cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    device = torch.cuda.current_device() if cuda else None

    def deliver(results: list[T], error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(results[0])

    def run() -> None:
        results: list[T] = []
        failure: BaseException | None = None
        try:
            # These hold for the thread that sets them.
            torch.set_num_threads(threads)
            if device is not None:
                torch.cuda.set_device(device)
            with torch.inference_mode():
                results.append(asyncio.run(work()))
        except BaseException as error:  # noqa: BLE001 (the edge of a thread: everything is handed over)
            # A future takes every exception but this one.
            failure = ProcessorError("StopIteration") if isinstance(error, StopIteration) else error
        try:
            loop.call_soon_threadsafe(deliver, results, failure)
        except RuntimeError:
            return  # the loop has ended, and with it whoever wanted to know

    threading.Thread(target=run, name="prepare", daemon=True).start()
    return await future

"""An event loop in a thread of its own, for code that may block."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable
from typing import Any

from byoc.state import LoopEvent
from stream.errors import ProcessorError

log = logging.getLogger(__name__)

JOIN = 2.0
"""Seconds in which the thread must have ended once nothing runs in it."""


class LoopThread:
    """Runs the coroutines of one processor. `call` may be used from any event loop.

    The thread is a daemon: a call that never returns does not keep the program from ending.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._open = 0
        self._idle = LoopEvent()
        self._idle.set()

    @property
    def running(self) -> bool:
        return self._loop is not None

    @property
    def open_calls(self) -> int:
        """Calls that were begun and have not come to their end, whoever gave them up."""
        return self._open

    def start(self) -> None:
        """Begin; nothing happens when it runs already."""
        if self._loop is not None:
            return
        loop = self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(loop,), name=self.name, daemon=True)
        self._thread.start()

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            asyncio.set_event_loop(None)
            loop.close()

    async def call(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """What ``function``, a coroutine function as a rule, returns or raises. Cancelling cancels it there.

        Raises `ProcessorError` when the thread does not run, and when the call was cancelled from within.
        """
        loop = self._loop
        if loop is None:
            raise ProcessorError("the processor's thread does not run")
        call = _Call(loop, function, arguments, keywords, self._closed)
        self._open += 1
        self._idle.clear()
        loop.call_soon_threadsafe(call.begin)
        try:
            return await call.answer
        except asyncio.CancelledError:
            try:
                loop.call_soon_threadsafe(call.cancel)
            except RuntimeError:
                # The thread has ended meanwhile, and the call with it.
                pass
            raise

    def post(self, function: Callable[[], object]) -> None:
        """Have ``function`` called there, whenever the loop turns next; nothing happens without a thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(function)

    async def turns(self, timeout: float) -> bool:
        """Whether the loop turns within ``timeout`` seconds, whatever calls are open."""
        try:
            async with asyncio.timeout(timeout):
                await self.call(_nothing)
        except TimeoutError:
            return False
        return True

    def _closed(self) -> None:
        self._open -= 1
        if not self._open:
            self._idle.set()

    async def responds(self, timeout: float) -> bool:
        """Whether the loop turns, and no call is open, within ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self.call(_nothing)
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def close(self, timeout: float = JOIN) -> bool:
        """End what still runs and the thread; False when something there holds it for over ``timeout`` s."""
        loop, thread = self._loop, self._thread
        self._loop = self._thread = None
        if loop is None or thread is None:
            return True
        loop.call_soon_threadsafe(lambda: loop.create_task(_end(loop, timeout)))
        await asyncio.to_thread(thread.join, 2 * timeout)
        if thread.is_alive():
            log.error("%s does not return; its thread is left behind", self.name)
        return not thread.is_alive()


class _Call:
    """One call: begun in the processor's loop, awaited in the caller's."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        closed: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._caller = asyncio.get_running_loop()
        self.answer: asyncio.Future[Any] = self._caller.create_future()
        self._function = function
        self._arguments = arguments
        self._keywords = keywords
        self._closed = closed
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False

    def begin(self) -> None:
        """In the processor's loop."""
        if self._cancelled:
            self._deliver(None, asyncio.CancelledError())
            return
        self._task = self._loop.create_task(self._work())
        self._task.add_done_callback(self._done)

    async def _work(self) -> Any:
        result = self._function(*self._arguments, **self._keywords)
        return await result if inspect.isawaitable(result) else result

    def cancel(self) -> None:
        """In the processor's loop."""
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()

    def _done(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self._deliver(None, asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self._deliver(None, error)
        else:
            self._deliver(task.result(), None)

    def _deliver(self, result: Any, error: BaseException | None) -> None:
        try:
            self._caller.call_soon_threadsafe(self._delivered, result, error)
        except RuntimeError:
            # The caller's loop has ended.
            self._closed()

    def _delivered(self, result: Any, error: BaseException | None) -> None:
        """In the caller's loop."""
        self._closed()
        if self.answer.done():
            return
        if isinstance(error, (asyncio.CancelledError, StopIteration)):
            # The one would look as if the caller had been cancelled, and a future cannot carry the other.
            self.answer.set_exception(ProcessorError(f"{type(error).__name__} was raised"))
        elif error is not None:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(result)


async def _nothing() -> None:
    """Comes back when the loop turns."""


async def _end(loop: asyncio.AbstractEventLoop, timeout: float) -> None:
    """Cancel whatever else runs in ``loop``, then stop it."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        _, late = await asyncio.wait(others, timeout=timeout)
        for task in late:
            log.warning("%r does not end when it is cancelled", task.get_coro())
    loop.stop()

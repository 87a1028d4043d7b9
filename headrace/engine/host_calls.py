"""Calls of the processors that share an engine's one loop.

There is no turn to take. One thread runs one stretch of Python at a time: what a call does between two awaits
is its own, and while it awaits, be it a download, a model that loads in a thread or a frame of another
stream, calls of other sessions go on. Those of one session follow each other: nothing of an object is called
a second time before the first has come back, but for `FrameProcessor.prepare_params`, which runs beside its
frames.

Whatever several objects share and must not change while one of them awaits has a lock of its own, by name: a
ComfyUI's global state `headrace.comfyui.host.turn.Turn`, the calls of one network `SharedCalls`, those of
`FrameProcessor.process_video_batch` the `Batcher`. Three things of the thread are seen to here, since no
processor can: torch's modes, which a call may hold across an await, are laid aside meanwhile; the time that
others keep the loop does not count against the limit of a call; and where many calls keep it before the first
has its answer, the worker is told that they are worked on.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

from headrace.engine.home import NotNow
from headrace.engine.host_modes import Modes
from stream.errors import EngineError, ProcessorError
from stream.processor import called, name_of
from stream.stretches import in_stretches
from stream.timeouts import is_cancelled

T = TypeVar("T")

TELL_EVERY = 0.5
"""Seconds of work after which it is told."""


class NotReturned(ProcessorError):
    """A call that was given up after its limit."""


class HostCalls:
    """Belongs to a loop. ``at_work`` is called between two stretches, after every `TELL_EVERY` of them."""

    def __init__(self, at_work: Callable[[], None] = lambda: None) -> None:
        self.modes = Modes()
        """torch's, as they are while no call runs."""
        self.seconds = 0.0
        """For which calls have kept the loop, all together."""
        self._at_work = at_work
        self._told = 0.0

    def worked(self, seconds: float) -> None:
        """A call has kept the loop for so long."""
        self.seconds += seconds
        if self.seconds - self._told >= TELL_EVERY:
            self._told = self.seconds
            self._at_work()

    async def ask(self, method: Callable[..., Awaitable[T]], limit: float, *arguments: Any) -> T:
        """Await a method of a processor, at most ``limit`` seconds, without those in which others ran.

        Raises `NotReturned` after them; the processor's own `EngineError` and `CancelledError` as
        `ProcessorError`.
        """
        call = _Call(self, limit)
        try:
            with processors_fault():
                # A lambda or a default would hold a frame beyond its call.
                return await in_stretches(called(method, *arguments), call.stretch)
        except asyncio.CancelledError as error:
            if call.given_up():
                raise NotReturned(f"{name_of(method)} did not return within {limit:g} s") from None
            if is_cancelled():
                raise
            raise ProcessorError(f"{name_of(method)} was cancelled from within") from error
        finally:
            call.close()


class _Call:
    """One call: how long it may still take, and the modes that it has left set while it waits."""

    def __init__(self, calls: HostCalls, limit: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._calls = calls
        self._limit = limit
        self._task = task
        self._wishes = _cancelling(task)
        self._expired = self._taken_back = False
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._all_before = calls.seconds
        self._own = 0.0
        self._since = 0.0
        self._aside: contextlib.ExitStack | None = None
        self._timer: asyncio.TimerHandle | None = None

    def stretch(self) -> _Call:
        return self

    def __enter__(self) -> None:
        if self._aside is not None:
            self._aside.close()
        self._since = self._loop.time()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        took = self._loop.time() - self._since
        self._own += took
        self._calls.worked(took)
        if kind is None:
            self._aside = self._calls.modes.lay_aside()
            if self._timer is None:
                self._look()

    def _look(self) -> None:
        """Give it up, or look again when it may be time."""
        now = self._loop.time()
        others = self._calls.seconds - self._all_before - self._own
        left = self._began + self._limit + others - now
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._expired = True
            self._task.cancel()

    def given_up(self) -> bool:
        """Whether the task was cancelled because of the limit, and by nobody else."""
        self._take_back()
        return self._expired and _cancelling(self._task) <= self._wishes

    def _take_back(self) -> None:
        if self._expired and not self._taken_back and sys.version_info >= (3, 11):
            self._task.uncancel()
            self._taken_back = True

    def close(self) -> None:
        self._take_back()
        if self._timer is not None:
            self._timer.cancel()


def _cancelling(task: asyncio.Task[Any]) -> int:
    """How many wishes to cancel it there are; Python 3.10 does not know."""
    if sys.version_info >= (3, 11):  # noqa: UP036 (as in `stream.timeouts`)
        return task.cancelling()
    else:  # noqa: RET505 (otherwise a type checker takes it for unreachable)
        return 0


@contextlib.contextmanager
def processors_fault() -> Iterator[None]:
    """To the worker an `EngineError` means that there is no engine; one of a processor's does not."""
    try:
        yield
    except NotNow:
        raise
    except EngineError as error:
        raise ProcessorError(error.message) from error

"""Pictures of several streams in one call.

The engine's host loads this module in foreign interpreters.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stream.errors import ProcessorError
from stream.frames import VideoFrame
from stream.processor import FrameProcessor, VideoResult, called
from stream.timeouts import TIMED_OUT, timeout

Ask = Callable[..., Awaitable[Any]]
"""Awaits a method, which comes first, with the arguments that follow it."""

_OWN = frozenset({"state", "frame_time", "_emit_sink", "_model_load_lock"})
"""Attributes that each processor has for itself, whenever they were set."""


def shared_of(processor: FrameProcessor, before: Mapping[str, Any]) -> dict[str, Any]:
    """What loading has set on a processor whose attributes were ``before``: other objects of its class need
    not load it again."""
    missing = object()
    return {
        name: value
        for name, value in vars(processor).items()
        if before.get(name, missing) is not value and name not in _OWN
    }


@dataclass(slots=True, eq=False)
class Waiting:
    """A picture that waits for its call since ``since`` (s)."""

    stream: FrameProcessor
    frame: VideoFrame
    since: float
    answer: asyncio.Future[VideoResult]


class BatchQueue:
    """Who goes next, and when. Pure.

    First come, first served, and each stream has one picture here at most, so none is passed over. A batch is
    due when it is full, when every stream that takes part has a picture in it, or when the oldest has waited
    for ``wait`` seconds.
    """

    def __init__(self, size: int, wait: float) -> None:
        if size < 1 or wait < 0:
            raise ValueError(f"a batch of {size}, waited for {wait} s")
        self._size = size
        self._wait = wait
        self._waiting: deque[Waiting] = deque()
        self.streams = 0
        """How many take part."""

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, item: Waiting) -> None:
        self._waiting.append(item)

    def drop(self, item: Waiting) -> None:
        """It is not wanted any more; nothing happens when it has gone already."""
        if item in self._waiting:
            self._waiting.remove(item)

    def due_in(self, now: float) -> float | None:
        """Seconds until the next batch is due; None while nobody waits."""
        if not self._waiting:
            return None
        if len(self._waiting) >= min(self._size, max(1, self.streams)):
            return 0.0
        return max(0.0, self._waiting[0].since + self._wait - now)

    def take(self) -> list[Waiting]:
        """The next batch, oldest first."""
        return [self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))]


class Batcher:
    """Gathers pictures for `FrameProcessor.process_video_batch`, one call at a time. Belongs to one loop.

    ``ask`` makes the calls. One whose streams have all given up is cancelled.
    """

    def __init__(self, size: int, wait: float, ask: Ask = called) -> None:
        self._queue = BatchQueue(size, wait)
        self._ask = ask
        self._changed = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._called: list[Waiting] = []

    def of(self, stream: FrameProcessor) -> Callable[[VideoFrame], Awaitable[VideoResult]]:
        """What takes the pictures of one stream."""
        return lambda frame: self._process(stream, frame)

    def joined(self) -> None:
        """One stream more takes part."""
        self._queue.streams += 1

    def left(self) -> None:
        """One stream less takes part."""
        self._queue.streams -= 1
        self._changed.set()

    async def _process(self, stream: FrameProcessor, frame: VideoFrame) -> VideoResult:
        loop = asyncio.get_running_loop()
        item = Waiting(stream, frame, loop.time(), loop.create_future())
        self._queue.put(item)
        self._changed.set()
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work(), name="batches")
        try:
            return await item.answer
        finally:
            self._queue.drop(item)
            self._give_up()

    def _give_up(self) -> None:
        """Nobody waits for a call any more that has not come back."""
        if self._called and all(item.answer.done() for item in self._called):
            self._called = []
            assert self._worker is not None
            self._worker.cancel()
            # Those who wait for the next call need not wait for this one to end.
            self._worker = None
            if self._queue:
                loop = asyncio.get_running_loop()
                self._worker = loop.create_task(self._work(), name="batches")

    async def _work(self) -> None:
        """Until nobody waits any more."""
        loop = asyncio.get_running_loop()
        while (due := self._queue.due_in(loop.time())) is not None:
            if self._worker is not asyncio.current_task():
                # Its call was given up but came back; another has taken its place.
                return
            if due:
                self._changed.clear()
                try:
                    async with timeout(due):
                        await self._changed.wait()
                except TIMED_OUT:
                    pass
                continue
            await self._call(self._queue.take())

    async def _call(self, batch: list[Waiting]) -> None:
        self._called = batch
        streams = [item.stream for item in batch]
        try:
            results = await self._ask(streams[0].process_video_batch, streams, [item.frame for item in batch])
            answers = _answers(results, len(batch))
        except asyncio.CancelledError:
            if self._called is not batch:
                raise
            # Something within was cancelled, not this task: nobody has given the call up.
            answers = [ProcessorError("process_video_batch was cancelled from within")] * len(batch)
        except Exception as error:  # noqa: BLE001 (the edge to a processor that is not ours; all are told)
            answers = [error] * len(batch)
        except SystemExit as error:
            # A future cannot carry it, and a task that ends with it ends the loop.
            answers = [ProcessorError(f"process_video_batch asked to exit ({error.code})")] * len(batch)
        finally:
            if self._called is batch:
                self._called = []
        for item, answer in zip(batch, answers, strict=True):
            if item.answer.done():
                continue
            if isinstance(answer, StopIteration):
                # A future cannot carry it.
                item.answer.set_exception(ProcessorError("process_video_batch gave a StopIteration"))
            elif isinstance(answer, Exception):
                item.answer.set_exception(answer)
            else:
                item.answer.set_result(answer)


def _answers(results: object, count: int) -> Sequence[VideoResult | Exception]:
    if not isinstance(results, Sequence) or len(results) != count:
        found = f"{len(results)} results" if isinstance(results, Sequence) else type(results).__name__
        raise ProcessorError(f"process_video_batch returned {found} for {count} pictures")
    return results

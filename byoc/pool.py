"""The processors of a server: one for all streams in turn, or one for each stream at a time."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from fractions import Fraction
from importlib.util import find_spec
from typing import Any

import numpy as np

from byoc.hosted import device_for
from byoc.state import StreamState
from byoc.threads import LoopThread
from stream.batching import Batcher, shared_of
from stream.codecs import hardware
from stream.errors import AtCapacity, EngineError, HeadraceError, InvalidInput, ProcessorError
from stream.frames import Picture, VideoFrame
from stream.processor import FrameProcessor, overrides

log = logging.getLogger(__name__)

Supply = FrameProcessor | Callable[[], FrameProcessor]
"""An instance, a class, or a function that makes one."""

WAIT_READY = 20.0
"""Seconds for which a start waits for the model."""
WAIT_FREE = 2.0
"""Seconds for which a start waits for what an ended stream left at work."""
TRIAL = 10.0
"""Seconds for the trial of the hardware codecs."""
MAX_CAPACITY = 256


class ProcessorPool:
    """Loads the model once, and hands out a processor with its thread for each stream.

    Of a class or factory, one object loads: what ``load_model`` sets on it the others get too, and what
    ``__init__`` sets is each stream's own. ``device``: as `StreamServer` has it; the model does not count as
    loaded where that is not there.
    """

    def __init__(
        self, supply: Supply, state: StreamState, capacity: int | None = None, device: str | None = None
    ) -> None:
        self._single = supply if isinstance(supply, FrameProcessor) else None
        if self._single is None and not callable(supply):
            raise InvalidInput(
                f"frame_processor must be a FrameProcessor, a class or a function, not {supply!r}"[:200],
                field="frame_processor",
            )
        self._factory: Callable[[], Any] = supply if callable(supply) else lambda: supply
        self.capacity = _capacity(capacity, single=self._single is not None)
        self.stuck: str | None = None
        """Why no stream can begin at present though the model is loaded, if so."""
        self._state = state
        self._device = device
        self._first = _complete(self._single) if self._single is not None else self._make()
        _attach(self._first, state)
        self._before = dict(vars(self._first))
        self._threads: dict[FrameProcessor, LoopThread] = {
            self._first: LoopThread(f"processor {type(self._first).__name__}")
        }
        self._taken: set[FrameProcessor] = set()
        first = self._first
        batches = self._single is None and overrides(first, "process_video_batch")
        self.batcher = Batcher(first.batch_size, first.batch_wait) if batches else None
        """Who calls the processors for pictures, where they are called for several streams at once."""
        self._loading: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None

    def _make(self) -> FrameProcessor:
        made = self._factory()
        if not isinstance(made, FrameProcessor):
            raise ProcessorError(f"a {type(made).__name__} is not a FrameProcessor")
        return _complete(made)

    @property
    def first(self) -> FrameProcessor:
        """The processor that loads the model."""
        return self._first

    @property
    def streams(self) -> bool:
        """Whether it works on streams at all; one that only answers requests does not."""
        info = self._first.info()
        return info.video or info.audio or info.generates is not None

    @property
    def ready(self) -> bool:
        """Whether the model is loaded and a stream can begin, but for capacity."""
        return self._state.pipeline_ready and not self._state.is_error() and self.stuck is None

    # -- life --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the thread and begin to load the model in it."""
        self._threads[self._first].start()
        if self._loading is None:
            self._loading = asyncio.create_task(self._load(), name="load the model")

    async def _load(self) -> None:
        first = self._first
        # What the first stream would wait for otherwise.
        trial = asyncio.create_task(asyncio.to_thread(hardware.report), name="try the hardware codecs")
        ensure = getattr(first, "ensure_model_loaded", None) or first.load_model
        try:
            await self._threads[first].call(_warm_up, first)
            await asyncio.wait({trial}, timeout=TRIAL)
            await self._threads[first].call(ensure)
            await self._threads[first].call(device_for, first, self._device)
        except HeadraceError as error:
            self._state.set_error(f"Model loading failed: {error.message}")
        except Exception as error:  # the edge to a processor that is not ours
            log.info("loading failed", exc_info=True)
            self._state.set_error(f"Model loading failed: {type(error).__name__}: {error}")
        else:
            log.info("%s is ready", type(first).__name__)
            self._state.set_startup_complete()
        finally:
            trial.cancel()

    async def close(self) -> None:
        """End all threads; bounded."""
        for task in (self._loading, self._watch):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        threads = list(self._threads.values())
        await asyncio.gather(*(thread.close() for thread in threads))

    # -- streams -----------------------------------------------------------------------------------------

    async def wait_loaded(self) -> None:
        """Return when the model is there, for which it waits a while. Raises `EngineError`."""
        if not self._state.pipeline_ready and self._loading is not None:
            await asyncio.wait({self._loading}, timeout=WAIT_READY)
        if not self._state.pipeline_ready:
            reason = self._state.error_message
            raise EngineError(
                "Pipeline is still initializing. Please wait for IDLE status."
                if reason is None
                else f"Pipeline is still initializing. {reason}"
            )

    async def wait_free(self) -> None:
        """Return when a stream can begin. Raises `EngineError` when the model is not there or the thread that
        is to serve it has not come back from a call of a stream before."""
        await self.wait_loaded()
        if self._single is not None and self._single not in self._taken:
            await self._check_back()
        elif self.batcher is not None and not await self._threads[self._first].turns(WAIT_FREE):
            raise EngineError(f"{type(self._first).__name__} has not come back from a call for other streams")

    async def _check_back(self) -> None:
        if self.stuck is None and not await self._threads[self._first].responds(WAIT_FREE):
            self._now_stuck()
        if self.stuck is not None:
            raise EngineError(self.stuck)

    def take(self) -> tuple[FrameProcessor, LoopThread]:
        """A processor for one stream and the thread that it runs in. Raises `AtCapacity`, and what making one
        raises as `ProcessorError`."""
        if len(self._taken) >= self.capacity:
            raise AtCapacity("Pipeline is still in use")
        if self._first not in self._taken and not self._first_is_stuck():
            return self._hand_out(self._first)
        try:
            processor = self._make()
        except HeadraceError:
            raise
        except Exception as error:  # the edge to a factory that is not ours
            raise ProcessorError(f"no processor could be made: {type(error).__name__}: {error}") from error
        _attach(processor, self._state)
        vars(processor).update(shared_of(self._first, self._before))
        # One call for several streams runs in one thread.
        thread = (
            self._threads[self._first]
            if self.batcher
            else LoopThread(f"processor {type(processor).__name__}")
        )
        thread.start()
        self._threads[processor] = thread
        return self._hand_out(processor)

    def _first_is_stuck(self) -> bool:
        """Whether its thread is still at work for a stream that has ended, so that another must do."""
        if self._single is not None or self.batcher is not None:
            return False
        return self._threads[self._first].open_calls > 0

    def _hand_out(self, processor: FrameProcessor) -> tuple[FrameProcessor, LoopThread]:
        self._taken.add(processor)
        if self.batcher is not None:
            self._threads[processor].post(self.batcher.joined)
        return processor, self._threads[processor]

    async def give_back(self, processor: FrameProcessor) -> None:
        """Its stream has ended."""
        self._taken.discard(processor)
        thread = self._threads[processor]
        if self.batcher is not None:
            thread.post(self.batcher.left)
        if processor is not self._first:
            del self._threads[processor]
            if thread is not self._threads[self._first]:
                await thread.close()
        elif self._single is not None and not await self._threads[processor].responds(WAIT_FREE):
            self._now_stuck()

    def _now_stuck(self) -> None:
        name = type(self._first).__name__
        self.stuck = f"{name} has not come back from a call of the stream before"
        log.error("%s; no stream can begin until it does", self.stuck)
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._until_back(), name="wait for the processor")

    async def _until_back(self) -> None:
        while not await self._threads[self._first].responds(60.0):
            pass
        log.info("%s has come back", type(self._first).__name__)
        self.stuck = None


async def _warm_up(processor: FrameProcessor) -> None:
    """Import torch where frames may be asked for tensors, so that the first frame does not wait for that.

    One thread of torch's, unless the processor sets more: on a busy machine they wait for each other.
    """
    if processor.info().video and find_spec("torch") is not None:
        import torch

        torch.set_num_threads(1)
        VideoFrame.from_picture(Picture.from_rgb(np.zeros((16, 16, 3), np.uint8)), 0, Fraction(1)).tensor  # noqa: B018


def _complete(processor: FrameProcessor) -> FrameProcessor:
    """The processor, whose class must not have forgotten the ``__init__`` of its base: `ProcessorError`."""
    if not hasattr(processor, "_emit_sink"):
        raise ProcessorError(f"{type(processor).__name__}.__init__ must call super().__init__()")
    return processor


def _attach(processor: FrameProcessor, state: StreamState) -> None:
    attach = getattr(processor, "attach_state", None)
    if attach is not None:
        attach(state)


def _capacity(wanted: int | None, *, single: bool) -> int:
    if single:
        if wanted not in (None, 1):
            raise InvalidInput(
                f"an instance serves one stream, not {wanted}: give the class or a function", field="capacity"
            )
        return 1
    if wanted is None:
        text = os.environ.get("CAPABILITY_CAPACITY", "1")
        try:
            wanted = int(text)
        except ValueError:
            raise InvalidInput(
                f"CAPABILITY_CAPACITY must be a whole number, not {text!r}", field="CAPABILITY_CAPACITY"
            ) from None
    if not 1 <= wanted <= MAX_CAPACITY:
        raise InvalidInput(f"capacity must be from 1 to {MAX_CAPACITY}, not {wanted}", field="capacity")
    return wanted

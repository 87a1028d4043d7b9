"""One session inside the engine: its processor, its shared memory and the order of its work.

A session is one task. It loads its model in a thread, so that the frames of other sessions go on, and then
takes its jobs (start, frames, parameters, close) one after the other, as `headrace.engine.host_calls` says.
A fault of the processor is answered and stays within the session.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.engine import slots
from headrace.engine.host_calls import HostCalls, NotReturned, processors_fault
from headrace.engine.host_frames import SlotFrame
from headrace.engine.host_loading import Loaded, Loading, load_in_thread
from headrace.engine.host_shared import MEDIA, Job, SharedSlots
from headrace.engine.host_together import Companies, Company
from headrace.engine.host_voice import Voice
from headrace.engine.link import Link, Message
from stream.batching import Batcher
from stream.errors import EngineError, HeadraceError, InvalidInput, ProcessorError
from stream.frames import AudioFrame, Picture, VideoFrame, checked_image
from stream.processor import FrameProcessor
from stream.results import listed
from stream.tensors import write_rgb

if TYPE_CHECKING:
    import torch

MAX_JOBS = 16
"""Jobs of one session that may wait."""
MAX_LATE = 3
"""Calls of one kind in a row that may not return in time; then the session is closed: nothing comes of it."""


@dataclass(frozen=True)
class Surroundings:
    """What all sessions of an engine share."""

    link: Link
    device: torch.device
    threads: int
    call_limit: float
    open_limit: float
    calls: HostCalls
    companies: Companies
    fatal: Callable[[str], None]
    """Ends the engine, because the device is beyond use."""

    def within_limit(self, method: Callable[..., Awaitable[Any]], *arguments: Any) -> Awaitable[Any]:
        """Await a method of a processor for as long as one call may take."""
        return self.calls.ask(method, self.call_limit, *arguments)


class HostSession:
    """See the module. `deliver` takes the worker's messages, `run` is the session's whole life."""

    def __init__(self, name: str, around: Surroundings) -> None:
        self.name = name
        self._around = around
        self._loop = asyncio.get_running_loop()
        self._voice = Voice(name, around.link, around.fatal)
        self._jobs: asyncio.Queue[Job] = asyncio.Queue(MAX_JOBS)
        self._closing: asyncio.Future[int] = self._loop.create_future()
        self._processor: FrameProcessor | None = None
        self._company: Company | None = None
        self._batcher: Batcher | None = None
        self._started = False
        self._told: dict[str, Any] = {}
        self._preparing: tuple[Job, asyncio.Task[None]] | None = None
        self._frames = 0
        self._late: dict[str, int] = {}
        self._refusal: HeadraceError | None = None
        """Why nothing more is taken on."""
        self._over = False
        self._shared = SharedSlots()

    # -- what the worker says --------------------------------------------------------------------------

    def deliver(self, message: Message) -> None:
        """Take a message for this session; a wrong one is answered with an error."""
        body = message.body
        call = body.get("call")
        if type(call) is not int:
            raise InvalidInput(f"message {message.op!r} has no call number", field="call")
        if self._refusal is not None and message.op != "close":
            raise self._refusal
        if self._over and message.op == "close":
            self._voice.answer(call, {})
            return
        memory = None
        if message.op in MEDIA:
            memory = self._shared.given(message)
        if message.op == "close" and not self._closing.done():
            self._closing.set_result(call)
        try:
            self._jobs.put_nowait(Job(message.op, call, body, memory))
        except asyncio.QueueFull:
            if message.op != "close":
                raise EngineError(f"{MAX_JOBS} calls of this session are waiting already") from None

    def close(self) -> None:
        """Close without having been asked by a message."""
        if not self._closing.done():
            self._closing.set_result(0)
        if not self._jobs.full():
            self._jobs.put_nowait(Job("close", 0, {}))

    # -- its life --------------------------------------------------------------------------------------

    async def run(self, call: int, body: dict[str, Any]) -> None:
        """From the opening to the close; answers instead of raising."""
        try:
            if await self._open(call, body):
                while self._refusal is None and not (self._closing.done() and self._jobs.empty()):
                    job = await self._jobs.get()
                    if job.op == "close":
                        break
                    if job.op == "prepare":
                        await self._end_preparing()
                        self._preparing = job, asyncio.create_task(self._prepare(job))
                    else:
                        await self._do(job)
        finally:
            self._refuse(EngineError("the session was closed"))
            await self._end()
        self._over = True
        if self._closing.done() and self._closing.result():
            self._voice.answer(self._closing.result(), {})

    async def _open(self, call: int, body: dict[str, Any]) -> bool:
        try:
            loaded = await self._load(body)
            if loaded is None:
                self._voice.fail(call, EngineError("the session was closed while it loaded"))
                return False
            processor, self._company = loaded.processor, loaded.company
            self._told = _described(processor)
            self._processor = processor
            self._voice.answer(call, {"info": self._told})
        except (Exception, SystemExit) as error:  # noqa: BLE001 (the edge to code that is not ours)
            self._voice.fail(call, error)
            return False
        return True

    async def _load(self, body: dict[str, Any]) -> Loaded | None:
        """The processor with its model; None when the session was closed meanwhile."""
        spec, kwargs = body.get("spec"), body.get("load", {})
        if not isinstance(spec, dict) or not isinstance(kwargs, dict):
            raise InvalidInput("an opening needs a specification, an object", field="spec")
        around = self._around
        wanted = Loading(spec, kwargs, around.device, around.threads, around.companies)
        loading = load_in_thread(wanted, self._voice.emitted)
        limit = around.open_limit
        while not loading.done():
            left = self._voice.progress_at + limit - time.monotonic()
            if left <= 0:
                loading.cancel()
                raise ProcessorError(f"loading made no progress within {limit:g} s")
            either: set[asyncio.Future[Any]] = {loading, self._closing}
            await asyncio.wait(either, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if self._closing.done():
                loading.cancel()
                return None
        return loading.result()

    async def _do(self, job: Job) -> None:
        try:
            if job.op == "video":
                await self._video(job)
            elif job.op == "audio":
                await self._audio(job)
            elif job.op == "start":
                await self._start(job)
            elif job.op == "params":
                await self._params(job)
            else:
                raise InvalidInput(f"unknown message {job.op!r}", field="op")
            self._late[job.op] = 0
        except NotReturned as error:
            self._late[job.op] = self._late.get(job.op, 0) + 1
            if self._late[job.op] < MAX_LATE:
                self._voice.fail(job.call, error)
            else:
                self._give_up(job, error)
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 (the edge to a processor)
            self._late[job.op] = 0
            self._voice.fail(job.call, error)

    def _give_up(self, job: Job, error: ProcessorError) -> None:
        """Close for good."""
        reason = f"{error.message}, {MAX_LATE} times in a row; the session is closed"
        given_up = ProcessorError(reason)
        self._voice.log(reason)
        self._voice.fail(job.call, given_up)
        self._refuse(given_up)
        self._voice.closed(given_up)

    def _refuse(self, error: HeadraceError) -> None:
        """From now on; what waits too: a call without an answer makes the worker end the engine."""
        self._refusal = self._refusal or error
        while not self._jobs.empty():
            waiting = self._jobs.get_nowait()
            if waiting.op != "close":
                self._voice.fail(waiting.call, self._refusal)

    async def _end(self) -> None:
        """Stop the processor and free everything."""
        await self._end_preparing()
        processor, self._processor = self._processor, None
        if self._batcher is not None:
            self._batcher.left()
        self._company = self._batcher = None
        if processor is not None and self._started:
            try:
                await self._around.within_limit(processor.on_stream_stop)
            except (Exception, SystemExit) as error:  # noqa: BLE001 (the edge to a processor that is not ours)
                self._voice.log(f"on_stream_stop failed: {type(error).__name__}: {error}")
        if processor is not None:
            processor.bind(None)
        self._shared.close()
        self._voice.end()

    # -- jobs ------------------------------------------------------------------------------------------

    async def _start(self, job: Job) -> None:
        around, processor, params = self._around, self._loaded(), _params_of(job)
        await around.calls.ask(processor.on_stream_start, around.open_limit, params)
        self._started = self._voice.started = True
        if self._company is not None and self._batcher is None:
            # Of the surroundings, since the batcher outlives the session that brought it about.
            self._batcher = self._company.batcher(processor, around.within_limit)
            self._batcher.joined()
        self._voice.answer(job.call, self._news(processor))

    async def _params(self, job: Job) -> None:
        around, processor, params = self._around, self._loaded(), _params_of(job)
        await around.within_limit(processor.update_params, params)
        self._voice.answer(job.call, {"frame": self._frames, **self._news(processor)})

    def _news(self, processor: FrameProcessor) -> dict[str, Any]:
        """What the processor says of itself, where that has changed."""
        try:
            told = _described(processor)
        except Exception as error:  # noqa: BLE001 (the edge to a processor; the change itself has taken effect)
            self._voice.log(f"info failed: {type(error).__name__}: {error}")
            return {}
        if told == self._told:
            return {}
        self._told = told
        return {"info": told}

    async def _prepare(self, job: Job) -> None:
        """Beside the frames, and without keeping the guardian waiting."""
        try:
            around, processor, params = self._around, self._loaded(), _params_of(job)
            self._voice.deferred(job.call)
            await around.calls.ask(processor.prepare_params, around.open_limit, params)
            self._voice.answer(job.call, {})
        except (Exception, SystemExit) as error:  # noqa: BLE001 (the edge to a processor that is not ours)
            self._voice.fail(job.call, error)

    async def _end_preparing(self) -> None:
        preparing, self._preparing = self._preparing, None
        if preparing is None:
            return
        job, task = preparing
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        # Here and not in the task, which may be cancelled before it has begun.
        if task.cancelled():
            self._voice.fail(job.call, EngineError("the session was closed, or another change was begun"))

    async def _video(self, job: Job) -> None:
        processor = self._loaded()
        assert job.memory is not None
        pts, time_base = slots.get_time(job.body)
        picture = slots.get_picture(job.memory, job.body.get("picture"))
        frame = SlotFrame(picture, pts, time_base, _tensor_device(processor, self._around.device))
        del picture
        taken = time.monotonic_ns()
        self._frames += 1
        processor.frame_time = frame.time
        try:
            if self._batcher is None:
                result = await self._around.within_limit(processor.process_video_async, frame)
            else:
                with processors_fault():
                    result = await self._batcher.of(processor)(frame)
            laid = self._shared.lay_down(job, frame, listed(result, VideoFrame))
        finally:
            processor.frame_time = None
            result = None
            # Before the answer: with it, the worker may write into its memory again.
            frame.retire()
        laid.send(self._voice, job, taken, {"read": 1} if frame.read else {})

    async def _audio(self, job: Job) -> None:
        processor = self._loaded()
        assert job.memory is not None
        pts, time_base = slots.get_time(job.body)
        frame = slots.get_audio(job.memory, job.body.get("audio"), pts, time_base)
        taken = time.monotonic_ns()
        processor.frame_time = frame.time
        try:
            result = await self._around.within_limit(processor.process_audio_async, frame)
        finally:
            processor.frame_time = None
        laid = self._shared.lay_down(job, frame, listed(result, AudioFrame))
        laid.send(self._voice, job, taken, {})

    def _loaded(self) -> FrameProcessor:
        assert self._processor is not None
        return self._processor


def warm_up(device: torch.device) -> None:
    """Take a frame through both conversions, so that the first real one does not pay for their first use."""
    picture = Picture.from_rgb(np.zeros((64, 64, 3), np.uint8))
    frame = SlotFrame(picture, 0, Fraction(1), device)
    out = np.empty((64, 64, 3), np.uint8)
    write_rgb(checked_image(frame.tensor), out)


def collect_garbage(device: torch.device) -> None:
    """Give back what a session held in cycles and in the allocator's cache."""
    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()


def _described(processor: FrameProcessor) -> dict[str, Any]:
    info = processor.info()
    told = {"video": info.video, "audio": info.audio, "schema": info.schema}
    return told if info.generates is None else {**told, "generates": info.generates}


def _params_of(job: Job) -> dict[str, Any]:
    params = job.body.get("params")
    if not isinstance(params, dict):
        raise InvalidInput(f"params is a {type(params).__name__}, not an object", field="params")
    return params


def _tensor_device(processor: FrameProcessor, device: torch.device) -> torch.device:
    """Tensors are on the CPU unless the processor's ``tensor_device`` says ``engine`` or names the device."""
    import torch

    return device if processor.tensor_device in ("engine", device.type, str(device)) else torch.device("cpu")

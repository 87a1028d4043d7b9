"""A session as it is open in one engine: calls, shared memory, and the copies in and out.

It lives as long as that engine at most; the stand-in (`headrace.engine.client`) opens another in the next.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from headrace.engine import slots
from headrace.engine.guardian import Engine
from headrace.engine.link import MalformedMessage, Message
from stream.errors import EngineError, HeadraceError, InvalidInput
from stream.frames import AudioFrame, Plane, VideoFrame
from stream.processor import AudioResult, Params, ProcessorInfo, VideoResult
from stream.results import MAX_RESULTS
from stream.samples import checked_samples

log = logging.getLogger(__name__)

T = TypeVar("T")
Media = Literal["video", "audio"]

THREAD_FROM = 1024 * 1024
"""Bytes from which on a copy leaves the event loop."""

UNREAD = 8
"""Frames in a row whose pixels nobody looked at after which they cross as they are, not converted."""

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class _Returned:
    """One frame of an answer; without memory it is the input as it was."""

    header: dict[str, Any]
    memory: Plane | None


@dataclass(frozen=True, slots=True)
class _Answer:
    taken: int
    frames: list[_Returned]
    read: bool
    """Whether the processor looked at the pixels."""


class RemoteSession:
    """See the module. A call is a task that outlives its caller: while the engine works on a slot, nobody
    else may write there, so the task waits for the answer, or for the end of the engine, whoever gives up."""

    def __init__(self, engine: Engine, session: str, on_message: Callable[[Message], None]) -> None:
        # A name of its own for every opening: what comes late for another cannot be taken for ours.
        self.name = f"{session}#{next(_numbers)}"
        self.loaded = False
        self.started = False
        self.info = ProcessorInfo()
        self._engine = engine
        self._generation = engine.generation
        self._loop = asyncio.get_running_loop()
        self._pools: dict[Media, slots.SlotPool] = {
            "video": slots.SlotPool(slots.INPUT_SLOTS, "headrace-video-in"),
            "audio": slots.SlotPool(slots.INPUT_SLOTS, "headrace-audio-in"),
        }
        self._tables: dict[Media, slots.SlotTable] = {
            "video": slots.SlotTable(slots.OUTPUT_SLOTS),
            "audio": slots.SlotTable(slots.OUTPUT_SLOTS),
        }
        self._done: dict[Media, list[int]] = {"video": [], "audio": []}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._waiting: set[asyncio.Future[_Answer]] = set()
        self._executor: ThreadPoolExecutor | None = None
        self._unread = 0
        self._released = False
        self._asked_to_close = False
        self._asked_to_open = False
        engine.route(self.name, on_message)

    @property
    def usable(self) -> bool:
        """Whether the engine that this session is open in is still there."""
        engine = self._engine
        return not self._released and engine.state == "ready" and engine.generation == self._generation

    # -- life ------------------------------------------------------------------------------------------

    async def load(self, spec: dict[str, Any], kwargs: dict[str, Any]) -> None:
        self._asked_to_open = True
        answer = await self._ask({"op": "open", "spec": spec, "load": kwargs}, opening=True)
        self.info = _info(answer.get("info"))
        self.loaded = True

    async def start(self, params: Params) -> None:
        self._take_news(await self._ask({"op": "start", "params": params}, opening=True))
        self.started = True

    async def close(self, timeout: float) -> None:
        """Close the session and free everything, after at most ``timeout`` seconds."""
        try:
            if self.usable and self._asked_to_open:
                self._asked_to_close = True
                async with asyncio.timeout(timeout):
                    await self._ask({"op": "close"})
                    if self._tasks:
                        await asyncio.wait(self._tasks)
        except TimeoutError:
            log.warning("session %s did not close within %g s", self.name, timeout)
        except HeadraceError as error:
            log.debug("session %s: %s", self.name, error.message)
        finally:
            self.release()

    def release(self) -> None:
        """Free everything at once; the engine, if it is there, is told to close its side."""
        if self._released:
            return
        if self.usable and self._asked_to_open and not self._asked_to_close:
            try:
                self._engine.request({"op": "close", "session": self.name}, lambda _: None)
            except EngineError as error:
                log.debug("session %s: %s", self.name, error.message)
        self._released = True
        self._engine.route(self.name, None)
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(EngineError("the session was closed"))
        for pool in self._pools.values():
            pool.close()
        for table in self._tables.values():
            table.close()
        if self._executor is not None:
            self._executor.shutdown(wait=False)

    # -- calls -----------------------------------------------------------------------------------------

    def video(self, frame: VideoFrame) -> asyncio.Task[VideoResult]:
        return self._begin(self._video(frame))

    def audio(self, frame: AudioFrame) -> asyncio.Task[AudioResult]:
        return self._begin(self._audio(frame))

    def update_params(self, params: Params) -> asyncio.Task[int]:
        return self._begin(self._update_params(params))

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # Its caller may have given up; then nobody else asks for the error.
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("session %s: %s", self.name, error)

    def prepare_params(self, params: Params) -> asyncio.Task[dict[str, Any]]:
        return self._begin(self._ask({"op": "prepare", "params": params}))

    async def _update_params(self, params: Params) -> int:
        answer = await self._ask({"op": "params", "params": params})
        self._take_news(answer)
        frame = answer.get("frame")
        return frame if isinstance(frame, int) else 0

    def _take_news(self, answer: dict[str, Any]) -> None:
        """With other parameters the processor may have become another: a workflow can be replaced whole."""
        if "info" in answer:
            self.info = _info(answer["info"])

    async def _video(self, frame: VideoFrame) -> VideoResult:
        picture = frame.picture
        if max(picture.width, picture.height) > slots.MAX_SIDE:
            size_text = f"{picture.width}x{picture.height}"
            raise InvalidInput(f"a picture of {size_text}; an engine takes sides up to {slots.MAX_SIDE}")
        facts = self._engine.facts
        # A conversion that nobody looks at is spared: what is in force follows what was done with the last.
        rgb = facts is not None and facts.pixel_format == "rgb24" and self._unread < UNREAD
        convert = rgb and picture.format != "rgb24"
        size = slots.picture_bytes("rgb24" if convert else picture.format, picture.width, picture.height)
        header: dict[str, Any] = dict(slots.time_header(frame.timestamp, frame.time_base))
        slot = self._pools["video"].take(size)

        put = slots.put_as_rgb if convert else slots.put_picture
        try:
            header["picture"] = await self._copying(size, lambda: put(slot.array(), picture))
            answer = await self._exchange("video", header, slot)
        finally:
            slot.busy = False
        frame.timeline.taken = answer.taken
        self._unread = 0 if answer.read else self._unread + 1
        try:
            results = [await self._video_result(frame, returned) for returned in answer.frames]
        finally:
            self._finished("video", answer)
        frame.timeline.stamp("processed")
        for result in results:
            result.timeline.processed = frame.timeline.processed
        if not results:
            return None
        return results[0] if len(results) == 1 else results

    async def _video_result(self, frame: VideoFrame, returned: _Returned) -> VideoFrame:
        memory = returned.memory
        if memory is None:
            return frame
        shared = slots.get_picture(memory, returned.header.get("picture"))
        size = slots.picture_bytes(shared.format, shared.width, shared.height)
        result = frame.replace_picture(await self._copying(size, lambda: slots.copy_picture(shared)))
        result.timestamp, result.time_base = slots.get_time(returned.header)
        return result

    async def _audio(self, frame: AudioFrame) -> AudioResult:
        samples = checked_samples(frame.samples, frame.format, frame.layout, frame.rate)
        header: dict[str, Any] = dict(slots.time_header(frame.timestamp, frame.time_base))
        slot = self._pools["audio"].take(max(1, samples.nbytes))
        try:
            slot.array()[: samples.nbytes] = samples.reshape(-1).view(np.uint8)
            header["audio"] = slots.audio_header(frame, samples)
            answer = await self._exchange("audio", header, slot)
        finally:
            slot.busy = False
        frame.timeline.taken = answer.taken
        frame.timeline.stamp("processed")
        try:
            return [_audio_result(frame, returned) for returned in answer.frames]
        finally:
            self._finished("audio", answer)

    # -- the link --------------------------------------------------------------------------------------

    async def _ask(self, body: dict[str, Any], *, opening: bool = False) -> dict[str, Any]:
        if not self.usable:
            raise EngineError(self._engine.describe())
        kind: Literal["open", "call"] = "open" if opening else "call"
        return await self._engine.call({**body, "session": self.name}, kind=kind)

    async def _exchange(self, media: Media, header: dict[str, Any], slot: slots.Slot) -> _Answer:
        """Send a frame that lies in ``slot`` and wait for its answer."""
        if not self.usable:
            raise EngineError(self._engine.describe())
        future: asyncio.Future[_Answer] = self._loop.create_future()

        def on_answer(answer: Message | HeadraceError) -> None:
            if future.done():
                return
            try:
                if isinstance(answer, HeadraceError):
                    raise answer
                # Here and not later: the descriptors are closed when this returns.
                future.set_result(self._received(media, answer))
            except HeadraceError as error:
                future.set_exception(error)

        part, fds = slot.announce()
        done = self._done[media]
        body = {"op": media, "session": self.name, "slot": part, "done": done, **header}
        self._engine.request(body, on_answer, fds)
        slot.sent()
        self._done[media] = []
        self._waiting.add(future)
        try:
            return await future
        finally:
            self._waiting.discard(future)

    def _received(self, media: Media, message: Message) -> _Answer:
        taken, headers = message.body.get("taken"), message.body.get("frames")
        if type(taken) is not int or not isinstance(headers, list) or len(headers) > MAX_RESULTS:
            raise MalformedMessage(f"an answer with {headers!r}, taken at {taken!r}")
        frames = []
        for header in headers:
            if not isinstance(header, dict):
                raise MalformedMessage(f"a frame's header that is a {type(header).__name__}")
            same = header.get("same") == 1
            memory = None if same else self._tables[media].array(header.get("slot"), message)
            frames.append(_Returned(header, memory))
        return _Answer(taken, frames, message.body.get("read") == 1)

    def _finished(self, media: Media, answer: _Answer) -> None:
        """The bytes are copied; the engine is told with the next frame that it may use the slots again."""
        self._done[media] += [
            returned.header["slot"]["id"] for returned in answer.frames if returned.memory is not None
        ]

    async def _copying(self, size: int, copy: Callable[[], T]) -> T:
        if self._released:
            raise EngineError("the session was closed")
        if size < THREAD_FROM:
            return copy()
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"copy {self.name}")
        return await self._loop.run_in_executor(self._executor, copy)


def _info(data: object) -> ProcessorInfo:
    if not isinstance(data, dict) or not isinstance(data.get("schema"), dict):
        raise MalformedMessage(f"a processor that describes itself with {data!r}")
    return ProcessorInfo(
        video=bool(data.get("video")),
        audio=bool(data.get("audio")),
        schema=data["schema"],
        generates=data.get("generates"),
    )


def _audio_result(frame: AudioFrame, returned: _Returned) -> AudioFrame:
    if returned.memory is None:
        return frame
    pts, time_base = slots.get_time(returned.header)
    result = slots.get_audio(returned.memory, returned.header.get("audio"), pts, time_base)
    result.timeline, result.side_data = frame.timeline.copy(), frame.side_data
    result.log_timestamps = dict(frame.log_timestamps)
    return result

"""Batch requests inside the engine: each runs in a thread of its own, the loop only carries words.

The worker sends ``batch`` (answered by ``deferred`` at once, by a result when there is one),
``batch_cancel``, ``batch_set`` (folders and budget of the models, before the first request) and ``batch_ask``
(questions to the model cache). What a request says of itself goes back as ``words`` under its name.

The pipelines and the model cache are imported with the first request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from headrace.engine.blobs import Blobs, pack
from headrace.engine.device import poisons
from headrace.engine.host_errors import describe
from headrace.engine.host_threads import HostThreads, on_loop
from headrace.engine.host_words import ModelWords
from headrace.engine.link import Link, LinkError, LinkOverflow, Message
from stream.errors import AtCapacity, EngineError, HeadraceError, InvalidInput, ProcessorError

if TYPE_CHECKING:
    import torch

    from headrace.batch.contract import Job, Progress, Result
    from headrace.batch.runner import Runner

log = logging.getLogger(__name__)

MAX_JOBS = 64
"""Requests that an engine has at once, each a thread; the worker's queue keeps to far fewer."""
MAX_PIECES = 256
"""Pieces of a stream that wait for the loop; then the request waits."""
MAX_BACKLOG = 32
"""Messages that wait for the worker above which words are held back."""
_HELD_BACK = 0.02
_PROGRESS_EVERY = 0.05
_PIECE_WAIT = 0.5
OPS = ("batch", "batch_cancel", "batch_set", "batch_ask")


class Voice:
    """Carries what one job says from its thread to the link: progress coalesced, pieces in order, bounded.

    ``tells``: whether somebody wants to know of progress.
    """

    def __init__(self, name: str, link: Link, loop: asyncio.AbstractEventLoop, *, tells: bool = True) -> None:
        self._name = name
        self._tells = tells
        self._link = link
        self._loop = loop
        self._changed = threading.Condition()
        self._pieces: deque[dict[str, Any]] = deque()
        self._progress: Progress | None = None
        self._scheduled = False
        self._over = False
        self._told_at = 0.0
        self.heard_at = time.monotonic()
        """When the job last showed a sign of life."""
        self.job: Job | None = None

    def progress(self, progress: Progress) -> None:
        with self._changed:
            self.heard_at = time.monotonic()
            if self._tells:
                self._progress = progress
                self._schedule()

    def piece(self, piece: dict[str, Any]) -> None:
        with self._changed:
            while len(self._pieces) >= MAX_PIECES and not self._over:
                self._changed.wait(_PIECE_WAIT)
                if self.job is not None:
                    self.job.check()
            self.heard_at = time.monotonic()
            self._pieces.append(piece)
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and not self._over:
            self._scheduled = True
            self._loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        """On the loop: send what there is, unless the worker is behind or was told just now."""
        with self._changed:
            if self._over:
                return
            early = self._told_at + _PROGRESS_EVERY - time.monotonic()
            if self._link.backlog >= MAX_BACKLOG:
                self._loop.call_later(_HELD_BACK, self._flush)
            elif not self._pieces and early > 0:
                self._loop.call_later(early, self._flush)
            else:
                self._scheduled = False
                self._send()

    def finish(self) -> None:
        """On the loop: the last words, before the answer."""
        with self._changed:
            if not self._over:
                self._send()
            self._over = True
            self._changed.notify_all()

    def _send(self) -> None:
        body: dict[str, Any] = {"op": "words", "session": self._name}
        if self._pieces:
            body["pieces"] = list(self._pieces)
            self._pieces.clear()
        if (told := self._progress) is not None:
            body["progress"] = [told.phase, told.step, told.of, told.note]
            self._progress = None
        self._changed.notify_all()
        if len(body) == 2:
            return
        self._told_at = time.monotonic()
        try:
            self._link.send(body)
        except LinkOverflow:
            log.warning("request %s: words were lost, the worker does not read", self._name)
        except LinkError as error:
            log.debug("request %s: %s", self._name, error.message)


class BatchHost:
    """See the module. Its methods belong to the loop."""

    def __init__(self, link: Link, device: torch.device, threads: int, fatal: Callable[[str], None]) -> None:
        self._link = link
        self._device = device
        self._threads = threads
        self._fatal = fatal
        self._loop = asyncio.get_running_loop()
        self._jobs: dict[str, tuple[Job, Voice]] = {}
        self._runner: Runner | None = None
        self._wishes: dict[str, Any] = {}
        self._runner_lock = threading.Lock()
        self._words = ModelWords(link, "models")
        self._started = HostThreads()

    @property
    def idle(self) -> bool:
        return not self._jobs

    def deliver(self, message: Message) -> None:
        """Take a message of `OPS`. Raises `HeadraceError` for what is answered with an error at once."""
        body = message.body
        call, name = body.get("call"), body.get("session")
        if type(call) is not int:
            raise InvalidInput(f"message {message.op!r} without call", field="call")
        if message.op == "batch":
            self._begin(str(name), call, message)
        elif message.op == "batch_cancel":
            held = self._jobs.get(str(name))
            if held is not None:
                held[0].cancel(str(body.get("reason") or ""))
            self._link.send({"op": "answer", "call": call})
        elif message.op == "batch_set":
            self._wishes = {key: body[key] for key in ("models", "pipelines") if key in body}
            self._link.send({"op": "answer", "call": call})
        else:
            self._ask(call, body)

    def close(self) -> None:
        """Give every request up; their threads end by themselves or with the process."""
        for job, _ in self._jobs.values():
            job.cancel("the engine is stopping")
        self._started.close()

    # -- requests --------------------------------------------------------------------------------------

    def _begin(self, name: str, call: int, message: Message) -> None:
        from headrace.batch.contract import Job

        body = message.body
        if name in self._jobs:
            raise InvalidInput(f"request {name} is under way already", field="session")
        if len(self._jobs) >= MAX_JOBS:
            raise AtCapacity(f"the engine has {MAX_JOBS} requests; that is its limit")
        pipeline, model, inputs = body.get("pipeline"), body.get("model"), body.get("inputs")
        if not isinstance(pipeline, str) or not isinstance(model, str) or not isinstance(inputs, dict):
            raise InvalidInput("a request needs pipeline, model and inputs", field="inputs")
        fd = message.take_fd() if message.waiting_fds else None
        blobs = Blobs(fd, body.get("blobs", []))
        voice = Voice(name, self._link, self._loop, tells=body.get("progress") is not False)
        job = Job(
            name,
            pipeline,
            model,
            inputs,
            blobs.views,
            device=str(self._device),
            listener=voice,
            streams=body.get("streams") is not False,
        )
        voice.job = job
        self._jobs[name] = (job, voice)
        self._link.send({"op": "deferred", "call": call})
        work = partial(self._work, job, voice, blobs, call, body.get("what") or "run")
        try:
            self._started.start(work, f"{pipeline} {name}"[:15])
        except AtCapacity:
            del self._jobs[name]
            job.blobs.clear()
            blobs.close()
            raise

    def _work(self, job: Job, voice: Voice, blobs: Blobs, call: int, what: str) -> None:
        """The whole of a request, in its thread."""
        answer: dict[str, Any]
        fd: int | None = None
        lost = ""
        try:
            result = self._run(job, what)
            fd, index = pack(result.blobs)
            answer = {"body": result.body, "blobs": index}
        except BaseException as error:  # noqa: BLE001 (the edge of a thread: everything is answered)
            answer = {"error": describe(_known(error))}
            if poisons(error):
                lost = str(error)
        finally:
            job.blobs.clear()
            blobs.close()
        # Where the engine is ending nobody waits.
        if not on_loop(self._loop, self._ended, job.id, voice, call, answer, fd, lost) and fd is not None:
            os.close(fd)

    def _run(self, job: Job, what: str) -> Result:
        import torch

        from headrace.batch.contract import Result

        # Both hold for the thread that sets them.
        torch.set_num_threads(self._threads)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        with torch.no_grad():
            runner = self._get_runner()
            if what == "warm":
                runner.warm(job)
                return Result({})
            return runner.run(job)

    def _ended(
        self, name: str, voice: Voice, call: int, answer: dict[str, Any], fd: int | None, lost: str
    ) -> None:
        if self._link.backlog >= MAX_BACKLOG:
            # The last words may not be lost: they are a part of the answer.
            self._loop.call_later(_HELD_BACK, self._ended, name, voice, call, answer, fd, lost)
            return
        voice.finish()
        self._jobs.pop(name, None)
        self._answer(call, answer, fd)
        if lost:
            self._fatal(lost)

    def _answer(self, call: int, answer: dict[str, Any], fd: int | None) -> None:
        """Send an answer, later where the worker does not read at the moment: one must come."""
        try:
            self._link.send({"op": "answer", "call": call, **answer}, [] if fd is None else [fd])
        except LinkOverflow:
            self._loop.call_later(_HELD_BACK, self._answer, call, answer, fd)
            return
        except LinkError as error:
            log.warning("an answer cannot be sent: %s", error.message)
            if not self._link.closed and "error" not in answer:
                self._answer(call, {"error": error.as_dict()}, None)
        if fd is not None:
            with contextlib.suppress(OSError):
                os.close(fd)

    # -- the model cache -------------------------------------------------------------------------------

    def _get_runner(self) -> Runner:
        with self._runner_lock:
            if self._runner is None:
                from headrace.batch.runner import Runner

                self._runner = Runner(self._device, self._wishes, self._words.say, self._words.later)
            return self._runner

    def _ask(self, call: int, body: dict[str, Any]) -> None:
        """A question that may wait for the cache's lock, so not on the loop."""
        if body.get("what") == "check":
            now = time.monotonic()
            silent = {name: now - voice.heard_at for name, (_, voice) in self._jobs.items()}
            self._link.send({"op": "answer", "call": call, "body": {"silent": silent}})
            return
        self._link.send({"op": "deferred", "call": call})

        def work() -> None:
            try:
                answer: dict[str, Any] = {"body": self._get_runner().ask(body)}
            except BaseException as error:  # noqa: BLE001 (the edge of a thread: everything is answered)
                answer = {"error": describe(_known(error))}
            on_loop(self._loop, self._answer, call, answer, None)

        self._started.start(work, "batch ask")


def _known(error: BaseException) -> BaseException:
    """Memory and import errors in our words; what a thread may not pass on as it is, made harmless."""
    if isinstance(error, HeadraceError):
        return error
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return AtCapacity(f"out of memory: {str(error).splitlines()[0] if str(error) else 'no details'}")
    if not isinstance(error, Exception):
        return ProcessorError(f"the request ended with {type(error).__name__}")
    if isinstance(error, LinkError):
        return EngineError(error.message)
    return error

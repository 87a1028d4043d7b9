"""Requests whose answers are fetched later (`Prefer: respond-async`, RFC 7240)."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from headrace.batch.answers import Delivery, error_body
from headrace.batch.contract import Progress
from headrace.batch.errors import QueueFull
from headrace.batch.service import Ears, Outcome
from stream.errors import HeadraceError, NotFound

log = logging.getLogger(__name__)

Status = Literal["queued", "processing", "complete", "failed", "cancelled"]
Run = Callable[[Ears], Awaitable[Outcome]]
"""Runs the request; is given who wants to hear of it."""

CLOSE = 5.0
"""Seconds in which a job that is cancelled must end."""
ENDED = frozenset({"complete", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class JobLimits:
    """``jobs``: how many are known at once; ``bytes``: of all answers that wait to be fetched; ``seconds``:
    how long one waits."""

    jobs: int = 256
    bytes: int = 512 << 20
    seconds: float = 900.0


@dataclass(eq=False)
class Job:
    """One request. ``id`` is unguessable: who has it may fetch the answer and cancel."""

    pipeline: str
    delivery: Delivery
    id: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    status: Status = "queued"
    progress: Progress | None = None
    outcome: Outcome | None = None
    error: HeadraceError | None = None
    created: float = field(default_factory=time.time)
    ended: float | None = None
    size: int = 0
    kept: dict[str, str] = field(default_factory=dict)
    """Paths of the answer's files that were kept for URLs."""
    version: int = 0
    task: asyncio.Task[None] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, status: Status | None = None, progress: Progress | None = None) -> None:
        """Note a change and wake who follows."""
        self.status = status or self.status
        self.progress = progress or self.progress
        self.version += 1
        self.changed.set()
        self.changed = asyncio.Event()

    def describe(self) -> dict[str, Any]:
        """The job without its answer, as JSON data."""
        data: dict[str, Any] = {
            "request_id": self.id,
            "status": self.status,
            "pipeline": self.pipeline,
            "created": int(self.created),
        }
        if self.progress is not None:
            data["progress"] = asdict(self.progress)
        if self.error is not None:
            data["error"] = error_body(self.error)["error"]
        return data


class JobTable:
    """Jobs that run, and those that ended lately. Belongs to the loop."""

    def __init__(self, limits: JobLimits | None = None) -> None:
        self.limits = limits or JobLimits()
        self._jobs: OrderedDict[str, Job] = OrderedDict()

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def held(self) -> int:
        """Bytes of answers that wait to be fetched."""
        return sum(job.size for job in self._jobs.values())

    async def start(self, pipeline: str, delivery: Delivery, run: Run, ended: Callable[[], None]) -> Job:
        """A job that runs; returns once it waits in the queue. ``ended`` is called when it no longer runs.

        Raises what kept it from lining up, and `QueueFull` where there are too many jobs.
        """
        self._expire()
        if len(self._jobs) >= self.limits.jobs and not self._forget_oldest():
            raise QueueFull(f"{len(self._jobs)} jobs run, and {self.limits.jobs} may", retry_after=10)
        job = Job(pipeline, delivery)
        queued = asyncio.Event()
        job.task = asyncio.create_task(self._run(job, run, queued.set), name=f"job {job.id[:6]}")
        job.task.add_done_callback(lambda _: ended())
        self._jobs[job.id] = job
        waiting = asyncio.create_task(queued.wait())
        try:
            await asyncio.wait({job.task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._jobs.pop(job.id, None)
            job.task.cancel()
            raise
        finally:
            waiting.cancel()
        if job.error is not None and not queued.is_set():
            self._jobs.pop(job.id, None)
            raise job.error
        return job

    def find(self, job_id: str) -> Job:
        """Raises `NotFound` for a job that never was or is forgotten."""
        self._expire()
        job = self._jobs.get(job_id)
        if job is None:
            raise NotFound("there is no such job, or no longer", field="request_id")
        return job

    async def cancel(self, job: Job) -> None:
        """End a job that has not ended; forget one that has."""
        if job.status in ENDED:
            self._jobs.pop(job.id, None)
            return
        if job.task is not None and not job.task.done():
            job.task.cancel()
            await asyncio.wait({job.task}, timeout=CLOSE)
        job.outcome, job.size = None, 0
        if job.status not in ENDED:
            job.tell("cancelled")

    async def follow(self, job: Job, keepalive: float) -> AsyncGenerator[Job | None]:
        """The job after each change until it has ended; None after ``keepalive`` seconds without one. Changes
        that come faster than they are taken are seen as one."""
        seen = -1
        while True:
            if job.version == seen:
                changed = job.changed
                try:
                    async with asyncio.timeout(keepalive):
                        await changed.wait()
                except TimeoutError:
                    yield None
                    continue
            seen = job.version
            yield job
            if job.status in ENDED and job.version == seen:
                return

    async def close(self) -> None:
        """Cancel all that run."""
        tasks = {job.task for job in self._jobs.values() if job.task is not None and not job.task.done()}
        for task in tasks:
            task.cancel()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=CLOSE)
            if late:
                log.error("%d jobs are still ending", len(late))
        self._jobs.clear()

    # -- a job -----------------------------------------------------------------------------------------

    async def _run(self, job: Job, run: Run, queued: Callable[[], None]) -> None:
        ears = Ears(
            queued=queued,
            started=lambda _: job.tell("processing"),
            progress=lambda progress: job.tell("processing", progress),
        )
        try:
            job.outcome = await run(ears)
            job.size = sum(map(len, job.outcome.result.blobs.values()))
            status: Status = "complete"
        except asyncio.CancelledError:
            job.ended = time.time()
            job.tell("cancelled")
            raise
        except HeadraceError as error:
            job.error, status = error, "failed"
        except Exception:  # nobody waits for this task: the fault is told in the job's state
            log.exception("job %s failed", job.id[:6])
            job.error, status = HeadraceError("the request failed by a fault of the worker"), "failed"
        job.ended = time.time()
        job.tell(status)
        self._make_room()

    def _expire(self) -> None:
        limit = time.time() - self.limits.seconds
        for job in [job for job in self._jobs.values() if job.ended is not None and job.ended < limit]:
            del self._jobs[job.id]

    def _forget_oldest(self) -> bool:
        """Forget the job that ended first; False when all run."""
        ended = [job for job in self._jobs.values() if job.ended is not None]
        if not ended:
            return False
        del self._jobs[min(ended, key=lambda job: job.ended or 0).id]
        return True

    def _make_room(self) -> None:
        while self.held > self.limits.bytes and self._forget_oldest():
            pass

"""What all routes of batch requests share: reading, asking the service, answering."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

from headrace.batch.answers import Delivery, outcome_body, outcome_headers
from headrace.batch.bodies import UploadAccount, UploadBudget, read_body
from headrace.batch.endpoints import Endpoint, delivery_of, work_of
from headrace.batch.fields import Request
from headrace.batch.jobs import Job, JobLimits, JobTable
from headrace.batch.media_store import MediaStore
from headrace.batch.service import DEAF, BatchService, Ears, Outcome, Work
from headrace.models.routes import ModelRoutes
from stream.connected import while_connected
from stream.errors import HeadraceError, InvalidInput

TIMEOUT_HEADER = "X-Request-Timeout"


@dataclass(frozen=True, slots=True)
class FrontSettings:
    """``uploads``: bytes of all requests' uploads together; ``media``: bytes of files that are kept for those
    who asked for URLs, ``media_seconds`` long."""

    uploads: int = 1 << 30
    media: int = 1 << 30
    media_seconds: float = 3600.0
    jobs: JobLimits = field(default_factory=JobLimits)


class Front:
    """The service with what HTTP needs around it. Belongs to the loop."""

    def __init__(
        self,
        service: BatchService,
        settings: FrontSettings | None = None,
        models: ModelRoutes | None = None,
    ) -> None:
        settings = settings or FrontSettings()
        self.service = service
        self.models = models
        self.budget = UploadBudget(settings.uploads)
        self.media = MediaStore(settings.media, settings.media_seconds)
        self.jobs = JobTable(settings.jobs)

    async def stop(self) -> None:
        """End jobs and the engine, delete what was kept."""
        if self.models is not None:
            await self.models.close()
        await self.jobs.close()
        await self.service.stop()
        self.media.close()

    # -- a request -------------------------------------------------------------------------------------

    async def answer(self, request: web.Request, endpoint: Endpoint) -> web.StreamResponse:
        """The whole of a native endpoint but for streams: read, check, run, answer."""

        async def run(wanted: Request, account: UploadAccount) -> web.StreamResponse:
            work = self.work(request, endpoint, wanted)
            delivery = delivery_of(wanted)
            if wants_job(request):
                job = await self.start_job(work, delivery, account)
                return accepted(request, job)
            return await self.answer_outcome(request, await self.run(request, work), delivery)

        return await self.with_body(request, endpoint, run)

    async def with_body(
        self,
        request: web.Request,
        endpoint: Endpoint,
        run: Callable[[Request, UploadAccount], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        """Read and check the body for ``run``. Its upload is accounted for until ``run`` is done, or the job
        that ``run`` gave the account to."""
        self.check_room()
        account = self.budget.open()
        try:
            fields = await while_connected(request, read_body(request, account, endpoint.files))
            return await run(endpoint.parse(fields), account)
        except HeadraceError as error:
            error.field = endpoint.own_names.get(error.field or "", error.field)
            raise
        finally:
            account.close()

    def check_room(self) -> None:
        """Raise `QueueFull` before a body is read for which there is no place."""
        self.service.queue.check_room(time.monotonic())

    def work(self, request: web.Request, endpoint: Endpoint, wanted: Request) -> Work:
        return work_of(endpoint, wanted, client=request.remote or "", timeout=timeout_of(request))

    async def run(self, request: web.Request, work: Work, ears: Ears = DEAF) -> Outcome:
        """As `BatchService.run`, given up when the client leaves (`ClientLeft`)."""
        return await while_connected(request, self.service.run(work, ears))

    async def start_job(self, work: Work, delivery: Delivery, account: UploadAccount) -> Job:
        """The job that runs ``work``; it takes over what ``account`` holds."""
        held = account.hand_over()
        try:
            job = await self.jobs.start(
                work.pipeline, delivery, lambda ears: self.service.run(work, ears), held.close
            )
        except BaseException:
            held.close()
            raise
        return job

    async def answer_outcome(
        self, request: web.Request, outcome: Outcome, delivery: Delivery
    ) -> web.StreamResponse:
        body = await outcome_body(outcome, delivery, self.media, base_url(request))
        headers = outcome_headers(outcome)
        return web.Response(body=body, content_type="application/json", headers=headers)


def base_url(request: web.Request) -> str:
    """``http://host:port``, as the client called us."""
    return f"{request.scheme}://{request.host}"


def timeout_of(request: web.Request) -> float | None:
    """Seconds that the caller is willing to wait. Raises `InvalidInput`."""
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidInput(
            f"{TIMEOUT_HEADER} is {text[:40]!r}; it must be a number of seconds", field=TIMEOUT_HEADER
        )
    return seconds


def wants_job(request: web.Request) -> bool:
    """Whether the caller prefers an answer at once and the result later (RFC 7240)."""
    preferences = ",".join(request.headers.getall("Prefer", ())).split(",")
    return any(preference.partition(";")[0].strip().lower() == "respond-async" for preference in preferences)


def accepted(request: web.Request, job: Job) -> web.Response:
    """202: where to ask for the job."""
    path = f"/jobs/{job.id}"
    headers = {"Location": path, "Preference-Applied": "respond-async", "Retry-After": "1"}
    body = {"request_id": job.id, "status": job.status, "url": path, "events": f"{path}/events"}
    return web.json_response(body, status=202, headers=headers)

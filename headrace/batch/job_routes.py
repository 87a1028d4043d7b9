"""Asking for, following and cancelling jobs; and the path that gateways have for those of videos."""

from __future__ import annotations

import json
import logging
from contextlib import aclosing
from typing import Any

from aiohttp import web

from headrace.batch.answers import answering, error_body, outcome_body, outcome_headers
from headrace.batch.bodies import read_body
from headrace.batch.chat import Writer
from headrace.batch.front import Front, base_url
from headrace.batch.jobs import ENDED, Job
from stream.connected import is_gone
from stream.errors import HeadraceError, InvalidInput
from stream.sse import KEEPALIVE, EventStream

log = logging.getLogger(__name__)

EVENTS = {"complete": "complete", "failed": "error", "cancelled": "cancelled"}
"""Names of the last event."""


class JobRoutes:
    """``/jobs/{id}`` and ``/image-to-video/result``."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def register(self, app: web.Application) -> None:
        app.router.add_get("/jobs/{id}", answering(self.show))
        app.router.add_delete("/jobs/{id}", answering(self.cancel))
        app.router.add_get("/jobs/{id}/events", answering(self.follow))
        for slash in ("", "/"):
            app.router.add_post(f"/image-to-video/result{slash}", answering(self.gateway_result))

    async def show(self, request: web.Request) -> web.StreamResponse:
        """The job and, once it is complete, its answer under ``result``."""
        job = self._find(request)
        headers = {} if job.status in ENDED else {"Retry-After": "1"}
        if job.outcome is not None:
            headers = outcome_headers(job.outcome)
        body = await self._with_result(request, job, job.describe())
        return web.Response(body=body, content_type="application/json", headers=headers)

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """End the job, or forget the answer of one that has ended; the job as it is then."""
        job = self._find(request)
        await self._front.jobs.cancel(job)
        return web.json_response(job.describe())

    async def follow(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: ``progress`` with every step, then ``complete`` (with the answer), ``error`` or
        ``cancelled``."""
        job = self._find(request)
        stream = EventStream()
        try:
            await stream.begin(request)
            async with aclosing(self._front.jobs.follow(job, KEEPALIVE)) as changes:
                async for change in changes:
                    if is_gone(request):
                        break
                    await self._tell(request, stream, job, change)
            return await stream.end()
        except ConnectionError:
            return web.Response(status=499)

    async def _tell(self, request: web.Request, stream: EventStream, job: Job, change: Job | None) -> None:
        if change is None:
            await stream.keepalive()
        elif change.status in ENDED:
            await stream.data(*await self._last(request, job))
        else:
            await stream.data(change.describe(), "progress")

    async def _last(self, request: web.Request, job: Job) -> tuple[Any, str]:
        """The last event's data and name. The stream has begun: what fails now can only be told in it."""
        try:
            body = await self._with_result(request, job, job.describe())
        except HeadraceError as raised:
            error = raised
        except Exception:  # the client would wait for an end that does not come
            log.exception("the answer of job %s cannot be handed over", job.id[:6])
            error = HeadraceError("the request failed by a fault of the worker")
        else:
            return body.decode(), EVENTS[job.status]
        return {**job.describe(), "error": error_body(error)["error"]}, "error"

    async def gateway_result(self, request: web.Request) -> web.StreamResponse:
        """As go-livepeer's gateway answers: 202 while it runs, then 200 with ``result``."""
        account = self._front.budget.open()
        try:
            fields = await read_body(request, account, frozenset())
        finally:
            account.close()
        job_id = fields.get("request_id")
        if not isinstance(job_id, str):
            raise InvalidInput("request_id must be a string", field="request_id")
        job = self._front.jobs.find(job_id)
        if job.status not in ENDED:
            return web.json_response({"status": "processing"}, status=202, headers={"Retry-After": "1"})
        told: dict[str, Any] = {"status": "complete"}
        if job.outcome is None:
            message = job.error.message if job.error is not None else "the job was cancelled"
            told["result"] = {"error": {"message": message}}
        body = await self._with_result(request, job, told)
        return web.Response(body=body, content_type="application/json")

    def _find(self, request: web.Request) -> Job:
        return self._front.jobs.find(request.match_info["id"])

    async def _with_result(self, request: web.Request, job: Job, told: dict[str, Any]) -> bytes:
        """``told`` as JSON, with the answer under ``result`` where there is one."""
        head = json.dumps(told, separators=(",", ":")).encode()
        outcome = job.outcome
        if outcome is None:
            return head
        if job.pipeline == "llm":
            result = json.dumps(Writer("native", outcome.model).whole(outcome)).encode()
        else:
            base = base_url(request)
            result = await outcome_body(outcome, job.delivery, self._front.media, base, job.kept)
        return head[:-1] + b',"result":' + result + b"}"

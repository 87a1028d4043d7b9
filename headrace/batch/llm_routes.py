"""Conversations over HTTP: ``/llm`` and OpenAI's two, whole or as server-sent events."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import web

from headrace.batch.answers import error_body, outcome_headers
from headrace.batch.bodies import UploadAccount
from headrace.batch.chat import Form, Writer
from headrace.batch.choice import Choice
from headrace.batch.endpoints import ENDPOINTS, Endpoint
from headrace.batch.fields import Request
from headrace.batch.front import Front, accepted, wants_job
from headrace.batch.schemas_answers import Chat
from headrace.batch.schemas_openai import ChatCompletion, TextCompletion
from headrace.batch.schemas_text import Llm
from headrace.batch.service import Ears, Outcome, Work
from stream.connected import GIVING_UP, WATCH, is_gone
from stream.errors import ClientLeft, HeadraceError
from stream.sse import EventStream

log = logging.getLogger(__name__)

DONE = "[DONE]"

OWN_NAMES = {"model_id": "model"}
CHAT = Endpoint("llm", ChatCompletion, Chat, own_names=OWN_NAMES)
COMPLETION = Endpoint("llm", TextCompletion, Chat, own_names=OWN_NAMES)


class LlmAnswers:
    """The handlers of language models."""

    def __init__(self, front: Front) -> None:
        self._front = front

    async def native(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, ENDPOINTS["llm"], "native")

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, CHAT, "chat")

    async def completion(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, COMPLETION, "completion")

    async def _answer(self, request: web.Request, endpoint: Endpoint, form: Form) -> web.StreamResponse:
        async def run(wanted: Request, account: UploadAccount) -> web.StreamResponse:
            assert isinstance(wanted, Llm)
            work = self._front.work(request, endpoint, wanted)
            if wanted.stream:
                include = form == "native" or bool((wanted.stream_options or {}).get("include_usage"))
                return await _Stream(self._front, Writer(form), include_usage=include).answer(request, work)
            if wants_job(request):
                return accepted(request, await self._front.start_job(work, "data_url", account))
            outcome = await self._front.run(request, work)
            body = Writer(form, outcome.model).whole(outcome)
            return web.json_response(body, headers=outcome_headers(outcome))

        return await self._front.with_body(request, endpoint, run)


class _Stream:
    """One answer in pieces. What fails before the first piece is answered with its status, what fails later
    as an event."""

    def __init__(self, front: Front, writer: Writer, *, include_usage: bool) -> None:
        self._front = front
        self._writer = writer
        self._include_usage = include_usage
        self._pieces: list[dict[str, Any]] = []
        self._news = asyncio.Event()
        self._choice: Choice | None = None

    async def answer(self, request: web.Request, work: Work) -> web.StreamResponse:
        ears = Ears(started=self._started, piece=self._heard)
        task = asyncio.ensure_future(self._front.service.run(work, ears))
        task.add_done_callback(lambda _: self._news.set())
        try:
            await self._wait(request, task)
            if task.done() and not self._pieces:
                task.result()
            return await self._write(request, task)
        except ConnectionError:
            raise ClientLeft("the client has closed its connection") from None
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=GIVING_UP)

    def _started(self, choice: Choice) -> None:
        self._choice, self._writer.model = choice, choice.model

    def _heard(self, piece: dict[str, Any]) -> None:
        self._pieces.append(piece)
        self._news.set()

    async def _wait(self, request: web.Request, task: asyncio.Task[Outcome]) -> None:
        """Until there is a piece or the end. Raises `ClientLeft`."""
        while not (self._pieces or task.done()):
            self._news.clear()
            try:
                async with asyncio.timeout(WATCH):
                    await self._news.wait()
            except TimeoutError:
                if is_gone(request):
                    raise ClientLeft("the client has closed its connection") from None

    async def _write(self, request: web.Request, task: asyncio.Task[Outcome]) -> web.StreamResponse:
        choice = self._choice or Choice(self._writer.model)
        stream = EventStream({"x-headrace-model": choice.model, "x-headrace-weights": choice.weights})
        await stream.begin(request)
        while self._pieces or not task.done():
            pieces, self._pieces = self._pieces, []
            for piece in pieces:
                for chunk in self._writer.piece(piece):
                    await stream.data(chunk)
            await self._wait(request, task)
        try:
            outcome = task.result()
        except HeadraceError as error:
            return await self._fail(stream, error)
        except Exception:  # the answer has begun: a fault of ours can only be told in it
            log.exception("a stream of the language model failed")
            return await self._fail(stream, HeadraceError("the request failed by a fault of the worker"))
        for chunk in self._writer.last(outcome, include_usage=self._include_usage):
            await stream.data(chunk)
        await stream.data(DONE)
        return await stream.end()

    async def _fail(self, stream: EventStream, error: HeadraceError) -> web.StreamResponse:
        await stream.data({"error": error_body(error)["error"]})
        return await stream.end()

"""Batch work by `byoc.request_handler`, asked for as an orchestrator asks, over real connections."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import pytest
from aiohttp import web
from pydantic import BaseModel, Field

from byoc.request_handlers import Reply, handlers_of, request_handler
from byoc.request_routes import RequestRoutes
from byoc.testing import MockGateway, MockOrchestrator
from stream.errors import EngineError, InvalidInput, Unauthorized


class Asked(BaseModel):
    text: str
    words: int = Field(3, ge=1, le=10)


class Author:
    """Handlers of each kind."""

    def __init__(self):
        self.cancelled = threading.Event()
        self.begun = threading.Event()
        self.threads = set()

    @request_handler("/echo")
    async def echo(self, body):
        self.threads.add(threading.current_thread().name)
        return body

    @request_handler("/v1/short", concurrency=4)
    async def short(self, asked: Asked):
        return {"short": " ".join(asked.text.split()[: asked.words])}

    @request_handler("/bytes", max_body=1000)
    def size(self, body: bytes):
        return Reply(str(len(body)), "text/plain", metadata="counted")

    @request_handler("/tell")
    async def tell(self, body: dict):
        for number in range(body["count"]):
            yield {"number": number}
        if body.get("then") == "raise":
            raise ValueError("no more")
        if body.get("then") == "long":
            yield "x" * 70_000

    @request_handler("/wait", waiting=1)
    async def wait(self, body):
        self.begun.set()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    @request_handler("/wait-and-tell")
    async def wait_and_tell(self, body):
        try:
            yield 1
            await asyncio.sleep(30)
        finally:
            self.cancelled.set()

    @request_handler("/late", timeout=0.05)
    async def late(self, body):
        await asyncio.sleep(30)

    @request_handler("/stuck", timeout=0.2, waiting=0)
    def stuck(self, body):
        self.begun.set()
        self.let_go.wait(30)
        return "came back"

    @request_handler("/fail")
    async def fail(self, body):
        match body["how"]:
            case "value":
                raise ValueError("a bad day")
            case "input":
                raise InvalidInput("colour must be red", field="colour")
            case "unauthorized":
                raise Unauthorized("not you")
            case "nonsense":
                return object()

    @property
    def never_looked_at(self):
        raise AssertionError("a property is not a handler")


@asynccontextmanager
async def serving(author, loaded=True) -> AsyncIterator[tuple[str, MockGateway]]:
    async def ready():
        if not loaded:
            raise EngineError("the model is still loading")

    routes = author.routes = RequestRoutes(handlers_of(author), ready)
    app = web.Application()
    routes.register(app)
    routes.start()
    runner = web.AppRunner(app, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with MockOrchestrator() as orchestrator:
            orchestrator.book.register(json.dumps({"name": "cap", "url": url, "capacity": 1}))
            yield url, MockGateway(orchestrator)
    finally:
        await runner.cleanup()
        await routes.close()


async def happens(event):
    assert await asyncio.to_thread(event.wait, 5)


async def test_json_is_answered_through_an_orchestrator_and_without_one():
    author = Author()
    async with serving(author) as (url, gateway), aiohttp.ClientSession() as http:
        answer = await gateway.request("cap", "echo", {"a": [1, None]})
        assert (answer.status, answer.json()) == (200, {"a": [1, None]})
        async with http.post(f"{url}/process/request/echo", json="direct") as response:
            assert await response.json() == "direct"
        # Never in the thread that serves.
        assert author.threads == {"requests"}
        answer = await gateway.request("cap", "v1/short", {"text": "one two three four", "words": 2})
        assert answer.json() == {"short": "one two"}
        answer = await gateway.request("cap", "bytes", b"\x00\xff", content_type="image/png")
        assert (answer.text, answer.headers["X-Metadata"]) == ("2", "counted")


async def test_a_stream_of_events_ends_by_done():
    async with serving(Author()) as (_, gateway):
        answer = await gateway.request("cap", "tell", {"count": 3})
        assert answer.events == ['{"number":0}', '{"number":1}', '{"number":2}', "[DONE]"]
        answer = await gateway.request("cap", "tell", {"count": 0})
        assert answer.events == ["[DONE]"]
        for then, words in (("raise", "ValueError: no more"), ("long", "over 65535 bytes")):
            answer = await gateway.request("cap", "tell", {"count": 1, "then": then})
            first, error, end = answer.events
            assert (first, end) == ('{"number":0}', "[DONE]")
            assert words in json.loads(error)["error"]["message"]
        # Nothing was sent yet, so an error has a status.
        answer = await gateway.request("cap", "tell", {"count": 0, "then": "raise"})
        assert (answer.status, "no more" in answer.text) == (500, True)


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("v1/short", {"words": 0}, 400, ["text: Field required", "words: Input should be greater"]),
        ("echo", b"{", 400, ["the body is not JSON"]),
        ("bytes", b"x" * 1001, 413, ["1001 bytes", "at most 1000"]),
        ("late", {}, 500, ["/late took longer than 0.05 s"]),
        ("fail", {"how": "value"}, 500, ["ValueError: a bad day"]),
        ("fail", {"how": "input"}, 400, ["colour must be red"]),
        ("fail", {"how": "unauthorized"}, 403, ["not you"]),
        ("fail", {"how": "nonsense"}, 500, ["object was returned that is no JSON"]),
    ],
)
async def test_errors_have_one_form(path, body, status, words):
    async with serving(Author()) as (_, gateway):
        answer = await gateway.request("cap", path, body)
        assert answer.status == status
        message = json.loads(answer.body)["message"]
        assert all(each in message for each in words), message
        # None of it costs the capability its registration.
        assert gateway.orchestrator.book.find("cap") is not None


async def test_another_type_than_json_is_refused():
    async with serving(Author()) as (_, gateway):
        answer = await gateway.request("cap", "echo", b"{}", content_type="image/png")
        assert (answer.status, answer.json()["field"]) == (400, "Content-Type")


@pytest.mark.parametrize("path", ["wait", "wait-and-tell"])
async def test_work_is_cancelled_when_the_client_leaves(path):
    author = Author()
    async with serving(author) as (url, _), aiohttp.ClientSession() as http:
        with pytest.raises(TimeoutError):
            async with http.post(f"{url}/{path}", json={}, timeout=aiohttp.ClientTimeout(0.3)) as response:
                await response.read()
        await happens(author.cancelled)


async def test_what_is_over_the_limits_is_refused_at_once():
    author = Author()
    async with serving(author) as (url, gateway), aiohttp.ClientSession() as http:
        waiting = [asyncio.create_task(http.post(f"{url}/wait", json={})) for _ in range(2)]
        async with asyncio.timeout(5):
            while (author.routes.running, author.routes.waiting) != (1, 1):  # noqa: ASYNC110 (no event)
                await asyncio.sleep(0.01)
        answer = await gateway.request("cap", "wait", {})
        assert answer.status == 503
        assert "1 requests run and 1 wait already" in answer.text
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_plain_function_holds_its_place_until_it_returns():
    author = Author()
    author.let_go = threading.Event()
    async with serving(author) as (_, gateway):
        try:
            answer = await gateway.request("cap", "stuck", {})
            assert (answer.status, "took longer than 0.2 s" in answer.text) == (500, True)
            await happens(author.begun)
            answer = await gateway.request("cap", "stuck", {})
            assert (answer.status, "1 requests run" in answer.text) == (503, True)
            assert author.routes.running == 1
        finally:
            author.let_go.set()
        async with asyncio.timeout(5):
            while author.routes.running:  # noqa: ASYNC110 (no event)
                await asyncio.sleep(0.01)
        assert (await gateway.request("cap", "stuck", {})).json() == "came back"


async def test_requests_wait_for_no_model():
    async with serving(Author(), loaded=False) as (_, gateway):
        answer = await gateway.request("cap", "echo", {})
        assert (answer.status, "still loading" in answer.text) == (503, True)


def test_what_cannot_be_a_handler_is_refused():
    for path in ("echo", "/", "/a//b", "/ä", "/a?b"):
        with pytest.raises(InvalidInput, match="path reads as"):
            request_handler(path)
    with pytest.raises(InvalidInput, match="concurrency must be at least 1"):
        request_handler("/a", concurrency=0)

    class Twice:
        @request_handler("/a")
        async def one(self, body): ...

        @request_handler("/a")
        async def two(self, body): ...

    with pytest.raises(InvalidInput, match="two request handlers"):
        handlers_of(Twice())


@dataclass
class Pair:
    left: int
    right: int = 2


class Typed:
    @request_handler("/pair")
    async def pair(self, body: Pair) -> OnlyForTypeCheckers:  # noqa: F821 (that is the point)
        return body

    @request_handler("/pairs")
    async def pairs(self, body: list[Pair] | None) -> Pair:
        return body[0] if body else None


def test_a_body_is_made_into_whatever_its_parameter_says():
    pair, pairs = (handler.argument for handler in handlers_of(Typed()))
    assert pair(b'{"left": "1"}', "application/json") == Pair(1, 2)
    assert pairs(b'[{"left": 3, "right": 4}]', "") == [Pair(3, 4)]
    assert pairs(b"null", "") is None
    with pytest.raises(
        InvalidInput, match=r"0.left: Input should be a valid integer.*; 1.left: Field required"
    ):
        pairs(b'[{"left": "x"}, {}]', "")


class Unknown:
    @request_handler("/unknown")
    async def unknown(self, body: OnlyForTypeCheckers) -> None:  # noqa: F821 (that is the point)
        """Its body cannot be checked."""


class Unfit:
    @request_handler("/unfit")
    async def unfit(self, body: threading.Lock) -> None:
        """What JSON never is."""


class Yields:
    @request_handler("/yields")
    def yields(self, body: dict) -> Iterator[int]:
        yield 1


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (Unknown, r"unknown takes a OnlyForTypeCheckers: name .* is not defined"),
        (Unfit, "cannot be made of JSON"),
        (Yields, "yields yields: write it with `async def`"),
    ],
)
def test_a_handler_that_could_never_answer_is_refused_at_the_start(program, words):
    with pytest.raises(InvalidInput, match=words):
        handlers_of(program())

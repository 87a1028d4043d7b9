"""A session's events over a real HTTP connection."""

import asyncio
import contextlib
import json

import aiohttp
import pytest
from aiohttp import web

from stream import server_events
from stream.access import guard
from stream.server_events import EventRoutes, as_event
from stream.session_feed import Feeds, News
from stream.table import SessionTable
from tests.stream.quiet_session import quiet_session

LIMIT = 10


@contextlib.asynccontextmanager
async def served(token=None):
    """A table with the session ``one``, and the address of the routes over it."""
    table, feeds = SessionTable(4, lambda session: {}), Feeds()
    app = web.Application(middlewares=[guard(token)])
    EventRoutes(table, feeds).register(app)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    session = quiet_session("one")
    table.add(session)
    try:
        async with aiohttp.ClientSession(f"http://{host}:{port}") as http:
            yield http, session, feeds
    finally:
        await table.close("over", 5)
        await runner.cleanup()


async def read(response, count):
    """The next ``count`` events, as kind and data, and the comments between."""
    events, comments = [], 0
    async with asyncio.timeout(LIMIT):
        while len(events) < count:
            line = (await response.content.readline()).decode()
            assert line, "it ended"
            comments += line.startswith(":")
            if line.startswith("event: "):
                data = (await response.content.readline()).decode()
                events.append((line[7:].strip(), json.loads(data.removeprefix("data: "))))
    return events, comments


async def test_events_come_as_they_are_said_and_the_stream_ends_with_the_session():
    async with served() as (http, session, _), http.get("/stream/events") as response:
        assert response.content_type == "text/event-stream"
        assert response.headers["Cache-Control"] == "no-store"
        await read(response, 1)
        session.processor.emit("text", "two\nlines")
        session.processor.emit("event", {"type": "error", "message": "no"})
        events, _ = await read(response, 2)
        assert events == [
            ("text", {"data": "two\nlines", "time": None}),
            ("error", {"type": "error", "message": "no"}),
        ]
        session.stop("enough")
        events, _ = await read(response, 1)
        while events[-1][0] == "state":
            events, _ = await read(response, 1)
        assert events == [("ended", {"reason": "enough", "error": None})]
        assert await response.content.read() == b"\n"
    async with served() as (http, _, _), http.get("/stream/events?stream_id=two") as response:
        assert response.status == 404


async def test_a_quiet_stream_shows_that_it_is_alive(monkeypatch):
    monkeypatch.setattr(server_events, "HEARTBEAT", 0.02)
    async with served() as (http, session, _), http.get("/stream/events") as response:
        await read(response, 1)
        asyncio.get_running_loop().call_later(0.3, session.processor.emit, "data", 1)
        _, comments = await read(response, 1)
        assert comments > 2


async def test_a_reader_who_goes_leaves_nothing(monkeypatch):
    monkeypatch.setattr(server_events, "HEARTBEAT", 0.02)
    async with served() as (http, session, feeds):
        async with http.get("/stream/events") as response:
            await read(response, 1)
            assert feeds.of(session)._watch is not None
        async with asyncio.timeout(LIMIT):
            await _until(lambda: feeds.of(session)._watch is None)


async def test_a_reader_who_takes_nothing_is_dropped(monkeypatch):
    monkeypatch.setattr(server_events, "STALL", 0.3)
    async with served() as (http, session, feeds), http.get("/stream/events") as response:
        await read(response, 1)

        def flood():
            session.processor.emit("data", "x" * 500_000)
            return feeds.of(session)._watch is None

        async with asyncio.timeout(LIMIT):
            await _until(flood)


async def test_readers_are_limited(monkeypatch):
    monkeypatch.setattr(server_events, "MAX_READERS", 1)
    async with served() as (http, _, _), http.get("/stream/events") as response:
        assert response.status == 200
        async with http.get("/stream/events") as refused:
            assert refused.status == 503


@pytest.mark.parametrize(("query", "status"), [("", 401), ("?token=wrong", 401), ("?token=s3cret", 200)])
async def test_the_token_may_be_in_the_url_since_pages_cannot_set_headers(query, status):
    async with served("s3cret") as (http, _, _), http.get(f"/stream/events{query}") as response:
        assert response.status == status


async def test_the_schema_is_that_of_the_processor():
    async with served() as (http, _, _), http.get("/api/stream/schema?stream_id=one") as response:
        assert (response.status, await response.json()) == (200, {})


def test_an_event_is_one_line_of_data_whatever_is_said():
    event = as_event(News("text", {"data": "a\r\nb\n\nevent: fake"}))
    assert event.count(b"\n") == 3
    assert b"\r" not in event


async def _until(so):
    while True:
        if so():
            return
        await asyncio.sleep(0.02)

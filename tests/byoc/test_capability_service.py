"""A `StreamServer` as a capability: registered when its model is there, its work counted."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import aiohttp
import pytest

from byoc import FrameProcessor, StreamServer, VideoFrame, request_handler
from byoc.testing import MockGateway, MockOrchestrator, generated
from stream.errors import InvalidInput


class Author(FrameProcessor):
    async def load_model(self, **kwargs):
        await asyncio.sleep(0.2)

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        return frame

    @request_handler("/count")
    async def count(self, body):
        return {"letters": len(body["text"])}


class Batch(FrameProcessor):
    @request_handler("/one", concurrency=3)
    async def one(self, body):
        return 1

    @request_handler("/two")
    async def two(self, body):
        yield 2


@asynccontextmanager
async def capability(monkeypatch, processor, **settings):
    async with MockOrchestrator("s3cret") as orchestrator:
        monkeypatch.setenv("ORCH_URL", orchestrator.url)
        monkeypatch.setenv("ORCH_SECRET", "s3cret")
        server = StreamServer(processor, port=0, host="127.0.0.1", capability_name="author", **settings)
        runner = await server.start_server()
        try:
            yield orchestrator, server
        finally:
            await server.stop()
            await runner.cleanup()
    assert orchestrator.unregistered == ["author"]


async def test_streams_and_batch_work_of_one_processor(monkeypatch):
    clip = await asyncio.to_thread(generated, 2, width=128, height=128)
    async with (
        capability(monkeypatch, Author(), token="t") as (orchestrator, server),
        aiohttp.ClientSession() as http,
    ):
        assert server.health() == "LOADING"
        assert not orchestrator.registrations
        found = await orchestrator.registered("author", 60)
        assert server.health() == "IDLE"
        assert (found.capacity, found.token, found.url) == (1, "t", f"http://localhost:{server.port}")
        gateway = MockGateway(orchestrator)
        async with gateway.stream("author", None) as stream:
            assert stream.accepted
            await stream.play(clip[:1])
            answer = await gateway.request("author", "count", {"text": "abc"})
            assert answer.json() == {"letters": 3}
            headers = {"Authorization": "Bearer t"}
            async with http.get(f"http://127.0.0.1:{server.port}/capability", headers=headers) as response:
                told = await response.json()
            assert told["state"] == "registered"
            async with http.get(f"http://127.0.0.1:{server.port}/metrics", headers=headers) as response:
                assert 'headrace_registration_state{state="registered"} 1.0' in await response.text()
            assert {answer.status for answer in await stream.stop()} == {200}
        assert not stream.problems


async def test_a_capability_without_streams_offers_what_its_handlers_take(monkeypatch):
    async with capability(monkeypatch, Batch()) as (orchestrator, _):
        found = await orchestrator.registered("author", 60)
        assert found.capacity == 4
        gateway = MockGateway(orchestrator)
        assert (await gateway.request("author", "process/request/one")).json() == 1
        assert (await gateway.request("author", "two")).events == ["2", "[DONE]"]


async def test_a_capacity_that_an_instance_cannot_have_is_told(monkeypatch, caplog):
    monkeypatch.setenv("CAPABILITY_CAPACITY", "4")
    async with capability(monkeypatch, Author()) as (orchestrator, _):
        assert (await orchestrator.registered("author", 60)).capacity == 1
    assert "CAPABILITY_CAPACITY is 4 and 1 is registered" in caplog.text


@pytest.mark.parametrize(
    ("url", "name", "said"),
    [
        ("", "author", ""),
        ("http://127.0.0.1:9", "author", "ORCH_SECRET is not"),
        ("http://127.0.0.1:9", "", "CAPABILITY_NAME"),
    ],
)
async def test_without_all_that_it_takes_nothing_is_registered(monkeypatch, caplog, url, name, said):
    for variable in ("ORCH_SECRET", "CAPABILITY_NAME", "MODEL_ID"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("ORCH_URL", url)
    server = StreamServer(Author(), port=0, host="127.0.0.1", capability_name=name)
    runner = await server.start_server()
    try:
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"http://127.0.0.1:{server.port}/capability") as it,
        ):
            assert (await it.json())["state"] == "off"
        assert said in caplog.text
        assert ("nothing is registered" in caplog.text) == bool(said)
    finally:
        await server.stop()
        await runner.cleanup()


@pytest.mark.parametrize(
    ("processor", "variable", "value"),
    [
        (Author, "CAPABILITY_URL", "nowhere"),
        (Author, "CAPABILITY_CAPACITY", "two"),
        (Batch, "CAPABILITY_CAPACITY", "two"),
        (Batch, "CAPABILITY_CAPACITY", "-1"),
    ],
)
async def test_a_wrong_variable_ends_the_start(monkeypatch, processor, variable, value):
    monkeypatch.setenv("ORCH_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("ORCH_SECRET", "s")
    monkeypatch.setenv(variable, value)
    server = StreamServer(processor(), port=0, host="127.0.0.1", capability_name="author")
    try:
        with pytest.raises(InvalidInput, match=variable):
            await server.start_server()
    finally:
        await server.stop()

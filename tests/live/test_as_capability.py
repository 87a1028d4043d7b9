"""``headrace serve --processor`` as a capability: registered, its streams run as go-livepeer runs them."""

from __future__ import annotations

import asyncio
import signal

import aiohttp
from test_stopping import served

from benchmarks.workers import free_port
from byoc.testing import MockGateway, MockOrchestrator, generated, measured

NAME, TOKEN = "dimmed", "a token"
PARAMS = {"width": 128, "height": 128, "strength": 0.5}


async def page(worker, http, session):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with http.get(f"{worker.url}/api/page?session={session}", headers=headers) as answer:
        return await answer.json()


async def test_a_class_is_served_registered_and_steered_by_a_gateway(tmp_path):
    clip = await asyncio.to_thread(generated, 3, width=128, height=128)
    port = free_port()
    async with MockOrchestrator("s3cret") as orchestrator, aiohttp.ClientSession() as http:
        environment = {
            "ORCH_URL": orchestrator.url,
            "ORCH_SECRET": "s3cret",
            "CAPABILITY_NAME": NAME,
            "CAPABILITY_URL": f"http://127.0.0.1:{port}",
            "CAPABILITY_CAPACITY": "2",
            "HEADRACE_TOKEN": TOKEN,
            "HEADRACE_PROCESSOR": "tests.live.capability_processor:Dimmed",
            "HEADRACE_BATCH": "0",
        }
        async with served(tmp_path, port, **environment) as worker:
            found = await orchestrator.registered(NAME, 60)
            assert (found.capacity, found.token) == (2, TOKEN)
            gateway = MockGateway(orchestrator)
            async with gateway.stream(NAME, PARAMS) as stream:
                assert stream.accepted, stream.answer
                assert found.available == 1
                await stream.play(clip)
                told = await page(worker, http, stream.id)
                assert told["workflow"] == "tests.live.capability_processor:Dimmed"
                assert told["session"]["schema"]["properties"]["strength"]["maximum"] == 1
                assert (await stream.update({"strength": 0.25})).status == 200
                refused = await stream.update({"strength": 2})
                assert refused.status == 400
                assert "strength must be from 0 to 1" in refused.text
                await stream.control({"strength": 1})
                assert (await stream.update(b"junk")).status == 400
                assert [answer.status for answer in await stream.stop(b"\xff junk")] == [200, 200, 200]
            assert not stream.problems
            assert stream.data
            assert any(event["event"]["type"] == "status" for event in stream.events)
            figures = await asyncio.to_thread(measured, stream)
            assert not figures.problems
            assert figures.pictures_out > 30
            assert figures.latency(50)
            assert found.available == 2
            # The next one begins without parameters and loses its channels without a stop.
            async with gateway.stream(NAME, None, data=False) as stream:
                await stream.play(clip[:1])
                stream.vanish()
                await worker.ready(http, "IDLE")
            await orchestrator.restart()
            await orchestrator.registered(NAME)
            status, _, left = await worker.ends(signal.SIGTERM)
            assert (status, left) == (0, [])
            assert orchestrator.unregistered == [NAME]
            assert not orchestrator.channels

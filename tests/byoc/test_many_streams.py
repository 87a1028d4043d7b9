"""A program with several streams at once, as a gateway runs them; and a worker that says nothing."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import aiohttp
from aiohttp import web

from benchmarks.workers import free_port
from byoc.check.program import running
from byoc.testing import GatewaySettings, MockGateway, MockOrchestrator, generated
from stream.trickle.server import TrickleServer, TrickleServerSettings

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import asyncio, os
from byoc import FrameProcessor, StreamServer

class Counts(FrameProcessor):
    loads = 0

    async def load_model(self, **kwargs):
        Counts.loads += 1
        self.model = Counts.loads

    async def on_stream_start(self, params):
        self.name = (params or {}).get("name")
        self.emit("data", {"begins": self.name, "model": self.model, "object": id(self)})

    async def on_stream_stop(self):
        print("stopped", self.name, flush=True)

    async def process_video_async(self, frame):
        return frame

asyncio.run(StreamServer(Counts, port=int(os.environ["PORT"])).run_forever())
"""
PARAMS = {"width": 128, "height": 128}


async def test_a_class_in_a_program_serves_two_streams_and_offers_what_is_free(tmp_path):
    (tmp_path / "worker.py").write_text(PROGRAM)
    clip = await asyncio.to_thread(generated, 2, width=128, height=128, fps=10)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with MockOrchestrator("s") as orchestrator, aiohttp.ClientSession() as http:
        environment = {
            "PORT": str(port),
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "ORCH_URL": orchestrator.url,
            "ORCH_SECRET": "s",
            "CAPABILITY_NAME": "counts",
            "CAPABILITY_URL": url,
            "CAPABILITY_CAPACITY": "2",
        }
        async with running([sys.executable, "worker.py"], tmp_path, port, environment) as program:
            found = await orchestrator.registered("counts", 60)
            assert found.capacity == 2
            gateway = MockGateway(orchestrator)
            async with (
                gateway.stream("counts", {**PARAMS, "name": "one"}) as one,
                gateway.stream("counts", {**PARAMS, "name": "two"}) as two,
            ):
                assert one.accepted, one.answer
                assert two.accepted, two.answer
                assert found.available == 0
                refused = await gateway.start("counts", PARAMS)
                assert (refused.answer.status, "in use" in refused.answer.text) == (503, True)
                await refused.close()
                await asyncio.gather(one.play(clip[:1]), two.play(clip[:1]))
                assert await one.until(lambda: len(one.segments) > 0 and len(two.segments) > 0)
                # Without a stop, and with three, of which two come when nothing is there any more.
                one.vanish()
                assert [answer.status for answer in await two.stop(b"\xff")] == [200, 200, 200]
                await program.until("IDLE", timeout=20)
            assert not one.problems + two.problems
            begun = [value for stream in (one, two) for lines in stream.data for value in lines]
            assert {value["begins"] for value in begun} == {"one", "two"}
            assert {value["model"] for value in begun} == {1}, "the model is loaded once"
            assert len({value["object"] for value in begun}) == 2
            assert found.available == 2
            # A stream that outlives its orchestrator is counted when that comes back.
            async with TrickleServer(TrickleServerSettings(port=0)) as channels:
                channels.create_channel("control", "application/json")
                body = {"gateway_request_id": "own", "control_url": channels.channel_url("control")}
                async with http.post(f"{url}/stream/start", json=body) as answer:
                    assert answer.status == 200
                await orchestrator.restart()
                assert (await orchestrator.registered("counts")).capacity == 1
            await program.until("IDLE", timeout=20)
            assert await program.end(15) is not None
            assert program.status == 0
            assert {"stopped one", "stopped two", "stopped None"} <= set(program.lines), program.tail()
    assert orchestrator.unregistered == ["counts"]


async def test_a_worker_whose_events_stay_away_is_given_up_and_told_to_stop():
    async def answers(request: web.Request) -> web.Response:
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/stream/{what}", answers)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port := free_port()).start()
    try:
        async with MockOrchestrator() as orchestrator:
            silent = {"name": "silent", "url": f"http://127.0.0.1:{port}", "capacity": 1}
            orchestrator.book.register(json.dumps(silent))
            gateway = MockGateway(orchestrator, GatewaySettings(event_gap=0.3))
            async with gateway.stream("silent") as stream:
                assert stream.accepted
                assert await stream.until(lambda: bool(orchestrator.calls[1:]))
            assert stream.ended == "timeout waiting for events"
            assert stream.problems == [f"the gateway gives the worker up: {stream.ended}"]
            told = orchestrator.calls[1]
            assert (told.path, told.status, told.body) == ("/stream/stop", 200, stream.ended.encode())
            assert not orchestrator.streams
    finally:
        await runner.cleanup()

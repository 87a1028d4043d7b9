"""The page's files and routes over HTTP, and the demo behind them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from page_server import PageServer, page_server

from headrace.server.app import build_app
from headrace.server.page import FILES
from headrace.server.specs import Specs
from headrace.server.worker import Worker
from headrace.settings import Settings
from workflows import library

EDGES = library.load_bundled("edges")
LIMIT = aiohttp.ClientTimeout(total=30)


@asynccontextmanager
async def idle_worker(**settings: Any) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a worker whose engine was never started."""
    worker = Worker(Settings(**settings))
    runner = web.AppRunner(build_app(worker), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with aiohttp.ClientSession(url, timeout=LIMIT) as client:
            yield client
    finally:
        await worker.stop()
        await runner.cleanup()


@pytest.mark.parametrize("path", FILES)
async def test_the_files_come_with_a_policy_and_are_not_sent_twice(path: str) -> None:
    async with idle_worker() as client:
        async with client.get(path) as answer:
            assert answer.status == 200
            assert answer.content_type == FILES[path][1]
            policy = answer.headers["Content-Security-Policy"]
            body, tag = await answer.text(), answer.headers["ETag"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "://" not in body.replace("http://www.w3.org/2000/svg", "")
        async with client.get(path, headers={"If-None-Match": tag}) as answer:
            assert (answer.status, await answer.read()) == (304, b"")


async def test_the_bundled_workflows_are_listed() -> None:
    async with idle_worker() as client, client.get("/workflows") as answer:
        listed = (await answer.json())["workflows"]
    assert [entry["name"] for entry in listed] == library.names()
    assert all(entry["title"] and entry["description"] for entry in listed)
    assert all(entry["problem"] is None for entry in listed if entry["name"] in ("cartoon", "edges"))


async def test_workflows_are_checked_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large one takes a tenth of a second, in which no frame of any stream would move."""
    requests = ["/stream/start", "/api/demo/start", "/stream/schema", "/api/page"]
    threads: dict[str, set[str]] = {}
    graphs = Specs.graphs

    def watched(self: Specs, spec: Any) -> Any:
        threads.setdefault(request, set()).add(threading.current_thread().name)
        return graphs(self, spec)

    monkeypatch.setattr(Specs, "graphs", watched)
    async with idle_worker(demo=True) as client:
        for request in requests:
            if request in ("/stream/schema", "/api/page"):
                answer = await client.get(request, params={"stream_id": "demo", "session": "demo"})
            else:
                body = {"params": {"workflow": EDGES}, "workflow": EDGES}
                answer = await client.post(request, json=body)
            await answer.read()
    assert list(threads) == requests
    assert threading.main_thread().name not in set.union(*threads.values())


async def test_a_workflow_is_checked_without_a_stream_and_its_problems_name_their_nodes() -> None:
    async with idle_worker() as client:
        workflow = library.load_bundled("edges")
        for given in (workflow, json.dumps(workflow)):
            async with client.post("/workflows/check", json={"workflow": given}) as answer:
                found = await answer.json()
                assert (answer.status, found["problems"]) == (200, [])
                assert [node["id"] for node in found["nodes"]] == ["1", "2", "3"]
        workflow["2"]["class_type"] = "Cany"
        async with client.post("/workflows/check", json={"workflow": workflow}) as answer:
            (problem,) = (await answer.json())["problems"]
            assert problem["node_id"] == "2"
            assert "did you mean Canny" in problem["message"]
        for body in ({"workflow": "{"}, {"workflow": 3}, {}, []):
            async with client.post("/workflows/check", json=body) as answer:
                assert answer.status == 400, body


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_other_machines_addresses_are_told_where_it_listens_to_them(host: str) -> None:
    async with idle_worker(host=host, token="secret") as client:
        headers = {"Authorization": "Bearer secret"}
        async with client.get("/api/page", headers=headers) as answer:
            hosts = (await answer.json())["hosts"]
    assert not {"localhost", "127.0.0.1", "::1", "0.0.0.0"} & set(hosts)
    assert bool(hosts) == (host == "0.0.0.0")


async def test_a_worker_without_a_stream_or_a_demo_says_so() -> None:
    async with idle_worker() as client:
        async with client.get("/api/page") as answer:
            state = await answer.json()
            assert answer.headers["Cache-Control"] == "no-store"
        assert (state["session"], state["demo"], state["sessions"]) == (None, None, [])
        assert state["engine"]["state"] == "stopped"
        for action in ("start", "stop"):
            async with client.post(f"/api/demo/{action}", json={}) as answer:
                body = await answer.json()
                assert (answer.status, body["code"]) == (404, "not_found")
                assert "headrace serve --demo" in body["message"]


async def test_with_a_token_the_files_alone_are_open() -> None:
    async with idle_worker(token="secret", demo=True) as client:
        for path in FILES:
            async with client.get(path) as answer:
                assert answer.status == 200
        for path in ("/api/page", "/workflows", "/sessions/demo/preview.mjpeg", "/sessions/demo/preview.jpg"):
            async with client.get(path) as answer:
                assert answer.status == 401, path
        async with client.post("/api/demo/start", json={}) as answer:
            assert answer.status == 401
        async with client.get("/api/page", headers={"Authorization": "Bearer secret"}) as answer:
            assert answer.status == 200


async def test_another_site_cannot_start_or_stop_the_demo() -> None:
    async with idle_worker(demo=True) as client:
        for action in ("start", "stop"):
            headers = {"Origin": "https://example.org"}
            async with client.post(f"/api/demo/{action}", json={}, headers=headers) as answer:
                assert answer.status == 403
            async with client.post(f"/api/demo/{action}", data={"workflow": "edges"}) as answer:
                assert answer.status == 400


# -- with an engine --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[PageServer]:
    with page_server("--demo", "--workflow", "passthrough", "--capacity", "2") as running:
        yield running


@asynccontextmanager
async def client_of(server: PageServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.url, timeout=LIMIT) as client:
        yield client


async def post(client: aiohttp.ClientSession, path: str, body: Any) -> tuple[int, dict[str, Any]]:
    async with client.post(path, json=body) as answer:
        return answer.status, await answer.json()


async def state_of(client: aiohttp.ClientSession, session: str | None = None) -> dict[str, Any]:
    async with client.get("/api/page", params={"session": session} if session else {}) as answer:
        assert answer.status == 200
        state: dict[str, Any] = await answer.json()
        return state


async def online(client: aiohttp.ClientSession) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while True:
            state = await state_of(client)
            if state["session"] is not None and state["session"]["latency"].get("process"):
                return state
            await asyncio.sleep(0.1)


async def test_it_prints_where_to_look(server: PageServer) -> None:
    assert server.announced[1] == f"open {server.url}/ in a browser: live picture, latency, parameters"
    async with client_of(server) as client, client.get("/") as answer:
        assert "<title>Headrace</title>" in await answer.text()


async def test_the_demo_runs_from_the_start_with_sound_and_its_figures(server: PageServer) -> None:
    async with client_of(server) as client:
        state = await online(client)
    assert state["demo"]["running"]
    assert state["demo"]["workflow"] == "passthrough"
    assert state["sessions"][0]["id"] == "demo"
    session = state["session"]
    assert session["decoder"]["name"] == "test pattern"
    assert session["counts"]["audio_in"] > 0
    assert {"decode", "wait", "process", "encode", "received_to_encoded"} <= session["latency"].keys()
    assert session["explanation"]


async def test_another_workflow_replaces_the_one_that_runs(server: PageServer) -> None:
    async with client_of(server) as client:
        status, body = await post(client, "/api/demo/start", {"workflow": "edges"})
        assert (status, body["demo"]["workflow"]) == (200, "edges")
        state = await online(client)
        assert state["session"]["values"] == {"2.low_threshold": 0.4, "2.high_threshold": 0.8}
        assert state["session"]["workflow"] == "edges"
        assert len(state["sessions"]) == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"workflow": "nonsense"}, 404),
        ({"workflow": "../edges"}, 404),
        ({"workflow": "/etc/passwd"}, 404),
        ({"workflow": '{"1": {}}'}, 404),
        ({"workflow": 3}, 400),
        ([], 400),
    ],
)
async def test_a_workflow_that_is_none_is_refused_and_what_runs_goes_on(
    server: PageServer, body: Any, status: int
) -> None:
    async with client_of(server) as client:
        before = await online(client)
        assert (await post(client, "/api/demo/start", body))[0] == status
        after = await state_of(client)
    assert after["session"]["uptime_s"] >= before["session"]["uptime_s"]
    assert after["demo"]["workflow"] == before["demo"]["workflow"]


async def test_the_demo_runs_a_workflow_that_somebody_brings(server: PageServer) -> None:
    own = library.load_bundled("edges")
    own["2"]["inputs"]["low_threshold"] = 0.1
    async with client_of(server) as client:
        status, body = await post(client, "/api/demo/start", {"workflow": own, "title": "night sky"})
        assert (status, body["demo"]["workflow"]) == (200, "night sky")
        state = await online(client)
        assert state["session"]["chosen"] is None
        assert state["session"]["values"]["2.low_threshold"] == 0.1
        own["2"]["class_type"] = "Cany"
        status, body = await post(client, "/api/demo/start", {"workflow": own})
        assert (status, body["details"][0]["node_id"]) == (400, "2")
        assert (await state_of(client))["session"]["begun"] == state["session"]["begun"]


async def test_the_demo_stops_and_starts_again_with_the_workflow_it_had(server: PageServer) -> None:
    async with client_of(server) as client:
        await post(client, "/api/demo/start", {"workflow": "edges"})
        for _ in range(2):
            assert (await post(client, "/api/demo/stop", {}))[0] == 200
        state = await state_of(client)
        assert state["session"] is None
        assert not state["demo"]["running"]
        assert state["ended"]["reason"] == "stopped on the page"
        assert (await post(client, "/api/demo/start", {}))[1]["demo"]["workflow"] == "edges"
        assert (await online(client))["demo"]["running"]


async def test_starts_at_the_same_time_leave_one_demo(server: PageServer) -> None:
    async with client_of(server) as client:
        names = ["edges", "passthrough", "edges", "passthrough"]
        answers = await asyncio.gather(
            *(post(client, "/api/demo/start", {"workflow": name}) for name in names)
        )
        assert [status for status, _ in answers] == [200] * 4
        state = await online(client)
        assert [each["id"] for each in state["sessions"]] == ["demo"]


async def test_a_session_that_took_the_demos_name_is_left_alone(server: PageServer) -> None:
    async with client_of(server) as client:
        await post(client, "/api/demo/stop", {})
        status, _ = await post(client, "/stream/start", {"gateway_request_id": "demo", "params": {}})
        assert status == 200
        status, body = await post(client, "/api/demo/start", {})
        assert (status, body["code"]) == (409, "conflict")
        assert (await post(client, "/api/demo/stop", {}))[0] == 200
        assert (await state_of(client, "demo"))["session"]["decoder"]["name"] is None
        async with client.delete("/sessions/demo") as answer:
            assert answer.status == 200
        assert (await post(client, "/api/demo/start", {}))[0] == 200

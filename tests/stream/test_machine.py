"""What a program says of itself, its machine and its sessions, over a real server."""

import asyncio
import stat
import time

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given
from hypothesis import strategies as st
from quiet_session import quiet_session

from stream.gpus import FIELDS, GpuWatch, parse_gpus, read_gpus
from stream.machine import Identity, MachineRoutes
from stream.routes import StreamRoutes
from stream.states import Health
from stream.status import session_report
from stream.table import SessionTable

H200 = "0, GPU-8d2c, NVIDIA H200, 143771, 142000, 9.0, 37, 12, 570.86.15"
MIG = "1, GPU-77aa, NVIDIA H200, 143771, [N/A], 9.0, [N/A], [N/A], 570.86.15"


class Program:
    """A `stream.routes.Host` whose sessions have neither source nor sink."""

    def __init__(self):
        self.table = SessionTable(2, session_report)

    async def prepare(self, request):
        return None

    def make_session(self, session_id, request, prepared=None):
        return quiet_session(session_id)

    def health(self):
        return Health.OK if len(self.table) else Health.IDLE

    def ready(self):
        return True

    def problem(self):
        return None


def fake_tool(folder, script):
    path = folder / "gpu-tool"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
async def client(tmp_path):
    """A client of a program on a machine with two GPUs; ``runs`` counts how often the tool was run."""
    program = Program()
    tool = fake_tool(tmp_path, f"echo run >> {tmp_path}/runs\nprintf '{H200}\\n{MIG}\\n'")
    app = web.Application()
    routes = StreamRoutes(program)
    routes.register(app)
    identity = Identity("live-video-to-video", "mirror", "1.2.3", "4.5.6")
    MachineRoutes(program, identity, GpuWatch(tool)).register(app, routes)
    async with TestClient(TestServer(app)) as made:
        made.program, made.runs = program, tmp_path / "runs"
        yield made
        await program.table.close("the test is over")


async def get(client, path, status=200):
    answer = await client.get(path)
    assert answer.status == status
    return await answer.json()


async def start(client, name):
    answer = await client.post("/stream/start", json={}, headers={"X-Stream-Id": name})
    assert answer.status == 200


@pytest.mark.parametrize("slash", ["", "/"])
async def test_versions_and_hardware_have_the_bodies_that_orchestrators_read(client, slash):
    name = {"pipeline": "live-video-to-video", "model_id": "mirror"}
    common = {
        "id": "GPU-8d2c",
        "name": "NVIDIA H200",
        "memory_total": 143771 << 20,
        "memory_free": 142000 << 20,
    }
    assert await get(client, f"/version{slash}") == {**name, "version": "1.2.3"}
    assert await get(client, f"/app-version{slash}") == {"version": "4.5.6"}
    info = await get(client, f"/hardware/info{slash}")
    assert info["gpu_info"]["0"] == {**common, "major": 9, "minor": 0}
    stats = await get(client, f"/hardware/stats{slash}")
    assert stats["gpu_stats"]["0"] == {**common, "utilization_compute": 37, "utilization_memory": 12}
    assert stats["gpu_stats"]["1"]["utilization_compute"] == 0
    assert {key: info[key] for key in name} == name


async def test_the_tool_runs_once_for_all_who_ask_at_the_same_time(client):
    await asyncio.gather(*(get(client, "/hardware/stats") for _ in range(8)))
    assert client.runs.read_text().split() == ["run"]


@pytest.mark.parametrize("script", ["exit 9", "echo 'No devices were found'", "echo"])
async def test_a_machine_without_gpus_has_none(tmp_path, script):
    assert await read_gpus(fake_tool(tmp_path, script)) == []
    assert await read_gpus("no-such-tool-here") == []


async def test_a_tool_that_hangs_is_given_up(tmp_path):
    begun = time.monotonic()
    assert await read_gpus(fake_tool(tmp_path, "exec sleep 60"), timeout=0.2) == []
    assert time.monotonic() - begun < 10


@given(st.lists(st.lists(st.text(max_size=8), max_size=len(FIELDS) + 1).map(",".join)).map("\n".join))
def test_whatever_the_tool_prints_is_read_without_a_fault(text):
    for gpu in parse_gpus(text):
        assert gpu.info()["memory_total"] >= 0


async def test_sessions_are_listed_shown_and_ended(client):
    assert (await get(client, "/sessions"))["sessions"] == []
    await start(client, "one")
    await start(client, "two/2")
    listed = await get(client, "/sessions")
    assert [session["id"] for session in listed["sessions"]] == ["one", "two/2"]
    assert (listed["capacity"], listed["status"]) == (2, "OK")
    assert (await get(client, "/sessions/two%2F2"))["id"] == "two/2"
    for _ in range(2):
        answer = await client.delete("/sessions/one")
        body = await answer.json()
        assert (answer.status, body["session"]["reason"]) == (200, "stopped by request")
    assert (await get(client, "/sessions/one"))["reason"] == "stopped by request"
    assert [session["id"] for session in (await get(client, "/sessions"))["sessions"]] == ["two/2"]


async def test_a_session_that_never_was_is_not_found(client):
    assert (await get(client, "/sessions/none", 404))["code"] == "not_found"
    answer = await client.delete("/sessions/none")
    assert (answer.status, (await answer.json())["code"]) == (404, "not_found")

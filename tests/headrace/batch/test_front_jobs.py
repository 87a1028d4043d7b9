"""Requests that are answered later: taken, followed, fetched, cancelled, forgotten."""

import asyncio
import json

import pytest
from batch_stand_in import PNG, StandInEngine, batch_server, unlike, until

from headrace.batch.jobs import JobLimits

ASYNC = {"Prefer": "respond-async, wait=10"}


async def get(server, path, method="GET"):
    async with server.client.request(method, path) as response:
        return response.status, await response.json()


async def ended(server, path):
    async with asyncio.timeout(10):
        while (found := await get(server, path))[1]["status"] in ("queued", "processing"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return found


async def events(response):
    """The events of a stream as (name, data)."""
    found, name = [], None
    async for line in response.content:
        text = line.decode().rstrip("\n")
        if text.startswith("event: "):
            name = text[7:]
        elif text.startswith("data: "):
            found.append((name, json.loads(text[6:])))
    return found


@pytest.mark.parametrize("path", ["/text-to-image", "/llm", "/image-to-video"])
async def test_a_job_is_taken_at_once_and_answers_later(path):
    async with batch_server(StandInEngine(steps=3)) as server:
        server.engine.gate.clear()
        if path == "/image-to-video":
            status, body, headers = await server.form(path, {"image": PNG}, **ASYNC)
        else:
            fields = {"prompt": "x", "messages": [{"role": "user", "content": "hi"}]}
            status, body, headers = await server.json(path, fields, **ASYNC)
        assert status == 202
        assert headers["Preference-Applied"] == "respond-async"
        job = headers["Location"]
        assert job == f"/jobs/{body['request_id']}"
        await until(lambda: server.engine.running)
        assert (await get(server, job))[1]["status"] == "processing"
        status, told, _ = await server.json("/image-to-video/result", {"request_id": body["request_id"]})
        assert (status, told) == (202, {"status": "processing"})
        server.engine.gate.set()
        status, told = await ended(server, job)
        assert (status, told["status"]) == (200, "complete")
        assert told["progress"] == {"phase": "running", "step": 3, "of": 3, "note": ""}
        assert "choices" in told["result"] if path == "/llm" else told["result"]["images"][0]["url"]
        status, told, _ = await server.json("/image-to-video/result", {"request_id": body["request_id"]})
        assert (status, told["status"], "weights" in told["result"] or path == "/llm") == (
            200,
            "complete",
            True,
        )
        assert server.front.budget.held == 0


async def test_events_tell_each_step_and_the_answer():
    async with batch_server(StandInEngine(steps=4, pause=0.05)) as server:
        _, body, _ = await server.json("/text-to-image", {"prompt": "x", "output": "url"}, **ASYNC)
        async with server.client.get(f"{body['url']}/events") as response:
            assert response.content_type == "text/event-stream"
            found = await events(response)
        names = [name for name, _ in found]
        assert names[-1] == "complete"
        assert set(names[:-1]) == {"progress"}
        steps = [data["progress"]["step"] for _, data in found if "progress" in data]
        assert steps == sorted(steps)
        assert len(set(steps)) >= 3
        assert found[-1][1]["result"]["images"][0]["url"].startswith(server.url)
        async with server.client.get(f"{body['url']}/events") as response:
            assert [name for name, _ in await events(response)] == ["complete"]


async def test_events_tell_an_answer_that_cannot_be_handed_over():
    async with batch_server(StandInEngine()) as server:
        server.front.media.limit = 10
        _, body, _ = await server.json("/text-to-image", {"prompt": "x", "output": "url"}, **ASYNC)
        async with server.client.get(f"{body['url']}/events") as response:
            name, told = (await events(response))[-1]
        assert (name, told["status"]) == ("error", "complete")
        assert "10 are kept" in told["error"]["message"]


async def test_a_job_that_is_cancelled_ends_in_the_engine():
    async with batch_server(StandInEngine()) as server:
        server.engine.gate.clear()
        _, body, _ = await server.json("/text-to-image", {"prompt": "x"}, **ASYNC)
        await until(lambda: server.engine.running)
        async with server.client.get(f"{body['url']}/events") as response:
            assert (await get(server, body["url"], "DELETE"))[1]["status"] == "cancelled"
            assert (await events(response))[-1][0] == "cancelled"
        assert server.engine.cancelled == 1
        assert (await get(server, body["url"]))[1]["status"] == "cancelled"
        assert server.front.service.queue.running == 0
        assert (await get(server, "/jobs/nobodys", "DELETE"))[0] == 404


async def test_files_of_an_answer_are_kept_once_however_often_it_is_fetched():
    async with batch_server(StandInEngine()) as server:
        _, body, _ = await server.json("/text-to-image", {"prompt": "x", "output": "url"}, **ASYNC)
        _, first = await ended(server, body["url"])
        held = server.front.media.held
        assert held > 0
        assert (await get(server, body["url"]))[1] == first
        assert server.front.media.held == held
        server.front.media.close()
        _, third = await get(server, body["url"])
        assert third["result"]["images"] != first["result"]["images"]
        async with server.client.get(third["result"]["images"][0]["url"]) as response:
            assert response.status == 200


async def test_a_job_that_has_ended_can_be_forgotten():
    async with batch_server(StandInEngine()) as server:
        _, body, _ = await server.json("/text-to-image", {"prompt": "x"}, **ASYNC)
        await ended(server, body["url"])
        assert (await get(server, body["url"], "DELETE"))[1]["status"] == "complete"
        assert (await get(server, body["url"]))[0] == 404
        assert len(server.front.jobs) == 0


async def test_a_job_that_fails_says_why():
    async with batch_server(StandInEngine()) as server:
        server.engine.dies = True
        _, body, _ = await server.json("/text-to-image", {"prompt": "x"}, **ASYNC)
        _, told = await ended(server, body["url"])
        assert (told["status"], told["error"]["code"]) == ("failed", "engine_unavailable")
        _, told, _ = await server.json("/image-to-video/result", {"request_id": body["request_id"]})
        assert "SIGKILL" in told["result"]["error"]["message"]


async def test_what_cannot_line_up_is_refused_at_once():
    async with batch_server(StandInEngine(), batch_queue=1) as server:
        server.engine.gate.clear()
        answers = [await server.json("/text-to-image", unlike(number), **ASYNC) for number in range(5)]
        assert [status for status, _, _ in answers] == [202, 202, 202, 429, 429]
        assert len(server.front.jobs) == 3
        status, body, _ = await server.json("/text-to-image", {"prompt": "x", "model_id": "a/b"}, **ASYNC)
        assert status in (404, 429), body
        server.engine.gate.set()
        for _, body, _ in answers[:3]:
            assert (await ended(server, body["url"]))[1]["status"] == "complete"
        status, body, _ = await server.json("/text-to-image", {"prompt": "x", "model_id": "a/b"}, **ASYNC)
        assert status == 404


async def test_jobs_and_their_answers_are_bounded_and_expire():
    async with batch_server(StandInEngine()) as server:
        server.front.jobs.limits = JobLimits(jobs=3, bytes=150, seconds=1000)
        paths = []
        for _ in range(5):
            _, body, _ = await server.json("/text-to-image", {"prompt": "x"}, **ASYNC)
            await ended(server, body["url"])
            paths.append(body["url"])
        assert server.front.jobs.held <= 150
        assert [(await get(server, path))[0] for path in paths] == [404, 404, 404, 200, 200]
        server.front.jobs.limits = JobLimits(seconds=0)
        assert (await get(server, paths[-1]))[0] == 404
        assert len(server.front.jobs) == 0


async def test_jobs_end_with_the_worker():
    async with batch_server(StandInEngine()) as server:
        server.engine.gate.clear()
        for number in range(3):
            await server.json("/text-to-image", unlike(number), **ASYNC)
        await until(lambda: server.engine.running == 2)
    assert server.engine.cancelled == 2


async def test_uploads_of_jobs_are_given_back_however_they_end():
    async with batch_server(StandInEngine()) as server:
        server.engine.gate.clear()
        server.front.jobs.limits = JobLimits(jobs=1)
        status, body, _ = await server.form("/upscale", {"prompt": "", "image": PNG}, **ASYNC)
        assert (status, server.front.budget.held) == (202, len(PNG))
        assert (await server.form("/upscale", {"prompt": "", "image": PNG}, **ASYNC))[0] == 429
        assert server.front.budget.held == len(PNG)
        await get(server, body["url"], "DELETE")
        await until(lambda: server.front.budget.held == 0)

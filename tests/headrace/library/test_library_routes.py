"""Workflows over HTTP: reading, keeping, forgetting; who may; what a picture carries."""

from __future__ import annotations

import io
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from headrace.library.names import Library
from headrace.server import catalogue
from headrace.server.app import build_app
from headrace.server.definitions import WorkerDefinitions
from headrace.server.specs import Specs
from headrace.server.worker import Worker
from headrace.settings import Settings
from workflows import library

LIMIT = aiohttp.ClientTimeout(total=30)
EDGES = library.content("edges")


@asynccontextmanager
async def idle_worker(folder: Path, **settings: Any) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a worker whose engine was never started."""
    worker = Worker(Settings(workflows=folder, **settings))
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


async def ask(
    client: aiohttp.ClientSession, method: str, path: str, **more: Any
) -> tuple[int, dict[str, Any]]:
    async with client.request(method, path, **more) as answer:
        return answer.status, await answer.json()


async def put(client: aiohttp.ClientSession, name: str, content: bytes, **headers: str) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json", **headers}
    return await ask(client, "PUT", f"/workflows/{name}", data=content, headers=headers)


async def test_a_workflow_is_kept_as_it_came_listed_checked_and_forgotten(tmp_path: Path) -> None:
    content = EDGES.replace(b"\n", b"\n ")
    async with idle_worker(tmp_path / "kept") as client:
        status, answer = await put(client, "night%20sky", content)
        assert (status, answer["name"], answer["problems"]) == (201, "night sky", [])
        async with client.get("/workflows/night%20sky") as got:
            assert (got.status, await got.read()) == (200, content)
            tag = got.headers["ETag"]
        assert tag == f'"{answer["etag"]}"'
        async with client.get("/workflows/night%20sky", headers={"If-None-Match": tag}) as got:
            assert got.status == 304
        _, listed = await ask(client, "GET", "/workflows")
        first = listed["workflows"][0]
        assert (first["name"], first["kept"], first["problem"]) == ("night sky", True, None)
        assert first["steps"] == ["Stream in", "Edges", "Stream out"]
        assert [entry["name"] for entry in listed["workflows"][1:]] == library.names()
        status, schema = await ask(client, "GET", "/workflows/night%20sky/schema")
        assert (status, schema["properties"]["2.low_threshold"]["default"]) == (200, 0.4)
        assert (await put(client, "night%20sky", EDGES))[0] == 200
        assert (await ask(client, "DELETE", "/workflows/night%20sky"))[0] == 200
        for method, path in (("DELETE", ""), ("GET", ""), ("GET", "/schema")):
            status, answer = await ask(client, method, f"/workflows/night%20sky{path}")
            assert (status, answer["code"]) == (404, "not_found")


async def test_bundled_workflows_are_read_and_not_written(tmp_path: Path) -> None:
    async with idle_worker(tmp_path) as client:
        async with client.get("/workflows/edges") as got:
            assert await got.read() == EDGES
        for status, answer in (
            await put(client, "edges", EDGES),
            await ask(client, "DELETE", "/workflows/edges"),
        ):
            assert (status, answer["code"]) == (409, "conflict")
            assert "comes with Headrace" in answer["message"]
    assert os.listdir(tmp_path) == []


def test_a_missing_file_that_comes_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Library(tmp_path / "kept")
    models = tmp_path / "models"
    (models / "upscale_models").mkdir(parents=True)
    graph = library.load("edges")
    graph["9"] = {"class_type": "UpscaleModelLoader", "inputs": {"model_name": "larger.safetensors"}}
    graph["10"] = {
        "class_type": "ImageUpscaleWithModel",
        "inputs": {"image": ["2", 0], "upscale_model": ["9", 0]},
    }
    graph["3"]["inputs"]["images"] = ["10", 0]
    names.store.put("larger", json.dumps(graph).encode())
    monkeypatch.setattr(catalogue, "LOOK_AGAIN", 0.0)
    offered = catalogue.Catalogue(Specs(WorkerDefinitions(None, models), named=names.load), names)
    assert "larger.safetensors" in str(offered.entries()[0].problem)
    (models / "upscale_models" / "larger.safetensors").write_bytes(b"")
    assert offered.entries()[0].problem is None


async def test_what_cannot_run_is_kept_with_its_problems_and_what_is_no_workflow_is_not(
    tmp_path: Path,
) -> None:
    broken = library.load("edges")
    broken["2"]["class_type"] = "Cany"
    async with idle_worker(tmp_path) as client:
        status, answer = await put(client, "broken", json.dumps(broken).encode())
        assert (status, answer["problems"][0]["node_id"]) == (201, "2")
        assert (await ask(client, "GET", "/workflows"))[1]["workflows"][0]["problem"]
        assert (await ask(client, "GET", "/workflows/broken/schema"))[0] == 400
        for content in (b"{", b"[]", b"{}", b"3", b'{"a": 1}', b""):
            status, answer = await put(client, "none", content)
            assert status == 400, content
        status, answer = await put(client, "none", b'"' + b"x" * (9 << 20) + b'"')
        assert (status, answer["code"]) == (413, "too_large")
        assert "8388608" in answer["message"]
        for name in ("..%2Fout", ".hidden", "a.json", "%2Fetc%2Fpasswd"):
            status, answer = await put(client, name, EDGES)
            assert (status, answer["field"]) == (400, "name"), name
    assert set(os.listdir(tmp_path)) == {"broken.json", ".lock"}


async def test_etags_keep_two_writers_apart(tmp_path: Path) -> None:
    async with idle_worker(tmp_path) as client:
        _, first = await put(client, "a", EDGES, **{"If-None-Match": "*"})
        status, answer = await put(client, "a", EDGES, **{"If-None-Match": "*"})
        assert (status, answer["code"]) == (412, "precondition_failed")
        tag = f'"{first["etag"]}"'
        assert (await put(client, "a", EDGES + b" ", **{"If-Match": tag}))[0] == 200
        assert (await put(client, "a", EDGES, **{"If-Match": tag}))[0] == 412
        assert (await ask(client, "DELETE", "/workflows/a", headers={"If-Match": tag}))[0] == 412
        assert (await ask(client, "DELETE", "/workflows/a", headers={"If-Match": "*"}))[0] == 200


async def test_the_view_token_reads_and_the_full_one_writes(tmp_path: Path) -> None:
    async with idle_worker(tmp_path, token="full", view_token="view") as client:
        full, view = ({"Authorization": f"Bearer {token}"} for token in ("full", "view"))
        assert (await put(client, "a", EDGES))[0] == 401
        assert (await put(client, "a", EDGES, **view))[0] == 403
        assert (await put(client, "a", EDGES, **full))[0] == 201
        for path in ("/workflows", "/workflows/a", "/workflows/a/schema"):
            assert (await ask(client, "GET", path))[0] == 401
            assert (await ask(client, "GET", path, headers=view))[0] == 200
        for method, path in (("DELETE", ""), ("POST", "/save"), ("POST", "/run")):
            status, _ = await ask(client, method, f"/workflows/a{path}", headers=view, json={})
            assert status == 403, path


def carrying(kind: str, **texts: str) -> bytes:
    """A picture as ComfyUI saves it."""
    file, picture = io.BytesIO(), Image.new("RGB", (8, 8))
    if kind == "PNG":
        info = PngInfo()
        for key, text in texts.items():
            info.add_text(key, text)
        picture.save(file, kind, pnginfo=info)
    else:
        exif = picture.getexif()
        for tag, (key, text) in zip((0x0110, 0x010F), texts.items(), strict=False):
            exif[tag] = f"{key}:{text}"
        picture.save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
async def test_a_picture_that_carries_a_workflow_is_checked_and_kept(tmp_path: Path, kind: str) -> None:
    picture = carrying(kind, prompt=EDGES.decode())
    headers = {"Content-Type": f"image/{kind.lower()}"}
    async with idle_worker(tmp_path) as client:
        status, found = await ask(client, "POST", "/workflows/check", data=picture, headers=headers)
        assert (status, found["problems"], found["workflow"]) == (200, [], json.loads(EDGES))
        assert (await put(client, "pictured", picture, **headers))[0] == 201
        async with client.get("/workflows/pictured") as got:
            assert await got.json() == json.loads(EDGES)
        status, answer = await ask(client, "POST", "/workflows/check", data=carrying(kind), headers=headers)
        assert (status, answer["code"]) == (400, "invalid_workflow")
        assert "carries no workflow" in answer["message"]


async def test_values_are_saved_into_the_file_and_nothing_else_of_it_changes(tmp_path: Path) -> None:
    workflow = library.load("edges")
    workflow["2"]["_meta"]["note"] = ["left", "alone"]
    workflow["9"] = {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}}
    async with idle_worker(tmp_path) as client:
        await put(client, "mine", json.dumps(workflow).encode())
        body = {"values": {"Edges.low_threshold": 0.1}}
        status, answer = await ask(client, "POST", "/workflows/mine/save", json=body)
        assert (status, answer["changed"]) == (200, ["2.low_threshold"])
        workflow["2"]["inputs"]["low_threshold"] = 0.1
        async with client.get("/workflows/mine") as got:
            assert await got.json() == workflow
        refused: list[tuple[Any, int]] = [
            ({"values": {"2.low_threshold": 7}}, 400),
            ({"values": {"nonsense": 7}}, 400),
            ({"values": []}, 400),
            ({}, 400),
            ([], 400),
            ({"session": "x", "values": {}}, 400),
            ({"session": "nobody"}, 404),
            ({"session": 3}, 400),
        ]
        for body, expected in refused:
            status, _ = await ask(client, "POST", "/workflows/mine/save", json=body)
            assert status == expected, body
        assert (await ask(client, "POST", "/workflows/edges/save", json={"session": "x"}))[0] == 409
        assert (await ask(client, "POST", "/workflows/gone/save", json={"values": {}}))[0] == 404
        async with client.get("/workflows/mine") as got:
            assert await got.json() == workflow


@pytest.mark.parametrize("way", ["start", "offer", "whip", "demo"])
async def test_a_kept_name_is_understood_wherever_a_bundled_one_is(tmp_path: Path, way: str) -> None:
    broken = library.load("edges")
    broken["2"]["class_type"] = "Cany"
    (tmp_path / "mine.json").write_text(json.dumps(broken))
    sdp = {"sdp": SDP, "type": "offer"}
    async with idle_worker(tmp_path, demo=True) as client:
        # Idle as the worker is, its words show that it looked into the file.
        asked: dict[str, tuple[str, dict[str, Any]]] = {
            "start": ("/stream/start", {"json": {"params": {"workflow": "mine"}}}),
            "offer": ("/offer", {"json": {"offer": sdp, "workflow": "mine"}}),
            "whip": (
                "/whip/x?workflow=mine",
                {"data": SDP, "headers": {"Content-Type": "application/sdp"}},
            ),
            "demo": ("/api/demo/start", {"json": {"workflow": "mine"}}),
        }
        path, more = asked[way]
        async with client.post(path, **more) as answer:
            assert answer.status == 400
            assert "Cany" in await answer.text()


SDP = """v=0
o=- 1 1 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0
m=video 9 UDP/TLS/RTP/SAVPF 96
c=IN IP4 0.0.0.0
a=mid:0
a=sendonly
a=rtcp-mux
a=rtpmap:96 VP8/90000
a=ice-ufrag:abcd
a=ice-pwd:abcdefghijklmnopqrstuvwx
a=fingerprint:sha-256 {}
a=setup:actpass
""".format(":".join(["AB"] * 32)).replace("\n", "\r\n")

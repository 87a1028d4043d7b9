"""The OpenAPI document: checked in, and true of the routes; and what a router may choose from."""

import json
import re
from pathlib import Path

from batch_stand_in import StandInEngine, batch_server

from headrace.batch.defaults import PIPELINES
from headrace.batch.openapi import document
from headrace.server.app import build_app
from headrace.server.worker import Worker
from headrace.settings import Settings

CHECKED_IN = Path(__file__).parents[3] / "docs" / "openapi.json"


def test_the_document_in_the_docs_is_that_of_the_code():
    checked_in = json.loads(CHECKED_IN.read_text())
    # The version is that of the installation.
    wanted = {**document(), "info": {**document()["info"], "version": checked_in["info"]["version"]}}
    assert checked_in == wanted, "run python -m headrace.batch.openapi > docs/openapi.json"


async def test_every_path_of_the_document_is_a_route_of_the_worker():
    routes = {
        (route.method.lower(), re.sub(r":[^}]*", "", route.resource.canonical))
        for route in build_app(Worker(Settings())).router.routes()
    }
    told = [
        (method, path)
        for path, item in document()["paths"].items()
        for method in item
        if method != "parameters"
    ]
    assert set(told) <= routes


def test_every_reference_leads_somewhere():
    text = json.dumps(document())
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert names == set(document()["components"]["schemas"]) & names
    assert "$defs" not in text


async def test_the_document_is_served():
    async with batch_server(StandInEngine()) as server, server.client.get("/openapi.json") as response:
        assert (await response.json()) == document()


async def test_capabilities_say_what_is_warm_and_how_busy_it_is():
    async with batch_server(StandInEngine()) as server:
        async with server.client.get("/capabilities") as response:
            told = await response.json()
        assert set(told["pipelines"]) == set(PIPELINES)
        llm = told["pipelines"]["llm"]
        assert llm["default_available"] is False
        assert llm["substitute"] == "demo:smollm2"
        assert [model["state"] for model in llm["models"]] == ["cold"]
        assert llm["min_memory"] > 1 << 30
        assert told["queue"]["limit"] == 20
        await server.json("/llm", {"messages": [{"role": "user", "content": "hi"}]})
        async with server.client.get("/capabilities/") as response:
            (model,) = (await response.json())["pipelines"]["llm"]["models"]
        assert (model["id"], model["state"], model["in_use"]) == ("demo:smollm2", "warm", 0)
        assert model["seconds"] is not None
    async with batch_server(StandInEngine(), demo_weights=False) as server:
        async with server.client.get("/capabilities") as response:
            told = await response.json()
        assert all(entry["capacity"] == 0 for entry in told["pipelines"].values() if not entry["models"])
        assert not told["pipelines"]["llm"]["available"]

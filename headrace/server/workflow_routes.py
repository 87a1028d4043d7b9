"""Workflows by name: listing, checking, keeping, and saving what was tuned on a running stream."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from aiohttp import web

from headrace.library.files import MAX_PICTURE, text_of, to_keep
from headrace.library.names import Library
from headrace.library.store import Kept, checked_name
from headrace.library.tuned import with_values
from headrace.server.bodies import read_bytes
from headrace.server.catalogue import Catalogue, examined, processor_entry
from headrace.server.pipelines import target_of
from headrace.server.specs import Specs
from headrace.server.switching import running
from headrace.settings import Settings
from stream.answers import answering
from stream.errors import Conflict, InvalidInput, InvalidWorkflow
from stream.routes import read_json
from stream.session import Session
from stream.table import SessionTable
from workflows import reading
from workflows.changes import differing_values
from workflows.graph import Graph
from workflows.parameters import Place

JSON = "application/json"


class Host(Protocol):
    """What the routes need of the worker."""

    settings: Settings
    specs: Specs
    library: Library
    table: SessionTable


class WorkflowRoutes:
    """``/workflows`` and what is below it, but for running one."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._names = host.library
        self._catalogue = Catalogue(host.specs, host.library)

    def register(self, app: web.Application) -> None:
        app.router.add_get("/workflows", answering(self.list))
        app.router.add_post("/workflows/check", answering(self.check))
        app.router.add_get("/workflows/{id}", answering(self.get))
        app.router.add_put("/workflows/{id}", answering(self.put))
        app.router.add_delete("/workflows/{id}", answering(self.delete))
        app.router.add_get("/workflows/{id}/schema", answering(self.schema))
        app.router.add_post("/workflows/{id}/save", answering(self.save))

    # -- reading ---------------------------------------------------------------------------------------

    async def list(self, request: web.Request) -> web.Response:
        """Kept workflows, then bundled ones: name, title, description, steps, why one cannot run. A processor
        that the worker was started for comes first."""
        entries = await asyncio.to_thread(self._catalogue.entries)
        target = target_of(self._host.settings)
        first = [processor_entry(target)] if target is not None else []
        return web.json_response({"workflows": [entry.as_dict() for entry in (*first, *entries)]})

    async def check(self, request: web.Request) -> web.Response:
        """Whether a workflow can run here: its nodes, and every problem of it.

        It comes as ``{"workflow": ...}`` with JSON data or text, or as the file itself: JSON as another type
        than application/json, or a picture that carries one. What came as a file is answered as ``workflow``
        too. What can be read is answered with status 200 even when it cannot run; its problems say why.
        """
        if request.content_type == JSON:
            body = await read_json(request)
            if not isinstance(body, dict) or "workflow" not in body:
                raise InvalidInput("expected an object with the workflow under `workflow`", field="workflow")
            return web.json_response(await asyncio.to_thread(examined, body["workflow"], self._host.specs))
        data, _ = await self._brought(request)
        found = await asyncio.to_thread(examined, data, self._host.specs)
        return web.json_response({**found, "workflow": data})

    async def get(self, request: web.Request) -> web.Response:
        """A workflow as it was kept, byte for byte, with its ETag."""
        content, kept = await asyncio.to_thread(self._names.read, request.match_info["id"])
        headers = {"ETag": f'"{kept.etag}"', "Cache-Control": "no-cache"}
        if any(tag.value == kept.etag for tag in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        return web.Response(body=content, content_type=JSON, charset="utf-8", headers=headers)

    async def schema(self, request: web.Request) -> web.Response:
        """The live parameters as JSON Schema, with the file's values as defaults."""
        schema = await asyncio.to_thread(self._schema, request.match_info["id"])
        return web.json_response(schema, headers={"Cache-Control": "no-cache"})

    def _schema(self, name: str) -> dict[str, Any]:
        specs = self._host.specs
        return specs.parameters(specs.of_workflow(self._names.load(name))).schema()

    # -- writing ---------------------------------------------------------------------------------------

    async def put(self, request: web.Request) -> web.Response:
        """Keep a workflow as it comes: JSON in either format, or a picture that carries one.

        ``If-Match`` and ``If-None-Match: *`` guard against overwriting. What cannot run here is kept too; the
        answer has its problems.
        """
        name = self._own_name(request)
        data, content = await self._brought(request)
        found = await asyncio.to_thread(examined, data, self._host.specs)
        if not found["nodes"]:
            raise InvalidWorkflow("this JSON has no nodes; it is no workflow", field="workflow")
        kept, created = await self._keep(request, name, content)
        return _written(kept, created, problems=found["problems"])

    async def delete(self, request: web.Request) -> web.Response:
        """Forget a kept workflow. Streams that run it go on."""
        name = self._own_name(request)
        await asyncio.to_thread(self._names.store.remove, name, match=_match_of(request))
        return web.json_response({"status": "success", "name": name})

    async def save(self, request: web.Request) -> web.Response:
        """Keep what was tuned: the workflow that ``session`` runs with the values that hold now, or the one
        of this name with ``values``. The rest of its JSON stays as it is, in its own format.

        A name that has another workflow is only overwritten where ``replace`` is true (`Conflict`).
        """
        name = self._own_name(request)
        body = await read_json(request)
        if not isinstance(body, dict):
            raise InvalidInput("the body is an object with `session` or `values`", field="body")
        wanted, values = body.get("session"), body.get("values")
        if (wanted is None) == (values is None):
            raise InvalidInput("give a session, or values for the kept workflow", field="session")
        if values is not None and not isinstance(values, dict):
            raise InvalidInput("values is an object of parameters and values", field="values")
        if wanted is not None and not isinstance(wanted, str):
            raise InvalidInput("session is the id of a session", field="session")
        if wanted is None:
            base, places = await asyncio.to_thread(self._named_values, name, values or {})
        else:
            session = self._host.table.find(wanted)
            base, places = await asyncio.to_thread(_of_session, session, self._host.specs)
            if body.get("replace") is not True:
                await asyncio.to_thread(self._check_same, name, base)
        data = await asyncio.to_thread(with_values, base, places, self._read)
        kept, created = await self._keep(request, name, text_of(data))
        return _written(kept, created, changed=sorted(f"{node}.{key}" for node, key in places))

    def _named_values(self, name: str, values: dict[str, Any]) -> tuple[Any, dict[tuple[str, str], Any]]:
        specs, base = self._host.specs, self._names.load(name)
        places = specs.parameters(specs.of_workflow(base)).resolve(values)
        return base, {(place.node_id, place.input): value for place, value in places.items()}

    def _check_same(self, name: str, base: Any) -> None:
        """Raise `Conflict` where ``name`` has a workflow that differs from ``base`` in more than values."""
        if name not in self._names.store:
            return
        there = self._names.store.load(name)
        if there == base or differing_values([self._read(there)], [self._read(base)]) is not None:
            return
        raise Conflict(
            f"{name!r} is another workflow than the one that runs; `replace` overwrites it", field="name"
        )

    def _read(self, data: Any) -> Graph:
        definitions = self._host.specs.definitions
        graph, _ = reading.read(data, definitions.of(definitions.fields_for(data)))
        return graph

    async def _keep(self, request: web.Request, name: str, content: bytes) -> tuple[Kept, bool]:
        create = any(tag.value == "*" for tag in request.if_none_match or ())
        return await asyncio.to_thread(
            self._names.store.put, name, content, match=_match_of(request), create=create
        )

    def _own_name(self, request: web.Request) -> str:
        name = checked_name(request.match_info["id"])
        self._names.check_own(name)
        return name

    async def _brought(self, request: web.Request) -> tuple[Any, bytes]:
        """The workflow in a file that came as the body, and what is kept of it."""
        content = await read_bytes(request, MAX_PICTURE)
        return await asyncio.to_thread(to_keep, content, self._count_problems)

    def _count_problems(self, data: Any) -> int:
        return len(examined(data, self._host.specs)["problems"])


def _of_session(session: Session, specs: Specs) -> tuple[Any, dict[tuple[str, str], Any]]:
    """What a session runs, as the data that it came as, and the values that differ from those in it."""
    found = running(session, specs)
    base = found.workflow
    if isinstance(base, list) and len(base) != 1:
        raise Conflict(
            f"the session runs {len(base)} workflows in a row; each is saved by itself, by its `values`",
            field="session",
        )
    base = base[0] if isinstance(base, list) else base
    before = specs.parameters({**found.spec, "workflow": base})
    written: dict[Place, Any] = {each.place: each.value for each in before.parameters.values()}
    now = {each.place: each.value for each in found.table.parameters.values()}
    changed = {place: value for place, value in now.items() if written.get(place) != value}
    return base, {(place.node_id, place.input): value for place, value in changed.items()}


def _match_of(request: web.Request) -> str | None:
    tags = request.if_match
    return None if not tags else str(tags[0].value)


def _written(kept: Kept, created: bool, **more: Any) -> web.Response:
    body = {"status": "success", "name": kept.name, "etag": kept.etag, "created": created, **more}
    return web.json_response(body, status=201 if created else 200, headers={"ETag": f'"{kept.etag}"'})

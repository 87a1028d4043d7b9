"""The page at ``/`` and the few routes that it alone needs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

from aiohttp import web

from headrace.engine.guardian import Engine
from headrace.server.catalogue import catalogue
from headrace.server.demo import DEMO_ID, Demo
from headrace.server.page_state import session_state_of_page
from headrace.version import package_version
from stream.answers import answering
from stream.errors import InvalidInput, NotFound
from stream.routes import read_json
from stream.session import Session
from stream.states import Health
from stream.table import SessionTable

FILES = {
    "/": ("index.html", "text/html"),
    "/page/style.css": ("style.css", "text/css"),
    "/page/app.js": ("app.js", "text/javascript"),
}
"""What is answered without a token: it says nothing of this worker."""

HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Host(Protocol):
    """What the page needs of the worker."""

    table: SessionTable
    engine: Engine
    demo: Demo | None

    def health(self) -> Health: ...


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    content_type: str
    etag: str


class PageRoutes:
    """The page's files, the bundled workflows, the demo, and all that the page shows in one answer."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._version = package_version()
        self._files = {path: _read(*about) for path, about in FILES.items()}

    def register(self, app: web.Application) -> None:
        for path in FILES:
            app.router.add_get(path, self.file)
        app.router.add_get("/workflows", self.workflows)
        app.router.add_get("/api/page", answering(self.state))
        app.router.add_post("/api/demo/start", answering(self.start_demo))
        app.router.add_post("/api/demo/stop", answering(self.stop_demo))

    # -- files -----------------------------------------------------------------------------------------

    async def file(self, request: web.Request) -> web.Response:
        file = self._files[request.path]
        headers = {**HEADERS, "ETag": f'"{file.etag}"'}
        if any(tag.value == file.etag for tag in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        return web.Response(body=file.body, content_type=file.content_type, charset="utf-8", headers=headers)

    # -- data ------------------------------------------------------------------------------------------

    async def workflows(self, request: web.Request) -> web.Response:
        """The bundled workflows: name, title, description, steps, and why one cannot run."""
        entries = catalogue(local=self._host.engine.settings.python is None)
        return web.json_response({"workflows": [entry.as_dict() for entry in entries]})

    async def state(self, request: web.Request) -> web.Response:
        """Worker, engine, demo, the ids of all sessions, and one session in full.

        That is the session named by ``session``, else the demo, else the oldest. One that has ended lately
        is answered with its last figures under ``ended``.
        """
        host, wanted = self._host, request.query.get("session")
        session = self._chosen(wanted)
        ended = host.table.last_status(wanted or DEMO_ID) if session is None else None
        body = {
            "version": self._version,
            "health": str(host.health()),
            "capacity": host.table.capacity,
            "engine": _engine(host.engine),
            "demo": host.demo.describe() if host.demo is not None else None,
            "sessions": [{"id": each.id, "state": str(each.state)} for each in host.table],
            "session": session_state_of_page(session, self._schema(session)) if session is not None else None,
            "ended": ended,
        }
        return web.json_response(body, headers={"Cache-Control": "no-store"})

    def _chosen(self, wanted: str | None) -> Session | None:
        host = self._host
        if wanted is None and host.demo is not None and host.demo.running is not None:
            return host.demo.running
        for session in host.table:
            if wanted in (None, session.id):
                found: Session = session
                return found
        return None

    def _schema(self, session: Session) -> dict[str, Any]:
        demo = self._host.demo
        if demo is not None and session is demo.running:
            return demo.schema()
        return session.processor.info().schema

    # -- the demo --------------------------------------------------------------------------------------

    async def start_demo(self, request: web.Request) -> web.Response:
        """Start the demo, or start it anew with the bundled workflow that ``workflow`` names."""
        demo = self._demo()
        body = await read_json(request)
        workflow = body.get("workflow") if isinstance(body, dict) else None
        if not isinstance(body, dict) or not (workflow is None or isinstance(workflow, str)):
            raise InvalidInput("workflow must be the name of a bundled workflow", field="workflow")
        await demo.start(workflow)
        return web.json_response({"status": "success", "demo": demo.describe()})

    async def stop_demo(self, request: web.Request) -> web.Response:
        demo = self._demo()
        # A body of JSON, so that no other site's form can ask for it.
        await read_json(request)
        await demo.stop()
        return web.json_response({"status": "success", "demo": demo.describe()})

    def _demo(self) -> Demo:
        if self._host.demo is None:
            raise NotFound("this worker has no demo; `headrace serve --demo` has")
        return self._host.demo


def _engine(engine: Engine) -> dict[str, Any]:
    facts = engine.facts
    return {
        "state": engine.state,
        "message": engine.describe(),
        "restarts": engine.restarts,
        "device": facts.device_name if facts is not None else None,
    }


def _read(name: str, content_type: str) -> _File:
    body = (resources.files("headrace") / "web" / name).read_bytes()
    return _File(body, content_type, hashlib.sha256(body).hexdigest()[:16])

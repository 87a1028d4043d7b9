"""The page at ``/`` and the few routes that it alone needs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePath
from typing import Any, Protocol

from aiohttp import web

from headrace.engine.guardian import Engine
from headrace.library.names import Library
from headrace.server.demo import DEMO_ID, Demo
from headrace.server.page_state import RunningWorkflows, session_state_of_page
from headrace.server.pipelines import target_of
from headrace.server.specs import Specs
from headrace.server.tls import names_of_this_machine
from headrace.server.webrtc import WebRtc
from headrace.settings import Settings
from headrace.version import package_version
from stream.access import is_loopback
from stream.answers import answering
from stream.errors import InvalidInput, NotFound
from stream.routes import read_json
from stream.session import Session
from stream.states import Health
from stream.table import SessionTable

MAX_TITLE = 120
OF_PAGES = "page-"
"""How the names of the sessions begin that pages make for themselves."""
CONTENT_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


def _files() -> dict[str, tuple[str, str]]:
    """Path on the worker to file name and content type, for every file of the page."""
    found = {"/": ("index.html", "text/html")}
    for entry in sorted((resources.files("headrace") / "web").iterdir(), key=lambda entry: entry.name):
        content_type = CONTENT_TYPES.get(PurePath(entry.name).suffix)
        if content_type is not None and entry.name != "index.html":
            found[f"/page/{entry.name}"] = (entry.name, content_type)
    return found


FILES = _files()
"""What is answered without a token: it says nothing of this worker."""

HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; "
        "img-src 'self' data: blob:; media-src 'self' blob:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "camera=(self), microphone=(self), display-capture=(self), fullscreen=(self)",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Host(Protocol):
    """What the page needs of the worker."""

    settings: Settings
    specs: Specs
    library: Library
    table: SessionTable
    engine: Engine
    demo: Demo | None
    webrtc: WebRtc

    def health(self) -> Health: ...


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    content_type: str
    etag: str


class PageRoutes:
    """The page's files, the demo, and all that the page shows in one answer."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._version = package_version()
        self._files = {path: _read(*about) for path, about in FILES.items()}
        self._running = RunningWorkflows(host.specs, host.library)
        self._hosts = _outward_names(host.settings.host)

    def register(self, app: web.Application) -> None:
        for path in FILES:
            app.router.add_get(path, self.file)
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

    async def state(self, request: web.Request) -> web.Response:
        """Worker, engine, demo, the ids of all sessions, and one session in full.

        That is the session named by ``session``, else the demo, else the oldest that no page has made for
        itself. One that has ended lately is answered with its last figures under ``ended``.
        """
        host, wanted = self._host, request.query.get("session")
        session = self._chosen(wanted)
        runs = None if session is None else await self._running.of(session)
        ended = host.table.last_status(wanted or DEMO_ID) if session is None else None
        body = {
            "version": self._version,
            "health": str(host.health()),
            "capacity": host.table.capacity,
            "hosts": self._hosts,
            "engine": _engine(host.engine),
            "demo": host.demo.describe() if host.demo is not None else None,
            "sessions": [{"id": each.id, "state": str(each.state)} for each in host.table],
            "session": session_state_of_page(session, runs) if session and runs else None,
            "failure": self._failure_of(wanted) if wanted else None,
            "workflow": target_of(host.settings) or host.settings.workflow,
            "ended": ended,
        }
        return web.json_response(body, headers={"Cache-Control": "no-store"})

    def _chosen(self, wanted: str | None) -> Session | None:
        host = self._host
        if wanted is None and host.demo is not None and host.demo.running is not None:
            return host.demo.running
        for session in host.table:
            # Nobody is shown another person's camera unasked.
            if session.id == wanted or (wanted is None and not session.id.startswith(OF_PAGES)):
                found: Session = session
                return found
        return None

    def _failure_of(self, session_id: str) -> str | None:
        """Why the last connection to that session did not come about, where one lately did not."""
        failures = [each for each in self._host.webrtc.peers.failures if each["session"] == session_id]
        return failures[-1]["reason"] if failures else None

    # -- the demo --------------------------------------------------------------------------------------

    async def start_demo(self, request: web.Request) -> web.Response:
        """Start the demo, or start it anew with ``workflow``: a bundled one's name, or one as JSON data,
        which is called ``title``."""
        demo = self._demo()
        body = await read_json(request)
        workflow = body.get("workflow") if isinstance(body, dict) else None
        if not isinstance(body, dict) or not isinstance(workflow, str | dict | None):
            raise InvalidInput("workflow must be the name of a bundled workflow, or one", field="workflow")
        title = body.get("title")
        await demo.start(workflow, title=title[:MAX_TITLE] if isinstance(title, str) else None)
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


def _outward_names(host: str) -> list[str]:
    """Under which names other machines reach this worker; none when it listens to this machine alone."""
    if is_loopback(host):
        return []
    return [name for name in names_of_this_machine(host) if not is_loopback(name)]


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

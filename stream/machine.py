"""What a program says of itself and its machine, and the list of its sessions."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from stream.errors import Conflict
from stream.gpus import GpuWatch
from stream.logs import about_session
from stream.routes import Host, StreamRoutes
from stream.status import session_report

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """What the program calls itself: ``pipeline`` and ``model_id`` as an orchestrator knows them, the
    ``version`` of Headrace and the ``app_version`` of what was built with it."""

    pipeline: str
    model_id: str
    version: str
    app_version: str


class MachineRoutes:
    """``/version``, ``/app-version``, ``/hardware/...`` with ai-runner's and PyTrickle's bodies, and
    ``/sessions``."""

    def __init__(self, host: Host, identity: Identity, gpus: GpuWatch | None = None) -> None:
        self._host = host
        self._identity = identity
        self._gpus = gpus or GpuWatch()

    def register(self, app: web.Application, routes: StreamRoutes) -> None:
        """Add the routes; ``routes`` gives errors their form."""
        for slash in ("", "/"):
            app.router.add_get(f"/version{slash}", self.version)
            app.router.add_get(f"/app-version{slash}", self.app_version)
            app.router.add_get(f"/hardware/info{slash}", self.hardware_info)
            app.router.add_get(f"/hardware/stats{slash}", self.hardware_stats)
        app.router.add_get("/sessions", routes.answering(self.sessions))
        app.router.add_get("/sessions/{id}", routes.answering(self.session))
        app.router.add_delete("/sessions/{id}", routes.answering(self.stop_session))

    # -- the machine -----------------------------------------------------------------------------------

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({**self._name(), "version": self._identity.version})

    async def app_version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": self._identity.app_version})

    async def hardware_info(self, request: web.Request) -> web.Response:
        gpus = {str(gpu.index): gpu.info() for gpu in await self._gpus.gpus()}
        return web.json_response({**self._name(), "gpu_info": gpus})

    async def hardware_stats(self, request: web.Request) -> web.Response:
        gpus = {str(gpu.index): gpu.stats() for gpu in await self._gpus.gpus()}
        return web.json_response({**self._name(), "gpu_stats": gpus})

    def _name(self) -> dict[str, Any]:
        return {"pipeline": self._identity.pipeline, "model_id": self._identity.model_id}

    # -- sessions --------------------------------------------------------------------------------------

    async def sessions(self, request: web.Request) -> web.Response:
        """Every running session with its figures."""
        table = self._host.table
        return web.json_response(
            {
                "status": str(self._host.health()),
                "capacity": table.capacity,
                "sessions": [session_report(session) for session in table],
            }
        )

    async def session(self, request: web.Request) -> web.Response:
        """One session, or the last figures of one that ended lately."""
        session_id, table = request.match_info["id"], self._host.table
        last = table.last_status(session_id)
        return web.json_response(last if last is not None else session_report(table.find(session_id)))

    async def stop_session(self, request: web.Request) -> web.Response:
        """End a session and answer with its last figures; 404 for one that never was."""
        session_id, table = request.match_info["id"], self._host.table
        last = table.last_status(session_id)
        if last is None:
            session = table.find(session_id)
            with about_session(session_id):
                log.info("session %s is stopped by request", session_id)
            session.stop("stopped by request")
            if not await table.wait_ended(session_id):
                raise Conflict(f"session {session_id!r} is still closing")
            last = table.last_status(session_id)
        message = "Session stopped successfully"
        return web.json_response({"status": "success", "message": message, "session": last})

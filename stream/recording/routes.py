"""The HTTP routes of recordings: start, stop, list, fetch (with ranges) and remove."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import hdrs, web

from stream.answers import answering
from stream.errors import Conflict, InvalidInput
from stream.logs import about_session
from stream.recording.recorder import Recorder, Recording
from stream.recording.writer import free_bytes
from stream.routes import read_json
from stream.server_events import named_session
from stream.table import SessionTable

log = logging.getLogger(__name__)

_HEADERS = {"Cross-Origin-Resource-Policy": "same-origin", "X-Content-Type-Options": "nosniff"}


class RecordingRoutes:
    """Handlers over a `Recorder`. A stream is named in the body, by ``stream_id`` or ``X-Stream-Id``, or by
    nothing where only one runs."""

    def __init__(self, table: SessionTable, recorder: Recorder) -> None:
        self._table = table
        self._recorder = recorder

    def register(self, app: web.Application) -> None:
        for prefix in ("", "/api"):
            path = f"{prefix}/stream/record"
            app.router.add_post(path, answering(self.start))
            app.router.add_delete(path, answering(self.stop))
            app.router.add_get(path, answering(self.status))
        app.router.add_get("/recordings", answering(self.list))
        app.router.add_get("/recordings/{file}", answering(self.fetch))
        app.router.add_delete("/recordings/{file}", answering(self.remove))

    async def start(self, request: web.Request) -> web.Response:
        """Record ``what`` (in, out or both); answers once the files are there, or after a moment without."""
        body = await read_json(request)
        if not isinstance(body, dict):
            raise InvalidInput(f"expected a JSON object, got {type(body).__name__}", field="body")
        named = body.get("stream_id") or named_session(request)
        if named is not None and not isinstance(named, str):
            raise InvalidInput(f"stream_id is a text, not {repr(named)[:60]}", field="stream_id")
        session = self._table.find(named)
        with about_session(session.id):
            started = await self._recorder.start(session, body.get("what", "out"), body.get("name"))
        return web.json_response(_answer(started), status=201)

    async def stop(self, request: web.Request) -> web.Response:
        """End the recordings of a stream; the files are whole when this is answered."""
        named = named_session(request)
        if named is None:
            named = self._table.find(None).id
        ended = await self._recorder.stop(named, request.query.get("what", "both"))
        return web.json_response(_answer(ended))

    async def status(self, request: web.Request) -> web.Response:
        """Recordings under way, of one stream or of all."""
        return web.json_response(_answer(self._recorder.active(named_session(request))))

    async def list(self, request: web.Request) -> web.Response:
        """All files, newest first, with the bytes that are free."""
        folder, writing = self._recorder.folder, self._recorder.writing()
        files = await asyncio.to_thread(folder.list)
        entries = [{**entry, "recording": entry["file"] in writing} for entry in files]
        free = await asyncio.to_thread(free_bytes, folder.path) if folder.path.is_dir() else None
        return web.json_response({"recordings": entries, "free_bytes": free})

    async def fetch(self, request: web.Request) -> web.StreamResponse:
        """The file, or the range of it that is asked for (RFC 9110, 14); readable while it is written to."""
        path = self._recorder.folder.find(request.match_info["file"])
        disposition = "inline" if "inline" in request.query else "attachment"
        headers = {**_HEADERS, hdrs.CONTENT_DISPOSITION: f'{disposition}; filename="{path.name}"'}
        if path.name in self._recorder.writing():
            headers[hdrs.CACHE_CONTROL] = "no-store"
        return web.FileResponse(path, headers=headers)

    async def remove(self, request: web.Request) -> web.Response:
        name = request.match_info["file"]
        if name in self._recorder.writing():
            raise Conflict(f"{name} is being recorded; stop that first", field="file")
        await asyncio.to_thread(self._recorder.folder.remove, name)
        return web.json_response({"status": "success", "removed": name})


def _answer(recordings: list[Recording]) -> dict[str, Any]:
    """``files``: the names of all files so far; ``recordings``: each direction with its files in full."""
    about = [recording.as_dict() for recording in recordings]
    return {"files": [file["file"] for each in about for file in each["files"]], "recordings": about}

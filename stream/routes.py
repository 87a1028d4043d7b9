"""The HTTP routes that start, stop and steer streams, with PyTrickle's and ai-runner's answers."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from aiohttp import web

from stream.errors import HeadraceError, InvalidInput, NotFound, TooLarge
from stream.ingest import Ingest
from stream.logs import about_session
from stream.requests import StreamStart, parse_start
from stream.session import Session, SideChannels
from stream.states import Health
from stream.status import pytrickle_fps, pytrickle_state, session_report
from stream.table import SessionTable, new_session_id

log = logging.getLogger(__name__)

MAX_BODY = 10 << 20
"""Bytes of a request body; go-livepeer's own limit for stream bodies."""
BODY_TIMEOUT = 20.0
"""Seconds in which a body must have come."""
MAX_ID = 256

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Host(Protocol):
    """What the routes need of the program that they belong to."""

    table: SessionTable

    async def prepare(self, request: StreamStart) -> Any:
        """What of a request takes long to check, so that other streams go on meanwhile; raises as
        `make_session` does, which is handed what this gives."""
        ...

    def make_session(
        self,
        session_id: str,
        request: StreamStart,
        *,
        ingest: Ingest | None = None,
        side: SideChannels | None = None,
        prepared: Any = None,
    ) -> Session:
        """A session for that request, not yet started; raises `HeadraceError` when it cannot run."""
        ...

    def health(self) -> Health: ...
    def ready(self) -> bool: ...
    def problem(self) -> str | None:
        """Why nothing can run, if so."""
        ...


class StreamRoutes:
    """Handlers over a `Host`; `register` adds them to an application."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def register(self, app: web.Application) -> None:
        for prefix in ("", "/api"):
            app.router.add_post(f"{prefix}/stream/start", self.answering(self.start))
            app.router.add_post(f"{prefix}/stream/stop", self.answering(self.stop))
            app.router.add_post(f"{prefix}/stream/params", self.answering(self.params))
            app.router.add_get(f"{prefix}/stream/status", self.answering(self.status))
        for slash in ("", "/"):
            app.router.add_post(f"/live-video-to-video{slash}", self.answering(self.start_live_runner))
            app.router.add_get(f"/health{slash}", self.health)

    # -- handlers --------------------------------------------------------------------------------------

    async def start(self, request: web.Request) -> web.Response:
        """Accept a stream; the answer does not wait for models or for the first frame."""
        wanted = parse_start(await read_json(request))
        session_id = _checked_id(
            request.headers.get("X-Stream-Id")
            or wanted.gateway_request_id
            or wanted.stream_id
            or wanted.manifest_id
            or new_session_id()
        )
        self._host.table.check_room(session_id)
        with about_session(session_id):
            prepared = await self._host.prepare(wanted)
            session = self._host.make_session(session_id, wanted, prepared=prepared)
            self._host.table.add(session)
            log.info("stream %s accepted", session_id)
        return web.json_response(
            {
                "status": "success",
                "message": "Stream started successfully",
                "request_id": session_id,
                "subscribe_url": wanted.url("subscribe") or "",
                "publish_url": wanted.url("publish") or "",
                "control_url": wanted.url("control") or "",
                "events_url": wanted.url("events") or "",
                "current_state": self._state(),
            }
        )

    async def start_live_runner(self, request: web.Request) -> web.Response:
        """As `start`, for go-livepeer's worker, which takes any status but 400, 401 and 500 for success."""
        try:
            return await self.start(request)
        except HeadraceError as error:
            status = 401 if error.status == 401 else 400 if error.status < 500 else 500
            return self._error_response(error, status)

    async def stop(self, request: web.Request) -> web.Response:
        """End a stream. The body may be anything; repeating it, or stopping what is gone, is no error when
        the stream is named."""
        session_id = _named_session(request)
        try:
            session = self._host.table.find(session_id)
        except NotFound:
            if session_id is None:
                raise InvalidInput("No active stream to stop") from None
        else:
            session.stop("stopped by request")
            if not await self._host.table.wait_ended(session.id):
                log.error("stream %s is still closing", session.id)
        return web.json_response({"status": "success", "message": "Stream stopped successfully"})

    async def params(self, request: web.Request) -> web.Response:
        """Change parameters between two frames; the answer names the first frame for which they hold."""
        session_id = _named_session(request)
        try:
            session = self._host.table.find(session_id)
        except NotFound as error:
            if session_id is None and not len(self._host.table):
                raise InvalidInput("No active stream to update") from None
            raise error
        body = await read_json(request)
        if not isinstance(body, dict):
            raise InvalidInput(f"expected a JSON object, got {type(body).__name__}", field="body")
        applied = await session.update_params(body)
        return web.json_response(
            {"status": "success", "message": "Parameters updated successfully", "applied": applied}
        )

    async def status(self, request: web.Request) -> web.Response:
        """PyTrickle's status object, and under ``session`` (or ``sessions``) our own figures."""
        session_id = _named_session(request)
        table = self._host.table
        answer = {**self._state(), "client_active": len(table) > 0}
        if session_id is not None:
            last = table.last_status(session_id)
            if last is not None:
                return web.json_response({**answer, "client_active": False, "session": last})
            return web.json_response({**answer, **_of(table.find(session_id))})
        if len(table) == 1:
            return web.json_response({**answer, **_of(table.find(None))})
        return web.json_response({**answer, "sessions": [session_report(session) for session in table]})

    async def health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": str(self._host.health())})

    # -- answers ---------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        host = self._host
        return pytrickle_state(host.health(), len(host.table), ready=host.ready(), error=host.problem())

    def answering(self, handler: Handler) -> Handler:
        """``handler`` with errors as JSON, logging for the session that the request names."""

        async def answer(request: web.Request) -> web.StreamResponse:
            with about_session(_named_session(request)):
                try:
                    return await handler(request)
                except HeadraceError as error:
                    return self._error_response(error, error.status)

        return answer

    def _error_response(self, error: HeadraceError, status: int) -> web.Response:
        body = {
            "status": "error",
            "current_state": self._state(),
            "detail": {"msg": error.message},
            **error.as_dict(),
        }
        return web.json_response(body, status=status)


def _of(session: Session) -> dict[str, Any]:
    return {
        "client_running": session.ending is None,
        "fps": pytrickle_fps(session),
        "current_params": session.urls,
        "session": session_report(session),
    }


def _named_session(request: web.Request) -> str | None:
    return (
        request.headers.get("X-Stream-Id")
        or request.query.get("gateway_request_id")
        or request.query.get("stream_id")
        or None
    )


async def read_json(request: web.Request) -> Any:
    """The JSON body; `InvalidInput` for another content type or bad JSON, `TooLarge` over `MAX_BODY`."""
    if request.content_type != "application/json" and not request.content_type.endswith("+json"):
        raise InvalidInput(
            f"expected a body of type application/json, got {request.content_type!r}", field="Content-Type"
        )
    if request.content_length is not None and request.content_length > MAX_BODY:
        raise TooLarge(
            f"the body has {request.content_length} bytes; at most {MAX_BODY} are taken", field="body"
        )
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise InvalidInput("bodies are taken as they are, in no encoding", field="Content-Encoding")
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            body = await request.read()
        # RFC 8259: UTF-8, whatever the content type says.
        return json.loads(str(body, "utf-8-sig"), parse_float=_finite, parse_constant=_finite)
    except TimeoutError:
        raise InvalidInput(f"the body did not come within {BODY_TIMEOUT:g} s", field="body") from None
    except web.HTTPRequestEntityTooLarge:
        raise TooLarge(f"the body has over {MAX_BODY} bytes", field="body") from None
    except web.RequestPayloadError as error:
        raise InvalidInput(f"the body cannot be read: {error}", field="body") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the body is not UTF-8 from byte {error.start} on", field="body") from None
    except json.JSONDecodeError as error:
        raise InvalidInput(
            f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}", field="body"
        ) from None
    except ValueError:
        # Python reads integers of up to 4300 digits.
        raise InvalidInput("the body has a number with too many digits", field="body") from None
    except RecursionError:
        raise InvalidInput("the body is nested too deeply", field="body") from None


def _finite(text: str) -> float:
    """A number; JSON knows neither NaN nor infinity."""
    number = float(text)
    if not math.isfinite(number):
        raise InvalidInput(f"the body has the number {text[:40]}, which is not finite", field="body")
    return number


def _checked_id(session_id: str) -> str:
    """The id itself; `InvalidInput` for one that could not be shown in a log or a header."""
    if len(session_id) > MAX_ID or not session_id.isprintable():
        raise InvalidInput(
            f"a stream's id has at most {MAX_ID} printable characters, not {session_id[:80]!r}",
            field="gateway_request_id",
        )
    return session_id

"""A trickle server: channels of short segments over HTTP/1.1, readable while they are written.

Wire-compatible with go-livepeer's. The logic of channels lives in `stream.trickle.ring`, what each route
answers in `stream.trickle.routes`; here are settings, sockets, the idle sweep and the end of it all.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from stream.errors import InvalidInput
from stream.trickle.http1_server import BadRequest, Request, ServerConnection
from stream.trickle.ring import DEFAULT_SEGMENT_BYTES, Channels
from stream.trickle.routes import Routes
from stream.trickle.wire import Wire

log = logging.getLogger(__name__)

HEAD_TIMEOUT = 10.0
KEEP_ALIVE_TIMEOUT = 120.0
STOP_GRACE = 1.0
BACKLOG = 256


@dataclass(frozen=True, slots=True)
class TrickleServerSettings:
    """Where and how a `TrickleServer` serves; times in seconds.

    ``port`` 0 takes a free one. ``autocreate``: a POST makes the channel that it names; otherwise channels
    come from `TrickleServer.create_channel` alone. ``changefeed``: the channel ``_changes`` tells of channels
    that come and go. Channels without a new segment for ``idle_timeout`` are closed, looked for every
    ``sweep_interval``. ``keepalive_interval``: how often a POST without a body so far gets ``100 Continue``.
    A segment holds ``max_segment_bytes`` at most (then 413), and there is no more than ``max_channels`` and
    ``max_connections`` (then 503). ``tls_certificate`` and ``tls_key`` are PEM files.
    """

    host: str = "127.0.0.1"
    port: int = 2939
    base_path: str = "/"
    autocreate: bool = True
    changefeed: bool = False
    idle_timeout: float = 300.0
    sweep_interval: float = 60.0
    keepalive_interval: float = 10.0
    max_segment_bytes: int = DEFAULT_SEGMENT_BYTES
    max_channels: int = 1024
    max_connections: int = 1024
    tls_certificate: str | None = None
    tls_key: str | None = None

    def __post_init__(self) -> None:
        for name in ("idle_timeout", "sweep_interval", "keepalive_interval"):
            if getattr(self, name) <= 0:
                raise InvalidInput(f"{name} must be more than 0 s", field=name)
        for name in ("max_segment_bytes", "max_channels", "max_connections"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} must be at least 1", field=name)
        if not 0 <= self.port < 65536:
            raise InvalidInput(f"{self.port} is not a port", field="port")
        if not self.base_path.startswith("/"):
            raise InvalidInput("the base path must begin with a slash", field="base_path")
        if self.tls_key is not None and self.tls_certificate is None:
            raise InvalidInput("a TLS key needs its certificate", field="tls_certificate")


class TrickleServer:
    """Serves between entering and leaving ``async with``; leaving closes every channel and connection.

    Entering raises `OSError` when the address cannot be had and `InvalidInput` on an unusable certificate.
    """

    def __init__(self, settings: TrickleServerSettings | None = None) -> None:
        self.settings = settings = settings or TrickleServerSettings()
        self._channels = Channels(
            time.monotonic,
            autocreate=settings.autocreate,
            changefeed=settings.changefeed,
            idle_timeout=settings.idle_timeout,
            segment_limit=settings.max_segment_bytes,
            channel_limit=settings.max_channels,
        )
        self._routes = Routes(self._channels, settings.base_path, settings.keepalive_interval)
        self._connections: set[asyncio.Task[None]] = set()
        self._idle: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._stopping = False
        self._port = settings.port

    @property
    def url(self) -> str:
        """Base URL, without a slash at its end; a channel's is this, a slash and its name."""
        scheme = "http" if self.settings.tls_certificate is None else "https"
        host = self.settings.host
        reachable = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
        authority = f"[{reachable}]" if ":" in reachable else reachable
        return f"{scheme}://{authority}:{self._port}{self.settings.base_path.rstrip('/')}"

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels that exist."""
        return self._channels.names

    @property
    def connection_count(self) -> int:
        return len(self._connections)

    def channel_url(self, name: str) -> str:
        return f"{self.url}/{name}"

    def create_channel(self, name: str, mime_type: str) -> None:
        """Make a channel whatever ``autocreate`` says; an existing one stays as it is.

        Raises `AtCapacity` when there are ``max_channels``.
        """
        self._channels.create(name, mime_type)

    def delete_channel(self, name: str) -> None:
        """Close a channel and forget it; raises `NotFound`."""
        self._channels.delete(name)

    async def __aenter__(self) -> Self:
        settings = self.settings
        context = _tls_context(settings)
        self._listener = await asyncio.get_running_loop().create_server(
            lambda: Wire(self._accept), settings.host, settings.port, ssl=context, backlog=BACKLOG
        )
        self._port = self._listener.sockets[0].getsockname()[1]
        self._sweeper = asyncio.create_task(self._sweep())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._stopping = True
        if self._listener is not None:
            self._listener.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait({self._sweeper})
        self._channels.close()
        for task in self._idle:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections, timeout=STOP_GRACE)
        while self._connections:
            for task in self._connections:
                task.cancel()
            await asyncio.wait(self._connections)
        if self._listener is not None:
            await self._listener.wait_closed()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self.settings.sweep_interval)
            for name in self._channels.sweep():
                log.info("closed the idle channel %s", name)

    def _accept(self, wire: Wire) -> None:
        if self._stopping:
            wire.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(wire))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, wire: Wire) -> None:
        """All requests of one connection; the edge at which whatever went wrong in it ends."""
        connection = ServerConnection(wire)
        try:
            await self._serve_requests(connection)
            await connection.close()
        except ConnectionError as error:
            log.debug("a connection broke: %s", error)
        except Exception:
            # One connection's fault must not be another's; it is logged whole.
            log.exception("a request failed")
        finally:
            await connection.drop()

    async def _serve_requests(self, connection: ServerConnection) -> None:
        try:
            if len(self._connections) > self.settings.max_connections:
                limit = self.settings.max_connections
                await self._routes.refuse(connection, 503, f"the limit of {limit} connections is reached")
                return
            while (request := await self._next_request(connection)) is not None:
                await self._routes.answer(connection, request)
                if not await connection.next_cycle():
                    return
        except BadRequest as error:
            if not connection.answered:
                await self._routes.refuse(connection, error.status, str(error))

    async def _next_request(self, connection: ServerConnection) -> Request | None:
        if self._stopping:
            return None
        task = asyncio.current_task()
        assert task is not None
        self._idle.add(task)
        try:
            return await connection.request(KEEP_ALIVE_TIMEOUT, HEAD_TIMEOUT)
        finally:
            self._idle.discard(task)


async def serve_trickle(
    settings: TrickleServerSettings, stop: asyncio.Event, announce: Callable[[str], None] | None = None
) -> None:
    """Serve until ``stop`` is set; ``announce`` gets the base URL once the server listens.

    Raises what entering a `TrickleServer` raises.
    """
    async with TrickleServer(settings) as server:
        log.info("trickle server at %s", server.url)
        if announce is not None:
            announce(server.url)
        await stop.wait()


def _tls_context(settings: TrickleServerSettings) -> ssl.SSLContext | None:
    if settings.tls_certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput(f"cannot use the certificate {settings.tls_certificate}: {error}") from None
    return context

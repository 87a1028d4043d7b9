"""`RequestHandler`s over HTTP: admission, cancelling, answers and errors in one form."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from byoc.plain import in_daemon_thread
from byoc.request_handlers import PREFIX, Reply, RequestHandler
from byoc.threads import LoopThread
from stream.answers import answering, error_response
from stream.connected import while_connected
from stream.errors import AtCapacity, Forbidden, HeadraceError, ProcessorError, TooLarge, Unauthorized
from stream.sse import KEEPALIVE, EventStream
from stream.trickle.documents import MAX_LINE

log = logging.getLogger(__name__)

BODY_TIMEOUT = 60.0
"""Seconds in which a body must have come."""
EVENTS_AHEAD = 16
"""Events that a handler may be ahead of its client."""
DONE = "[DONE]"
"""What ends a stream of events; an orchestrator waits for it until the job's time is over."""

_END = object()
Ready = Callable[[], Awaitable[None]]


class _Plain:
    """A plain function that tells when it is at work, for it cannot be cancelled."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.at_work = False
        self._function = function
        self._loop = asyncio.get_running_loop()
        self._when_over: list[Callable[[], None]] = []

    def __call__(self, *arguments: Any) -> Any:
        self.at_work = True
        try:
            return self._function(*arguments)
        finally:
            self.at_work = False
            try:
                self._loop.call_soon_threadsafe(self._over)
            except RuntimeError:
                # The loop has ended, and with it whoever wanted to know.
                pass

    def when_over(self, tell: Callable[[], None]) -> None:
        """Call ``tell`` once it is not at work, on the loop."""
        if self.at_work:
            self._when_over.append(tell)
        else:
            tell()

    def _over(self) -> None:
        for tell in self._when_over:
            tell()
        self._when_over.clear()


class _Places:
    """Admission to one handler. A plain function holds its place until it returns, whoever gave it up."""

    def __init__(self, handler: RequestHandler) -> None:
        self._rules = handler.rules
        self._free = asyncio.Semaphore(handler.rules.concurrency)
        self.running = self.waiting = 0

    @asynccontextmanager
    async def taken(self, plain: _Plain | None = None) -> AsyncIterator[None]:
        rules = self._rules
        if self.waiting >= rules.waiting and self._free.locked():
            raise AtCapacity(f"{rules.path}: {self.running} requests run and {self.waiting} wait already")
        self.waiting += 1
        try:
            async with asyncio.timeout(rules.timeout):
                await self._free.acquire()
        except TimeoutError:
            raise AtCapacity(f"{rules.path}: no place became free within {rules.timeout:g} s") from None
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield
        finally:
            if plain is None:
                self._left()
            else:
                plain.when_over(self._left)

    def _left(self) -> None:
        self.running -= 1
        self._free.release()


class RequestRoutes:
    """``POST {path}`` and ``POST /process/request{path}`` for each handler, run in a thread of their own, so
    that neither streams nor other routes wait for them. ``ready`` returns when the model is there, or raises.
    """

    def __init__(self, handlers: Iterable[RequestHandler], ready: Ready) -> None:
        self.handlers = tuple(handlers)
        self._ready = ready
        self._places = {handler.rules.path: _Places(handler) for handler in self.handlers}
        self._thread = LoopThread("requests")

    @property
    def running(self) -> int:
        """Requests at work."""
        return sum(places.running for places in self._places.values())

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return sum(places.waiting for places in self._places.values())

    def register(self, app: web.Application) -> None:
        for handler in self.handlers:
            answer = answering(self._answering(handler))
            for prefix in ("", PREFIX):
                app.router.add_post(prefix + handler.rules.path, answer)

    def start(self) -> None:
        if self.handlers:
            self._thread.start()

    async def close(self) -> None:
        """Cancel what runs and end the thread, in a bounded time."""
        await self._thread.close()

    def _answering(self, handler: RequestHandler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(request: web.Request) -> web.StreamResponse:
            try:
                await self._ready()
                body = await read_body(request, handler.rules.max_body)
                argument = handler.argument(body, request.content_type if body else "")
                return await while_connected(request, self._serve(request, handler, argument))
            except Unauthorized as error:
                # 401 of a worker has an orchestrator forget the capability.
                raise Forbidden(error.message, field=error.field) from error

        return answer

    async def _serve(
        self, request: web.Request, handler: RequestHandler, argument: Any
    ) -> web.StreamResponse:
        places = self._places[handler.rules.path]
        if handler.streams:
            async with places.taken():
                return await self._stream(request, handler, argument)
        plain = None if inspect.iscoroutinefunction(handler.method) else _Plain(handler.method)
        async with places.taken(plain), _limited(handler):
            return to_response(await self._call(plain or handler.method, argument))

    async def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """In the handlers' thread; errors become ours."""
        try:
            return await self._thread.call(_run, function, *arguments)
        except HeadraceError:
            raise
        except TimeoutError as error:
            raise ProcessorError(f"TimeoutError: {error}") from error
        except Exception as error:  # the edge to a handler that is not ours
            log.info("a request handler raised", exc_info=True)
            raise ProcessorError(f"{type(error).__name__}: {error}") from error

    # -- events ----------------------------------------------------------------------------------------

    async def _stream(
        self, request: web.Request, handler: RequestHandler, argument: Any
    ) -> web.StreamResponse:
        queue: asyncio.Queue[Any] = asyncio.Queue(EVENTS_AHEAD)
        producing = asyncio.create_task(self._produce(handler, argument, queue))
        answer = EventStream()
        try:
            # Until its first event a handler can still be answered with an error's status.
            value = await queue.get()
            if isinstance(value, HeadraceError):
                return error_response(value)
            await answer.begin(request)
            while not isinstance(value, HeadraceError) and value is not _END:
                await answer.data(_event(value))
                value = await _kept_alive(answer, queue)
            if isinstance(value, HeadraceError):
                await answer.data({"error": value.as_dict()}, "error")
        except ProcessorError as error:
            await answer.data({"error": error.as_dict()}, "error")
        finally:
            producing.cancel()
            await asyncio.gather(producing, return_exceptions=True)
        await answer.data(DONE)
        return await answer.end()

    async def _produce(self, handler: RequestHandler, argument: Any, queue: asyncio.Queue[Any]) -> None:
        """Fill the queue with the handler's events, then with its error or the end."""
        loop = asyncio.get_running_loop()

        async def put(value: Any) -> None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(queue.put(value), loop))

        try:
            async with _limited(handler):
                await self._call(_pump, handler, argument, put)
        except HeadraceError as error:
            await queue.put(error)
        else:
            await queue.put(_END)


@asynccontextmanager
async def _limited(handler: RequestHandler) -> AsyncIterator[None]:
    rules = handler.rules
    try:
        async with asyncio.timeout(rules.timeout):
            yield
    except TimeoutError:
        raise ProcessorError(f"{rules.path} took longer than {rules.timeout:g} s") from None


async def _pump(handler: RequestHandler, argument: Any, put: Callable[[Any], Awaitable[None]]) -> None:
    async with aclosing(handler.events(argument)) as events:
        async for value in events:
            await put(value)


async def _kept_alive(answer: EventStream, queue: asyncio.Queue[Any]) -> Any:
    """The next event; comments go out while there is none."""
    while True:
        try:
            async with asyncio.timeout(KEEPALIVE):
                return await queue.get()
        except TimeoutError:
            await answer.keepalive()


async def read_body(request: web.Request, limit: int) -> bytes:
    """The body; raises `TooLarge` over ``limit`` bytes, whatever the application's own limit is."""
    if request.content_length is not None and request.content_length > limit:
        raise TooLarge(
            f"the body has {request.content_length} bytes; at most {limit} are taken", field="body"
        )
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for part in request.content.iter_any():
                size += len(part)
                if size > limit:
                    raise TooLarge(f"the body has over {limit} bytes", field="body")
                parts.append(part)
    except TimeoutError:
        raise TooLarge(f"the body did not come within {BODY_TIMEOUT:g} s", field="body") from None
    return b"".join(parts)


def to_response(value: Any) -> web.Response:
    """What a handler returned, as an answer; raises `ProcessorError` for what is no JSON."""
    if isinstance(value, bytes):
        value = Reply(value)
    if isinstance(value, Reply):
        body = value.body.encode() if isinstance(value.body, str) else value.body
        headers = {"Content-Type": value.content_type}
        if value.metadata is not None:
            headers["X-Metadata"] = value.metadata
        return web.Response(body=body, headers=headers)
    return web.Response(body=_json(value), content_type="application/json")


def _json(value: Any) -> bytes:
    if isinstance(value, BaseModel):
        return value.model_dump_json().encode()
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ProcessorError(f"a {type(value).__name__} was returned that is no JSON: {error}") from None


def _event(value: Any) -> str:
    text = value if isinstance(value, str) else _json(value).decode()
    if "\n" in text or "\r" in text:
        raise ProcessorError("an event of text has one line; yield JSON for more")
    if len(text.encode()) + len("data: ") > MAX_LINE:
        raise ProcessorError(f"an event has over {MAX_LINE} bytes; orchestrators pass on no more")
    return text


async def _run(function: Callable[..., Any], *arguments: Any) -> Any:
    if inspect.iscoroutinefunction(function):
        return await function(*arguments)
    return await in_daemon_thread(function, *arguments)

"""JSON messages over data channels (RFC 8831): requests with their answers, and news.

Nothing here knows aiortc: a channel is whatever has the few members of `DataChannel`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from stream.errors import HeadraceError, InvalidInput
from stream.session import Session
from stream.session_feed import News, SessionFeed
from stream.status import session_report

log = logging.getLogger(__name__)

MAX_MESSAGE = 262_144
"""Bytes of a message that is read, which the answer to an offer announces."""
MAX_REPLY = 250_000
"""Bytes of a message that is sent: browsers take 256 KiB."""
MAX_WAITING = 32
MAX_WAITING_BYTES = 1 << 20
"""Requests that wait for their turn, and their bytes together."""
MAX_ID = 200
MAX_BUFFERED = 1 << 20
"""Bytes that may wait for a slow receiver before news are left out."""
READY_WAIT = 30.0
"""Seconds for which a change waits for a processor that is still being loaded, or started again."""
TIMING_INTERVAL = 0.5
MAX_TIMINGS = 120

Message = dict[str, Any]
Answer = Callable[[Message], Awaitable[Message]]
Timings = Callable[[], list[list[float]]]
"""Takes what has been sent since it was last called: source and sent RTP timestamp, ms in the worker."""


class DataChannel(Protocol):
    """The members of an ``RTCDataChannel`` that are used."""

    @property
    def label(self) -> str: ...
    @property
    def readyState(self) -> str: ...  # noqa: N802 (the standard's name)
    @property
    def bufferedAmount(self) -> int: ...  # noqa: N802
    def send(self, data: str) -> None: ...
    def close(self) -> None: ...
    def on(self, event: str, f: Callable[..., None]) -> object: ...


@dataclass(frozen=True, slots=True)
class Request:
    """How a request is answered: by ``answer``, in a message of type ``reply``. ``flag`` says whether that
    tells of its success, ``at_once`` that it waits for no change before it, which takes as long as a model
    takes to load."""

    reply: str
    answer: Answer
    flag: bool = True
    at_once: bool = False


class Outlet:
    """The sending side of a channel; what cannot be sent is counted, never waited for."""

    def __init__(self, channel: DataChannel) -> None:
        self._channel = channel
        self.dropped = 0

    def send(self, message: Message) -> bool:
        """Send as JSON; False when the channel is closed, or too far behind."""
        try:
            text = json.dumps(message, default=str)
        except (TypeError, ValueError, RecursionError) as error:
            text = json.dumps(_in_its_place(message, f"it cannot be written as JSON: {error}"))
        # In ASCII, so characters are bytes.
        if len(text) > MAX_REPLY:
            text = json.dumps(
                _in_its_place(message, f"the message has {len(text)} bytes; at most {MAX_REPLY} are sent")
            )
        if self._channel.readyState != "open" or self._channel.bufferedAmount > MAX_BUFFERED:
            self.dropped += 1
            return False
        try:
            self._channel.send(text)
        except Exception:  # the edge to the peer connection, which may close at any moment
            log.debug("a message could not be sent on %r", self._channel.label, exc_info=True)
            self.dropped += 1
            return False
        return True


class RequestChannel:
    """Answers the requests of one channel until `close`: changes one after the other, what is ``at_once``
    beside them, in order too. Belongs to the loop."""

    def __init__(self, channel: DataChannel, requests: Mapping[str, Request]) -> None:
        self._requests = requests
        self._outlet = Outlet(channel)
        self._waiting = 0
        self._waiting_bytes = 0
        self._changes, self._rest = _Line(), _Line()
        self._tasks = [
            asyncio.create_task(self._serve(line), name=f"data channel {channel.label}")
            for line in (self._changes, self._rest)
        ]
        channel.on("message", self._received)
        channel.on("close", self.close)

    @property
    def outlet(self) -> Outlet:
        return self._outlet

    def close(self) -> None:
        """Answer no more; safe to call twice."""
        for line in (self._changes, self._rest):
            line.clear()
        for task in self._tasks:
            task.cancel()

    def _received(self, data: str | bytes) -> None:
        try:
            message = parse_message(data)
        except InvalidInput as error:
            self._outlet.send(refusal("error", {}, error))
            return
        request, size = self._requests.get(message["type"]), size_of(str(data))
        if self._waiting >= MAX_WAITING or self._waiting_bytes + size > MAX_WAITING_BYTES:
            full = InvalidInput(
                f"{self._waiting} requests of {self._waiting_bytes} bytes wait for their answers, of "
                f"{MAX_WAITING} and {MAX_WAITING_BYTES} that may; wait for one of them"
            )
            self._outlet.send(refusal("error" if request is None else request.reply, message, full))
            return
        self._waiting += 1
        self._waiting_bytes += size
        line = self._rest if request is None or request.at_once else self._changes
        line.put(message, size)

    async def _serve(self, line: _Line) -> None:
        while True:
            message, size = await line.take()
            try:
                self._outlet.send(await self._answer(message))
            finally:
                self._waiting -= 1
                self._waiting_bytes -= size
            # An answer may have come without a pause, and so may the next ones.
            await asyncio.sleep(0)

    async def _answer(self, message: Message) -> Message:
        request = self._requests.get(message["type"])
        if request is None:
            known = ", ".join(sorted(self._requests))
            error = InvalidInput(
                f"there is no message {message['type'][:60]!r}; known are {known}", field="type"
            )
            return refusal("error", message, error)
        try:
            return _reply(request, message, await request.answer(message))
        except HeadraceError as error:
            return refusal(request.reply, message, error)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            # Not this task was cancelled but something that the answer waited for.
            return refusal(request.reply, message, HeadraceError("the request was given up"))
        except Exception as error:  # the edge of a task: the channel goes on, and whoever asked hears of it
            log.exception("a request on a data channel broke")
            return refusal(request.reply, message, HeadraceError(f"{type(error).__name__}: {error}"))


class _Line:
    """Requests and their bytes, in order."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Message, int]] = deque()
        self._arrived = asyncio.Event()

    def put(self, message: Message, size: int) -> None:
        self._waiting.append((message, size))
        self._arrived.set()

    async def take(self) -> tuple[Message, int]:
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()

    def clear(self) -> None:
        self._waiting.clear()


def parse_message(data: str | bytes) -> Message:
    """A message of a channel. Raises `InvalidInput` for what is no JSON object with a ``type``."""
    if not isinstance(data, str):
        raise InvalidInput("messages are JSON text, not bytes", field="message")
    size = size_of(data)
    if size > MAX_MESSAGE:
        raise InvalidInput(f"a message has at most {MAX_MESSAGE} bytes, not {size}", field="message")
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the message is not JSON: {error}", field="message") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise InvalidInput("a message is a JSON object with a type", field="type")
    return message


def size_of(text: str) -> int:
    """Bytes of ``text`` in UTF-8."""
    return len(text.encode(errors="surrogatepass"))


def refusal(reply: str, message: Mapping[str, Any], error: HeadraceError) -> Message:
    """The answer to a request that failed; ``error`` is the text, as ComfyStream has it."""
    about = error.as_dict()
    return {
        "type": reply,
        "success": False,
        "error": about.pop("message"),
        **about,
        **({"request": message["type"]} if reply == "error" and "type" in message else {}),
        **({"id": message["id"]} if "id" in message else {}),
    }


def _reply(request: Request, message: Message, answer: Message) -> Message:
    flag: Message = {"success": True} if request.flag else {}
    return {
        "type": request.reply,
        **flag,
        **answer,
        **({"id": message["id"]} if "id" in message else {}),
    }


def _in_its_place(message: Message, why: str) -> Message:
    """What is sent instead of ``message``; its id only where that is not the cause."""
    kept: Message = {"type": message.get("type", "error")}
    known = message.get("id")
    if isinstance(known, int | float) or (isinstance(known, str) and len(known) <= MAX_ID):
        kept["id"] = known
    return {**kept, "success": False, "error": why}


# -- what every session answers ------------------------------------------------------------------------


class Timing:
    """Tells, while it is wanted, which frame of the source each picture was made from."""

    def __init__(self, take: Timings | None) -> None:
        self._take = take
        self._task: asyncio.Task[None] | None = None
        self.outlet: Outlet | None = None

    async def answer(self, message: Message) -> Message:
        wanted = message.get("on", True)
        if not isinstance(wanted, bool):
            raise InvalidInput(f"on is true or false, not {wanted!r}", field="on")
        if wanted and self._take is None:
            raise InvalidInput("this connection gets no pictures", field="on")
        if wanted and self._task is None:
            self._task = asyncio.create_task(self._tell(), name="timing")
        elif not wanted:
            self.close()
        return {"on": wanted}

    def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    async def _tell(self) -> None:
        assert self._take is not None
        self._take()
        while True:
            await asyncio.sleep(TIMING_INTERVAL)
            try:
                frames = self._take()[-MAX_TIMINGS:]
            except Exception:  # the edge of a task, whose end nobody would hear of
                log.exception("timings could not be told")
                continue
            if self.outlet is not None:
                self.outlet.send({"type": "timing", "frames": frames})


def session_requests(
    session: Session, schema: Callable[[Session], Awaitable[dict[str, Any]]], timing: Timing
) -> dict[str, Request]:
    """What can be asked of any session."""

    async def update_params(message: Message) -> Message:
        params = message.get("params")
        if not isinstance(params, dict):
            raise InvalidInput(f"params is a JSON object, not {repr(params)[:60]}", field="params")
        await session.processor.wait_ready(READY_WAIT)
        return await session.update_params(params)

    async def get_schema(message: Message) -> Message:
        return {"schema": await schema(session)}

    async def get_status(message: Message) -> Message:
        return {"status": session_report(session)}

    return {
        "update_params": Request("params_updated", update_params),
        "get_schema": Request("schema", get_schema, flag=False, at_once=True),
        "get_status": Request("status", get_status, flag=False, at_once=True),
        "timing": Request("timing_set", timing.answer, at_once=True),
    }


class NewsChannel:
    """A session's text, data and events to one channel, from when it opens until `close`."""

    def __init__(self, channel: DataChannel, feed: SessionFeed) -> None:
        self._outlet = Outlet(channel)
        self._told_of = 0
        self.close: Callable[[], None] = feed.follow(self._tell)
        channel.on("close", lambda: self.close())

    def _tell(self, news: News) -> None:
        dropped = self._outlet.dropped
        if self._outlet.send(as_message(news)) and dropped > self._told_of:
            event = {"type": "dropped", "count": dropped - self._told_of}
            self._told_of = dropped
            self._outlet.send({"type": "event", "event": event})


def as_message(news: News) -> Message:
    """News in ComfyStream's form where it has one: ``{"type": "text", "data": "..."}``."""
    kind: Literal["text", "data", "event"]
    if news.kind in ("text", "data"):
        return {"type": news.kind, **news.body}
    kind = "event"
    return {"type": kind, "event": {**news.body, "type": _type_of(news)}}


def _type_of(news: News) -> Any:
    """The type that an event has already, or the kind of news that it is."""
    return news.body.get("type", news.kind) if news.kind == "event" else news.kind

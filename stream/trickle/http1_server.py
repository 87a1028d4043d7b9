"""The server side of one HTTP/1.1 connection.

Interim responses go out at any time, and an answer may precede the end of its request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from email.utils import formatdate
from http import HTTPStatus

import h11

from stream.trickle.protocol import SEGMENT_MISSING
from stream.trickle.wire import Wire

MAX_HEAD = 16 * 1024
MAX_UNREAD_BODY = 64 * 1024
LINGER = 0.5
CLOSE_TIMEOUT = 5.0

Headers = Sequence[tuple[str, str]]


class BadRequest(Exception):
    """The peer does not speak HTTP/1.1; ``status`` says how to answer."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Request:
    """Method, target and headers; the first of several headers of one name counts."""

    def __init__(self, event: h11.Request, expects_continue: bool) -> None:
        self.method = event.method.decode("ascii")
        self.target = event.target.decode("latin-1")
        self.http_1_0 = event.http_version < b"1.1"
        self.expects_continue = expects_continue
        self._headers = {name.lower(): value for name, value in reversed(list(event.headers))}

    def header(self, name: str) -> str:
        """The value, empty when there is no such header."""
        return self._headers.get(name.lower().encode(), b"").decode("latin-1")


class ServerConnection:
    """Requests of one connection, one after the other."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._http = h11.Connection(our_role=h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._answers_head = False
        self._body_ended = False

    @property
    def gone(self) -> bool:
        """Whether the peer has ended its side."""
        return self._wire.gone

    @property
    def answered(self) -> bool:
        """Whether a final response was begun."""
        return self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE)

    def notify_gone(self, callback: Callable[[], None] | None) -> None:
        """Call ``callback`` when the peer ends its side or is lost."""
        self._wire.notify_gone(callback)

    async def request(self, idle_timeout: float, head_timeout: float) -> Request | None:
        """The next request; None when the peer ends first or says nothing for ``idle_timeout`` seconds.

        Raises `BadRequest`, also when a head is not complete ``head_timeout`` seconds after its first byte.
        """
        event = self._parse()
        if event is None:
            try:
                async with asyncio.timeout(idle_timeout):
                    await self._receive()
            except TimeoutError:
                return None
            try:
                async with asyncio.timeout(head_timeout):
                    event = await self._event()
            except TimeoutError:
                raise BadRequest("the head of the request did not come in time", 408) from None
        if not isinstance(event, h11.Request):
            return None
        self._answers_head = event.method == b"HEAD"
        return Request(event, self._http.they_are_waiting_for_100_continue)

    async def body(self) -> bytes | None:
        """The next bytes of the request's body, None at its end. Cancelling loses nothing.

        Raises `BadRequest` when the body breaks off and `ConnectionError` when the connection does.
        """
        if self._body_ended:
            return None
        event = await self._event()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        self._body_ended = True
        return None

    async def send_interim(self) -> None:
        """``100 Continue``, as often as one likes."""
        interim = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
        await self._wire.write(self._http.send(interim))

    async def respond(self, status: int, headers: Headers, body: bytes = b"", *, close: bool = False) -> None:
        """A whole response; with ``close`` the connection takes no further request."""
        fields = [("Content-Length", str(len(body))), *headers]
        if close:
            fields.append(("Connection", "close"))
        await self.begin_response(status, fields)
        await self.send_body(body)
        await self.end_response()

    async def begin_response(self, status: int, headers: Headers) -> None:
        """The head; without a Content-Length the body is chunked."""
        fields = [("Date", formatdate(usegmt=True)), *headers]
        await self._send(h11.Response(status_code=status, headers=fields, reason=_reason(status)))

    async def send_body(self, data: bytes) -> None:
        """Waits while the peer takes nothing; the answer to a HEAD has no body."""
        if data and not self._answers_head:
            await self._send(h11.Data(data=data))

    async def end_response(self) -> None:
        await self._send(h11.EndOfMessage())

    async def next_cycle(self) -> bool:
        """Whether another request may follow; reads away what little is left of the present one."""
        if self._http.our_state is not h11.DONE:
            return False
        try:
            async with asyncio.timeout(LINGER):
                if not await self._discard_body():
                    return False
        except (TimeoutError, BadRequest):
            return False
        if self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        self._answers_head = self._body_ended = False
        return True

    async def close(self) -> None:
        """Flush and end, having read for a moment what the peer still sends.

        Closing with unread bytes resets the connection, and the peer would lose the answer.
        """
        try:
            if not self._body_ended and not self._wire.gone:
                self._wire.end_writing()
                async with asyncio.timeout(LINGER):
                    while (await self._wire.read()).data:
                        pass
        except (TimeoutError, ConnectionError):
            pass
        await self._wire.close(CLOSE_TIMEOUT)

    async def drop(self) -> None:
        """Close without flushing, and return when the descriptor is closed."""
        self._wire.abort()
        await self._wire.wait_lost()

    async def _discard_body(self) -> bool:
        unread = 0
        while (data := await self.body()) is not None:
            unread += len(data)
            if unread > MAX_UNREAD_BODY:
                return False
        return True

    async def _send(self, event: h11.Response | h11.Data | h11.EndOfMessage) -> None:
        data = self._http.send(event)
        if data:
            await self._wire.write(data)

    async def _event(self) -> h11.Event:
        while (event := self._parse()) is None:
            await self._receive()
        return event

    async def _receive(self) -> None:
        self._http.receive_data((await self._wire.read()).data)

    def _parse(self) -> h11.Event | None:
        """What the bytes at hand say; None when more are needed."""
        try:
            event = self._http.next_event()
        except h11.RemoteProtocolError as error:
            raise BadRequest(str(error), error.error_status_hint) from None
        # What is left are h11's two sentinels, which are classes and not events.
        return None if isinstance(event, type) else event


def _reason(status: int) -> bytes:
    if status == SEGMENT_MISSING:
        return b"Entry Not Found"
    return HTTPStatus(status).phrase.encode()

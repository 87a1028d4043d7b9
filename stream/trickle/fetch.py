"""One GET for one segment: waits as long as the server has nothing to say, and tries again when it breaks."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

from stream.errors import SourceError
from stream.trickle.http1 import Chunk, ClientConnection, Endpoint, ResponseHead, open_connection
from stream.trickle.protocol import CLOSED_HEADER, LATEST_HEADER, SEQ_HEADER, parse_integer
from stream.trickle.retry import Backoff


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said to a GET. ``connection`` is open, and holds the rest, where there is a ``first``.

    ``waited``: seconds from the request to the answer.
    """

    status: int
    seq: int | None
    latest: int | None
    closed: bool
    content_type: str
    waited: float
    first: Chunk | None
    connection: ClientConnection


class Fetcher:
    """Asks for segments of one channel.

    A request that the server holds open for ``reissue_after`` seconds is sent anew (``on_parked`` is called),
    since a proxy on the way may have forgotten it. What breaks is tried again for ``retry_for`` seconds.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        verify_tls: bool,
        connect_timeout: float,
        reissue_after: float,
        retry_for: float,
        on_parked: Callable[[], None],
        on_retry: Callable[[], None],
    ) -> None:
        self._endpoint = endpoint
        self._verify_tls = verify_tls
        self._connect_timeout = connect_timeout
        self._reissue_after = reissue_after
        self._retry_for = retry_for
        self._on_parked = on_parked
        self._on_retry = on_retry

    async def get(self, seq: int) -> Answer:
        """The answer to a GET for ``seq``, with the first bytes of the segment where it has any.

        Raises `SourceError` when no usable answer was to be had.
        """
        backoff = Backoff(self._retry_for)
        while True:
            asked = time.monotonic()
            try:
                answer = await self._ask(seq, asked)
            except ssl.SSLCertVerificationError as error:
                raise SourceError(f"{self._endpoint}: its certificate is not valid: {error}") from None
            except OSError as error:
                cause = str(error) or type(error).__name__
            else:
                if answer is None:
                    backoff.succeeded()
                    self._on_parked()
                    continue
                if answer.status < 500 and answer.status != 429:
                    return answer
                cause = f"it answered {answer.status}"
            now = time.monotonic()
            pause = backoff.failed(now, held=now - asked)
            if pause is None:
                raise SourceError(f"cannot read {self._endpoint}/{seq}: {cause}")
            self._on_retry()
            await asyncio.sleep(pause)

    async def _ask(self, seq: int, asked: float) -> Answer | None:
        """One request; None when the server said nothing in time. Raises `OSError`."""
        connection = await open_connection(
            self._endpoint, verify_tls=self._verify_tls, timeout=self._connect_timeout
        )
        first: Chunk | None = None
        try:
            await connection.send_head("GET", f"{self._endpoint.path}/{seq}", {}, body=False)
            try:
                async with asyncio.timeout(self._reissue_after):
                    head = await connection.response()
            except TimeoutError:
                return None
            if head.status == 200:
                first = await connection.read_chunk()
            return _answer(head, time.monotonic() - asked, first, connection)
        finally:
            if first is None:
                await connection.close()


def _answer(head: ResponseHead, waited: float, first: Chunk | None, connection: ClientConnection) -> Answer:
    return Answer(
        status=head.status,
        seq=parse_integer(head.get(SEQ_HEADER) or ""),
        latest=parse_integer(head.get(LATEST_HEADER) or ""),
        closed=bool(head.get(CLOSED_HEADER)),
        content_type=head.get("Content-Type") or "",
        waited=waited,
        first=first,
        connection=connection,
    )

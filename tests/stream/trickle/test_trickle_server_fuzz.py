"""Whatever a peer sends, the server neither fails nor stops serving others."""

from __future__ import annotations

import asyncio
import logging

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trickle_helpers import HANG, probing

pytestmark = pytest.mark.descriptors

METHODS = st.sampled_from(
    [b"GET", b"POST", b"DELETE", b"HEAD", b"PUT", b"CONNECT", b"OPTIONS", b"g e t", b""]
)
NUMBERS = st.sampled_from(
    [b"0", b"-1", b"-2", b"-5", b"+1", b"1e3", b"9" * 30, b"next", b"", b"%2e%2e", b"%"]
)
NAMES = st.sampled_from([b"c", b"_changes", b"..", b".", b"%00", b"%ff", b"a%2Fb", b"", b"x" * 300, b"\xff"])
TARGETS = st.one_of(
    st.builds(lambda name, number: b"/" + name + b"/" + number, NAMES, NUMBERS),
    st.builds(lambda name: b"/" + name, NAMES),
    st.sampled_from([b"*", b"http://x/c/0", b"http://[/c/0", b"//", b"/c/0?%zz#", b"c:0", b"\x00"]),
)
HEADERS = st.sampled_from(
    [
        b"Host: x",
        b"Host: x\r\nHost: y",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: gzip",
        b"Content-Length: 3",
        b"Content-Length: -3",
        b"Content-Length: 3, 4",
        b"Content-Length: 99999999999999999999",
        b"Connection: close",
        b"Connection: upgrade\r\nUpgrade: websocket",
        b"Expect: 100-continue",
        b"Lp-Trickle-Reset: 1",
        b"Content-Type: \xe9",
        b": empty",
        b"no colon",
        b"X: " + b"y" * 20_000,
    ]
)
BODIES = st.one_of(
    st.binary(max_size=20),
    st.sampled_from(
        [b"3\r\nabc\r\n0\r\n\r\n", b"zz\r\n", b"3\r\nabc", b"0\r\n\r\n", b"ffffffffffffffffff\r\n"]
    ),
)
REQUESTS = st.builds(
    lambda method, target, version, headers, body: (
        method
        + b" "
        + target
        + b" "
        + version
        + b"\r\n"
        + b"".join(h + b"\r\n" for h in headers)
        + b"\r\n"
        + body
    ),
    METHODS,
    TARGETS,
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b""]),
    st.lists(HEADERS, max_size=5),
    BODIES,
)


class Failures(logging.Handler):
    """What the server logs when a request fails in a way that it did not foresee."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@given(st.one_of(st.lists(REQUESTS, min_size=1, max_size=3).map(b"".join), st.binary(max_size=200)))
@example(b"GET http://[/c/0 HTTP/1.1\r\nHost: x\r\n\r\n")
@example(b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n")
@example(b"POST /c/0 HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: w\r\nContent-Length: 1\r\n\r\nx")
@settings(max_examples=150, deadline=None)
async def test_the_server_outlives_every_request(data: bytes) -> None:
    failures = Failures()
    logging.getLogger("stream.trickle").addHandler(failures)
    logging.getLogger("asyncio").addHandler(failures)
    try:
        async with probing() as probe:
            await probe.post("good/0", b"x")
            raw = await probe.connect()
            raw.send(data)
            raw.writer.write_eof()
            async with asyncio.timeout(HANG):
                answer = await raw.reader.read()
            assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
            assert b" 500 Internal" not in answer or b"Server error" in answer
            assert (await probe.ask("GET", "good/next")).status == 200
            assert (await probe.post("good/-1", b"y")).status == 200
    finally:
        logging.getLogger("stream.trickle").removeHandler(failures)
        logging.getLogger("asyncio").removeHandler(failures)
    assert [record.getMessage() for record in failures.records] == []

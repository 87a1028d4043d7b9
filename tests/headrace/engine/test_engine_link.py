from __future__ import annotations

import asyncio
import fcntl
import json
import mmap
import os
import socket
import struct
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine import link as link_module
from headrace.engine.link import (
    DESCRIPTOR_LIMIT,
    INLINE_LIMIT,
    Link,
    LinkClosed,
    LinkError,
    LinkOverflow,
    MalformedMessage,
    Message,
    SharedBlock,
)

pytestmark = pytest.mark.descriptors

# The first of uvloop's loops opens a pipe for signals that the process keeps.
uvloop.new_event_loop().close()

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture
def ends() -> Iterator[tuple[Link, Link]]:
    left, right = (Link(sock) for sock in Link.sockets())
    yield left, right
    left.close()
    right.close()


@pytest.fixture
def raw() -> Iterator[tuple[Link, socket.socket]]:
    """A link and the bare socket at its other end."""
    ours, theirs = Link.sockets()
    link = Link(ours)
    yield link, theirs
    link.close()
    theirs.close()


def memory_file(data: bytes, seals: int) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


ALL_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


# -- messages --------------------------------------------------------------------------------------------


@given(body=st.dictionaries(st.text(), JSON, max_size=5))
def test_a_message_arrives_as_it_was_sent(body: dict[str, Any]) -> None:
    left, right = (Link(sock) for sock in Link.sockets())
    try:
        left.send(body)
        message = right.receive()
        assert message is not None
        assert message.body == body
        assert right.receive() is None
    finally:
        left.close()
        right.close()


@pytest.mark.parametrize("size", [INLINE_LIMIT - 20, INLINE_LIMIT - 6, INLINE_LIMIT, 3_000_000])
def test_a_message_of_any_size_arrives(ends: tuple[Link, Link], size: int) -> None:
    left, right = ends
    reader, writer = os.pipe()
    left.send({"op": "a", "x": "y" * size}, [reader])
    left.send({"op": "b"})
    os.close(reader)
    first, second = right.receive(), right.receive()
    assert first is not None
    assert second is not None
    assert len(first.body["x"]) == size
    assert second.op == "b"
    got = first.take_fd()
    os.write(writer, b"!")
    assert os.read(got, 1) == b"!"
    os.close(got)
    os.close(writer)


def test_a_message_over_the_limit_is_refused_by_name(
    ends: tuple[Link, Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "MESSAGE_LIMIT", 100_000)
    with pytest.raises(LinkError, match="the limit is 100000"):
        ends[0].send({"x": "y" * 100_001})
    assert ends[1].receive() is None


@pytest.mark.parametrize("body", [{"x": object()}, {"x": {1, 2}}, {"x": b"bytes"}])
def test_what_is_not_json_is_refused(ends: tuple[Link, Link], body: dict[str, Any]) -> None:
    with pytest.raises(LinkError, match="not JSON"):
        ends[0].send(body)


def test_descriptors_nobody_takes_are_closed_with_the_message(ends: tuple[Link, Link]) -> None:
    left, right = ends
    reader, writer = os.pipe()
    left.send({}, [writer, writer])
    os.close(writer)
    message = right.receive()
    assert message is not None
    assert message.waiting_fds == 2
    message.close()
    assert os.read(reader, 1) == b"", "a copy of the writing end is still open"
    os.close(reader)


def test_a_descriptor_that_did_not_come_is_a_typed_error() -> None:
    with pytest.raises(MalformedMessage, match="should have brought a descriptor"):
        Message({"op": "x"}).take_fd()


def test_received_descriptors_are_not_inherited(ends: tuple[Link, Link]) -> None:
    left, right = ends
    reader, writer = os.pipe()
    left.send({}, [reader])
    message = right.receive()
    assert message is not None
    fd = message.take_fd()
    assert not os.get_inheritable(fd)
    for number in (fd, reader, writer):
        os.close(number)


# -- what is not a message -------------------------------------------------------------------------------


@given(data=st.binary(min_size=1, max_size=200) | st.binary(max_size=200).map(lambda b: b"\0" + b))
def test_any_datagram_is_a_message_or_a_typed_error(data: bytes) -> None:
    ours, theirs = Link.sockets()
    link = Link(ours)
    try:
        theirs.send(data)
        try:
            message = link.receive()
        except MalformedMessage:
            pass
        else:
            assert message is not None
            assert isinstance(message.body, dict)
    finally:
        link.close()
        theirs.close()


@pytest.mark.parametrize(
    "data",
    [
        b"\0[]",
        b'\0"text"',
        b"\0{",
        b"\0\xff\xfe",
        b"\0" + b"[" * 20_000,
        b"\1",
        b"\1" + struct.pack("!Q", 10),
        b"\2{}",
        b"x" * (INLINE_LIMIT + 100),
    ],
)
def test_malformed_datagrams_leave_the_link_usable(raw: tuple[Link, socket.socket], data: bytes) -> None:
    link, peer = raw
    peer.send(data)
    with pytest.raises(MalformedMessage):
        link.receive()
    peer.send(b'\0{"op":"next"}')
    message = link.receive()
    assert message is not None
    assert message.op == "next"


def test_descriptors_of_a_malformed_datagram_are_closed(raw: tuple[Link, socket.socket]) -> None:
    link, peer = raw
    reader, writer = os.pipe()
    peer.sendmsg([b"\0nonsense"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [writer]))])
    os.close(writer)
    with pytest.raises(MalformedMessage):
        link.receive()
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_more_descriptors_than_a_message_may_have_are_noticed(raw: tuple[Link, socket.socket]) -> None:
    link, peer = raw
    fds = array("i", [peer.fileno()] * (DESCRIPTOR_LIMIT + 1))
    peer.sendmsg([b"\0{}"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    with pytest.raises(MalformedMessage, match="descriptors were lost"):
        link.receive()


@pytest.mark.parametrize(
    ("seals", "announced"),
    [
        (0, 10),
        (ALL_SEALS & ~fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE, 10),
        (ALL_SEALS | fcntl.F_SEAL_WRITE, 11),
        (ALL_SEALS | fcntl.F_SEAL_WRITE, 2**40),
        (ALL_SEALS | fcntl.F_SEAL_WRITE, 0),
    ],
)
def test_a_message_file_is_checked_before_it_is_read(
    raw: tuple[Link, socket.socket], seals: int, announced: int
) -> None:
    link, peer = raw
    fd = memory_file(json.dumps({"x": 1}).ljust(10).encode(), seals)
    packet = b"\1" + struct.pack("!Q", announced)
    peer.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))])
    os.close(fd)
    with pytest.raises(MalformedMessage):
        link.receive()


# -- the end ---------------------------------------------------------------------------------------------


def test_the_end_of_the_other_side_is_seen_after_its_last_message(ends: tuple[Link, Link]) -> None:
    left, right = ends
    left.send({"op": "last"})
    left.close()
    message = right.receive()
    assert message is not None
    assert message.op == "last"
    with pytest.raises(LinkClosed):
        right.receive()
    with pytest.raises(LinkClosed):
        right.send({})
    with pytest.raises(LinkClosed):
        left.send({})


def test_a_peer_that_goes_with_unread_messages_is_an_end_too(ends: tuple[Link, Link]) -> None:
    left, right = ends
    right.send({"op": "never read"})
    left.close()
    with pytest.raises(LinkClosed):
        right.receive()


# -- a peer that does not read ---------------------------------------------------------------------------


def fill(link: Link) -> int:
    """Send until the queue is at its bound; how many messages went out or wait."""
    sent = 0
    while True:
        try:
            link.send({"n": sent, "x": "y" * 1000})
        except LinkOverflow:
            return sent
        sent += 1


def test_a_peer_that_does_not_read_overflows_by_name_and_nothing_is_lost(ends: tuple[Link, Link]) -> None:
    left, right = ends
    sent = fill(left)
    assert left.backlog > 0
    assert not left.flush(0.01)
    got = 0
    while got < sent:
        message = right.receive()
        if message is None:
            left.flush(0.005)
            continue
        assert message.body["n"] == got
        got += 1
    assert left.backlog == 0
    left.send({"op": "again"})


def test_descriptors_that_wait_in_the_queue_are_copies(ends: tuple[Link, Link]) -> None:
    left, right = ends
    fill(left)
    while right.receive() is not None:
        pass
    reader, writer = os.pipe()
    left.flush(0.005)
    while left.backlog == 0:
        left.send({"x": "y" * 1000})
    left.send({"op": "pipe"}, [writer])
    os.close(writer)
    while True:
        message = right.receive()
        if message is None:
            left.flush(0.005)
        elif message.op == "pipe":
            break
    fd = message.take_fd()
    os.write(fd, b"!")
    assert os.read(reader, 1) == b"!"
    os.close(fd)
    os.close(reader)


def test_closing_with_a_queue_closes_its_descriptors(ends: tuple[Link, Link]) -> None:
    left, _ = ends
    reader, writer = os.pipe()
    while left.backlog == 0:
        left.send({"x": "y" * 1000})
    left.send({}, [writer])
    os.close(writer)
    left.close()
    assert os.read(reader, 1) == b""
    os.close(reader)


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_loop_drives_both_ends(factory: Any) -> None:
    async def main() -> None:
        left, right = (Link(sock) for sock in Link.sockets())
        loop = asyncio.get_running_loop()
        got: list[int] = []
        everything, end = asyncio.Event(), asyncio.Event()
        ends: list[LinkError] = []

        def on_message(message: Message) -> None:
            assert message.waiting_fds == 1
            got.append(message.body["n"])
            if len(got) == 400:
                everything.set()

        def on_closed(error: LinkError) -> None:
            ends.append(error)
            end.set()

        right.start(loop, on_message, on_closed)
        left.start(loop, lambda message: None, lambda error: None)
        reader, writer = os.pipe()
        for number in range(400):
            left.send({"n": number, "x": "y" * 2000}, [reader])
            if left.backlog > 200:
                await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await everything.wait()
            left.close()
            await end.wait()
        assert got == list(range(400))
        assert isinstance(ends[0], LinkClosed)
        assert right.closed
        os.close(reader)
        os.close(writer)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


async def test_a_malformed_message_ends_a_driven_link_with_its_name() -> None:
    ours, theirs = Link.sockets()
    link = Link(ours)
    ended: asyncio.Future[LinkError] = asyncio.get_running_loop().create_future()
    link.start(asyncio.get_running_loop(), lambda message: None, ended.set_result)
    theirs.send(b"what?")
    async with asyncio.timeout(10):
        assert isinstance(await ended, MalformedMessage)
    assert link.closed
    theirs.close()


# -- shared memory ---------------------------------------------------------------------------------------


def test_both_sides_see_the_same_bytes() -> None:
    block = SharedBlock.create(10_000)
    other = SharedBlock.attach(os.dup(block.fd), 10_000)
    block.buffer[5:8] = b"abc"
    assert other.buffer[5:8] == b"abc"
    with pytest.raises(TypeError):
        other.buffer[0] = 1
    writable = SharedBlock.attach(os.dup(block.fd), 10_000, writable=True)
    writable.buffer[0:1] = b"z"
    assert block.buffer[0:1] == b"z"
    for each in (block, other, writable):
        each.close()


def test_a_block_cannot_change_its_size() -> None:
    block = SharedBlock.create(4096)
    for size in (0, 100, 10_000):
        with pytest.raises(OSError, match="not permitted"):
            os.ftruncate(block.fd, size)
    with pytest.raises(OSError, match="not permitted"):
        fcntl.fcntl(block.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    block.close()


@pytest.mark.parametrize("missing", [fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_SEAL, ALL_SEALS])
def test_a_block_that_lacks_a_seal_is_refused(missing: int) -> None:
    fd = memory_file(b"x" * 4096, ALL_SEALS & ~missing)
    with pytest.raises(MalformedMessage, match="seals"):
        SharedBlock.attach(fd, 4096)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("size", [4095, 4097, 2**60, 0, -1, True, 1.5, "4096"])
def test_a_block_of_another_size_than_announced_is_refused(size: Any) -> None:
    with pytest.raises(MalformedMessage):
        SharedBlock.attach(memory_file(b"x" * 4096, ALL_SEALS), size)


def test_what_is_no_memory_file_is_refused() -> None:
    reader, writer = os.pipe()
    os.close(writer)
    with pytest.raises(MalformedMessage, match="not a memory file"):
        SharedBlock.attach(reader, 4096)


def test_an_array_outlives_the_closing_of_its_block() -> None:
    block = SharedBlock.create(mmap.PAGESIZE)
    array_ = np.frombuffer(block.buffer, np.uint8)
    array_[7] = 9
    block.close()
    assert array_[7] == 9
    with pytest.raises(LinkError, match="closed"):
        _ = block.buffer
    del array_


def test_more_memory_than_there_can_be_is_a_typed_error() -> None:
    with pytest.raises(LinkError, match="no shared memory"):
        SharedBlock.create(2**62)

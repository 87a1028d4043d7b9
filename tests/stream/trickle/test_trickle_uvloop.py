"""The whole way on the event loop that the worker runs on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop
from trickle_helpers import HANG, Relay, collect, nothing_left, self_signed, serving, until

from stream.trickle.publisher import TricklePublisher
from stream.trickle.subscriber import TrickleSubscriber


def on_uvloop(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        # The loop opens descriptors of its own when it first accepts and connects.
        async with serving():
            pass
        async with asyncio.timeout(HANG), nothing_left():
            await work()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())


async def send(url: str, bodies: list[bytes], after: Callable[[int], Awaitable[None]]) -> dict[int, bytes]:
    """Publish ``bodies`` at the pace of a reader and call ``after`` after each; what the reader got."""
    publisher = TricklePublisher(url, verify_tls=False)
    await publisher.start()
    subscriber = TrickleSubscriber(url, start=0, verify_tls=False, not_found_grace=5)
    reading = asyncio.create_task(collect(subscriber))
    for number, body in enumerate(bodies):
        writer = await publisher.next_segment()
        for at in range(0, len(body), 50_000):
            await writer.write(body[at : at + 50_000])
        await writer.close()
        await writer.confirmed()
        await until(lambda n=number: subscriber.statistics.segments == n + 1)
        await after(number)
    await until(lambda: subscriber.statistics.bytes == sum(map(len, bodies)))
    await publisher.close()
    return await reading


@pytest.mark.parametrize("tls", [False, True])
def test_segments_arrive_byte_for_byte(tls: bool, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path) if tls else (None, None)
    bodies = [random.Random(n).randbytes(1 + 70_000 * (n % 5)) for n in range(20)]

    async def work() -> None:
        async with serving(tls_certificate=certificate, tls_key=key) as server:
            received = await send(server.channel_url("c"), bodies, lambda _: asyncio.sleep(0))
            assert received == dict(enumerate(bodies))

    on_uvloop(work)


def test_lost_connections_between_segments_lose_nothing() -> None:
    bodies = [b"%d" % n for n in range(6)]

    async def work() -> None:
        async with serving() as server, Relay(server.channel_url("c")) as relay:

            async def break_all(_: int) -> None:
                relay.break_all()
                # It is to be noticed before the next segment begins.
                await asyncio.sleep(0.05)

            received = await send(relay.url, bodies, break_all)
            assert received == dict(enumerate(bodies))

    on_uvloop(work)


def test_a_stalled_reader_holds_the_server_and_nobody_else() -> None:
    body = random.Random(7).randbytes(20_000_000)

    async def work() -> None:
        async with serving() as server, TricklePublisher(server.channel_url("c")) as publisher:
            await publisher.start()
            writer = await publisher.next_segment()
            await writer.write(body[:1000])
            async with TrickleSubscriber(server.channel_url("c")) as subscriber:
                segments = subscriber.segments()
                segment = await anext(segments)
                await writer.write(body[1000:])
                await writer.close()
                await writer.confirmed()
                await asyncio.sleep(0.1)
                assert await segment.read(len(body)) == body

    on_uvloop(work)

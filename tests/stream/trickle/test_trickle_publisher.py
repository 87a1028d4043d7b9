"""The publisher against a real server, through a relay that can break, and against servers with a script."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from trickle_helpers import (
    HANG,
    Raw,
    Relay,
    collect,
    nothing_left,
    probing,
    scripted,
    self_signed,
    serving,
    until,
)

from stream.errors import InvalidInput, SinkError
from stream.trickle.http1 import Endpoint, open_connection
from stream.trickle.protocol import NEXT, ChannelClosed, SegmentLost
from stream.trickle.publisher import TricklePublisher
from stream.trickle.segment_writer import PublisherOptions, PublisherStatistics, SegmentWriter
from stream.trickle.subscriber import TrickleSubscriber
from stream.trickle.wire import NotWritten


@contextmanager
def server_process(port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, which is killed at the end."""
    program = (
        "import asyncio; from stream.trickle.server import *\n"
        f"asyncio.run(serve_trickle(TrickleServerSettings(port={port}), asyncio.Event(), "
        "lambda url: print(url, flush=True)))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


async def publish(publisher: TricklePublisher, body: bytes) -> SegmentWriter:
    writer = await publisher.next_segment()
    await writer.write(body)
    await writer.close()
    await writer.confirmed()
    return writer


def publisher_of(url: str, **options: object) -> TricklePublisher:
    return TricklePublisher(url, **{"retry_for": 5.0, **options})


class TestSegments:
    async def test_two_hundred_arrive_byte_for_byte(self) -> None:
        chance = random.Random(1)
        bodies = [chance.randbytes(chance.choice([1, 100, 20_000, 300_000])) for _ in range(200)]
        async with probing() as probe, TricklePublisher(probe.server.channel_url("c")) as publisher:
            await publisher.start()
            subscriber = TrickleSubscriber(probe.server.channel_url("c"), start=0)
            reading = asyncio.create_task(collect(subscriber))
            for first in range(0, 200, 2):
                writers = [await publisher.next_segment(), await publisher.next_segment()]
                assert [w.seq for w in writers] == [first, first + 1]
                for writer, body in zip(writers, bodies[first:], strict=False):
                    for at in range(0, len(body), 9_999):
                        await writer.write(body[at : at + 9_999])
                for writer in writers:
                    await writer.close()
                for writer in writers:
                    await writer.confirmed()
                # The ring is short, and nobody may fall out of it here.
                await until(lambda first=first: subscriber.statistics.segments >= first + 2)
            await publisher.close()
            assert await reading == dict(enumerate(bodies))
            assert publisher.statistics.segments == 200
            assert publisher.statistics.bytes == sum(map(len, bodies))
            assert publisher.statistics.reconnects == publisher.statistics.abandoned == 0
            assert subscriber.statistics.skipped == 0

    async def test_numbers_are_unique_when_asked_for_at_once(self) -> None:
        async with probing() as probe, TricklePublisher(probe.server.channel_url("c")) as publisher:
            await publisher.start()
            writers = await asyncio.gather(*(publisher.next_segment() for _ in range(4)))
            assert sorted(w.seq for w in writers) == [0, 1, 2, 3]
            for writer in writers:
                await writer.write(b"%d" % writer.seq)
                await writer.close()
            for writer in writers:
                await writer.confirmed()
                assert (await probe.ask("GET", f"c/{writer.seq}")).body == b"%d" % writer.seq

    async def test_the_request_for_the_next_segment_is_there_before_its_first_byte(self) -> None:
        async with probing() as probe, TricklePublisher(probe.server.channel_url("c")) as publisher:
            await publisher.start()
            await until(lambda: probe.server.channels)
            channel = probe.server._channels.get("c")
            await until(lambda: [s.seq for s in channel.segments] == [0])
            await publisher.next_segment()
            await until(lambda: [s.seq for s in channel.segments] == [0, 1])
            assert channel.next_write == 0

    async def test_bytes_are_readable_before_the_segment_ends(self) -> None:
        async with probing() as probe, TricklePublisher(probe.server.channel_url("c")) as publisher:
            await publisher.start()
            writer = await publisher.next_segment()
            reading = await probe.begin("GET", "c/0")
            for part in (b"one", bytearray(b"two"), memoryview(b"three")):
                await writer.write(part)
                if part == b"one":
                    await reading.head()
                assert await reading.chunk() == bytes(part)

    async def test_a_segment_without_bytes_is_an_empty_one(self) -> None:
        async with probing() as probe, TricklePublisher(probe.server.channel_url("c")) as publisher:
            await publisher.start()
            await publish(publisher, b"")
            assert (await probe.ask("GET", "c/0")).headers["content-length"] == "0"
            await publish(publisher, b"x")
            assert (await probe.ask("GET", "c/1")).body == b"x"
            assert publisher.statistics.segments == 1

    async def test_interim_responses_are_passed_over(self) -> None:
        async with (
            probing(keepalive_interval=0.01) as probe,
            TricklePublisher(probe.server.channel_url("c")) as publisher,
        ):
            await publisher.start()
            await asyncio.sleep(0.2)
            await publish(publisher, b"x")
            await asyncio.sleep(0.2)
            assert (await publish(publisher, b"y")).seq == 1
            assert publisher.statistics.reconnects == 0

    async def test_the_type_and_the_reset_are_told(self) -> None:
        async with probing() as probe:
            abandoned = await probe.begin_post("c/2")
            abandoned.send_chunk(b"x")
            await until(lambda: probe.server.channels)
            waiting = await probe.begin("GET", "c/2")
            await waiting.head()
            assert await waiting.chunk() == b"x"
            async with TricklePublisher(probe.server.channel_url("d"), "video/other") as publisher:
                await publisher.start()
                await publish(publisher, b"x")
                assert (await probe.ask("GET", "d/0")).headers["content-type"] == "video/other"
            async with TricklePublisher(probe.server.channel_url("c")) as publisher:
                await publisher.start(NEXT, reset=True)
                assert await waiting.chunk() == b""
                assert (await publisher.next_segment()).seq == 3

    async def test_a_segment_can_be_abandoned(self) -> None:
        async with probing() as probe, TricklePublisher(probe.server.channel_url("c")) as publisher:
            await publisher.start()
            writer = await publisher.next_segment()
            await writer.write(b"part")
            reading = await probe.begin("GET", "c/0")
            await reading.head()
            assert await reading.chunk() == b"part"
            await writer.abandon()
            assert await reading.chunk() == b""
            with pytest.raises(SegmentLost):
                await writer.write(b"more")
            with pytest.raises(SegmentLost):
                await writer.confirmed()
            assert publisher.statistics.abandoned == 1
            await publish(publisher, b"next")
            assert (await probe.ask("GET", "c/1")).body == b"next"

    async def test_a_segment_that_nothing_was_written_to_can_be_abandoned(self) -> None:
        async with probing() as probe, TricklePublisher(probe.server.channel_url("c")) as publisher:
            await publisher.start()
            await (await publisher.next_segment()).abandon()
            assert (await probe.ask("GET", "c/0")).headers["content-length"] == "0"
            assert (await publish(publisher, b"x")).seq == 1

    async def test_a_full_segment_is_lost_and_the_next_one_is_not(self) -> None:
        async with (
            probing(max_segment_bytes=100_000) as probe,
            TricklePublisher(probe.server.channel_url("c")) as publisher,
        ):
            await publisher.start()
            with pytest.raises(SegmentLost, match="413"):
                await publish(publisher, bytes(200_000))
            await publish(publisher, b"x")

    async def test_a_closed_segment_takes_nothing_more(self) -> None:
        async with probing() as probe, TricklePublisher(probe.server.channel_url("c")) as publisher:
            await publisher.start()
            writer = await publish(publisher, b"x")
            with pytest.raises(SinkError, match="closed already"):
                await writer.write(b"y")


@pytest.mark.descriptors
class TestBrokenConnections:
    async def test_a_preconnect_that_is_lost_costs_nothing(self) -> None:
        async with probing() as probe, Relay(probe.server.channel_url("c")) as relay:
            publisher = publisher_of(relay.url)
            await publisher.start()
            writer = await publisher.next_segment()
            await until(lambda: relay.accepted == 2)
            relay.break_all()
            await until(lambda: publisher.statistics.reconnects == 2)
            assert relay.accepted == 2
            await writer.write(b"whole")
            await writer.close()
            await writer.confirmed()
            assert (await probe.ask("GET", "c/0")).body == b"whole"
            await publish(publisher, b"next")
            assert (await probe.ask("GET", "c/1")).body == b"next"
            assert publisher.statistics.abandoned == 0
            await publisher.close()

    async def test_a_segment_that_breaks_off_is_ended_and_the_next_one_arrives(self) -> None:
        async with probing() as probe, Relay(probe.server.channel_url("c")) as relay:
            publisher = publisher_of(relay.url)
            await publisher.start()
            writer = await publisher.next_segment()
            await writer.write(b"part")
            reading = await probe.begin("GET", "c/0")
            await reading.head()
            assert await reading.chunk() == b"part"
            relay.break_all()
            assert await reading.chunk() == b""
            with pytest.raises(SegmentLost, match="broke off after 4 bytes"):
                await writer.write(b"more")
            assert (await publish(publisher, b"next")).seq == 1
            assert (await probe.ask("GET", "c/1")).body == b"next"
            assert publisher.statistics.abandoned == 1
            await publisher.close()

    async def test_a_server_that_comes_back_is_found_again(self) -> None:
        async with serving() as first:
            publisher = publisher_of(first.channel_url("c"))
            await publisher.start()
            await publish(publisher, b"before")
            port = int(first.url.rsplit(":", 1)[1])
            writer = await publisher.next_segment()
        await asyncio.sleep(0.15)
        # The first server has told its preconnects that the channel is closed; that is an end, not a fault.
        with pytest.raises(ChannelClosed):
            await writer.confirmed()
        await publisher.close()
        async with probing(port=port) as probe:
            again = publisher_of(probe.server.channel_url("c"))
            await again.start(NEXT)
            assert (await publish(again, b"after")).seq == 0
            await again.close()

    async def test_a_server_that_is_killed_and_restarted_gets_what_follows(self) -> None:
        with server_process() as (process, url):
            publisher = publisher_of(f"{url}/c", retry_for=30)
            await publisher.start()
            await publish(publisher, b"before")
            broken = await publisher.next_segment()
            await broken.write(b"part")
            whole = await publisher.next_segment()
            await until(lambda: publisher.statistics.bytes == 10)
            process.kill()
            with pytest.raises(SegmentLost):
                await broken.confirmed()
            # Both of the requests that wait for their first byte have found nobody there.
            await until(lambda: publisher.statistics.reconnects >= 4)
            await whole.write(b"what waits ")
            await whole.write(b"while nobody is there")
            await whole.close()
            with server_process(int(url.rsplit(":", 1)[1])):
                async with asyncio.timeout(HANG):
                    await whole.confirmed()
                reader = TrickleSubscriber(f"{url}/c", start=2)
                async with reader:
                    segment = await anext(reader.segments())
                    assert await segment.read(100) == b"what waits while nobody is there"
                assert (await publish(publisher, b"after")).seq == 3
                await publisher.close()

    async def test_a_server_that_stays_away_is_named(self) -> None:
        async with serving() as server:
            url = server.channel_url("c")
        publisher = publisher_of(url, retry_for=0.3)
        with pytest.raises(SinkError, match=rf"{url}/0: .*[Cc]onnect") as caught:
            await publisher.start()
        assert not isinstance(caught.value, ChannelClosed)
        with pytest.raises(SinkError, match=url):
            await publisher.next_segment()
        async with asyncio.timeout(HANG):
            await publisher.wait_ended()
        await publisher.close()

    async def test_a_stalled_server_holds_the_writer_and_then_loses_the_segment(self) -> None:
        async with probing() as probe, Relay(probe.server.channel_url("c")) as relay:
            publisher = publisher_of(relay.url, write_timeout=0.5, max_pending_bytes=100_000)
            await publisher.start()
            writer = await publisher.next_segment()
            relay.hold()
            piece, most = bytes(50_000), 0

            async def write_on() -> None:
                nonlocal most
                for _ in range(1000):
                    await writer.write(piece)
                    most = max(most, writer.pending_bytes)

            with pytest.raises(SegmentLost, match="taken nothing"):
                await write_on()
            assert 100_000 <= most < 150_000
            relay.release()
            await publish(publisher, b"next")
            await publisher.close()

    async def test_a_segment_that_is_never_confirmed_is_lost(self) -> None:
        requests: list[bytes] = []

        async def script(raw: Raw, head: bytes) -> None:
            requests.append(head.split(b" HTTP")[0])
            while head.startswith(b"POST /c/0") and await raw.chunk():
                pass
            if head.startswith(b"DELETE"):
                raw.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            else:
                await raw.reader.read()

        async with scripted(script) as url:
            publisher = publisher_of(url, write_timeout=0.2)
            await publisher.start()
            with pytest.raises(SegmentLost, match="no answer"):
                await publish(publisher, b"x")
            await until(lambda: b"DELETE /c/0" in requests)
            await publisher.close()

    async def test_bytes_for_a_connection_that_is_gone_are_kept_for_the_next(self) -> None:
        async def script(raw: Raw, head: bytes) -> None:
            raw.reset()

        async with scripted(script) as url:
            endpoint, statistics = Endpoint.parse(url), PublisherStatistics()
            options = PublisherOptions("video/mp2t", True, 5.0, 5.0, 5.0, 1000)
            writer = SegmentWriter(endpoint, 0, options, statistics, lambda _: None)
            await writer.write(b"kept")
            connection = await open_connection(endpoint, verify_tls=True, timeout=HANG)
            await connection.send_head("POST", "/c/0", {}, body=True)
            await until(lambda: connection._wire.gone)
            answer = asyncio.create_task(asyncio.sleep(HANG))
            with pytest.raises(NotWritten):
                await writer._send_body(connection, answer)
            assert (writer.pending_bytes, statistics.bytes) == (4, 0)
            assert writer._take() == b"kept"
            answer.cancel()
            await connection.close()

    async def test_too_many_unfinished_segments_are_an_error(self) -> None:
        async with probing() as probe:
            publisher = publisher_of(probe.server.channel_url("c"), write_timeout=0.2)
            await publisher.start()
            writers = [await publisher.next_segment() for _ in range(4)]
            with pytest.raises(SinkError, match="4 segments unfinished"):
                await publisher.next_segment()
            await writers[0].close()
            assert (await publisher.next_segment()).seq == 4
            await publisher.close()


class TestDisplacedPreconnects:
    async def test_a_slot_taken_by_another_is_taken_back(self) -> None:
        async with probing() as probe, TricklePublisher(probe.server.channel_url("c")) as publisher:
            await publisher.start()
            await until(lambda: probe.server.channels)
            await probe.post("c/5", b"other")
            await until(lambda: publisher.statistics.reconnects == 1)
            assert (await publish(publisher, b"ours")).seq == 0
            assert (await probe.ask("GET", "c/0")).body == b"ours"

    async def test_a_deleted_segment_is_followed_by_the_next_number(self) -> None:
        async with probing() as probe, TricklePublisher(probe.server.channel_url("c")) as publisher:
            await publisher.start()
            await until(lambda: probe.server.channels)
            await probe.ask("DELETE", "c/0")
            await until(lambda: publisher.statistics.reconnects == 2)
            assert (await publish(publisher, b"ours")).seq == 1
            assert (await probe.ask("GET", "c/1")).body == b"ours"

    async def test_a_deleted_segment_that_is_being_written_is_lost(self) -> None:
        async with probing() as probe, TricklePublisher(probe.server.channel_url("c")) as publisher:
            await publisher.start()
            writer = await publisher.next_segment()
            await until(lambda: probe.server.channels)
            await probe.ask("DELETE", "c/0")
            async with asyncio.timeout(HANG):
                with pytest.raises(SegmentLost):
                    await writer.confirmed()
            assert (await publish(publisher, b"x")).seq == 1

    async def test_first_bytes_that_crossed_the_end_of_a_preconnect_are_sent_again(self) -> None:
        requests: list[bytes] = []

        async def script(raw: Raw, head: bytes) -> None:
            requests.append(head.split(b" HTTP")[0])
            if len(requests) == 1:
                assert await raw.chunk() == b"document"
                raw.send(
                    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\nLp-Trickle-Seq: 0\r\n\r\n"
                )
            elif head.startswith(b"POST /c/0"):
                assert await raw.chunk() == b"document"
                assert await raw.chunk() == b""
                raw.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nLp-Trickle-Seq: 0\r\n\r\n")
            else:
                while head.startswith(b"POST") and await raw.chunk():
                    pass
                raw.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        async with scripted(script) as url:
            publisher = publisher_of(url)
            await publisher.start()
            writer = await publisher.next_segment()
            await writer.write(b"document")
            await writer.close()
            async with asyncio.timeout(HANG):
                await writer.confirmed()
            await publisher.close(delete_channel=False)
        assert requests.count(b"POST /c/0") == 2

    async def test_two_publishers_that_displace_each_other_come_to_rest(self) -> None:
        async with probing() as probe:
            url = probe.server.channel_url("c")
            ours, theirs = publisher_of(url), publisher_of(url)
            await ours.start(0)
            await theirs.start(5)
            await until(lambda: ours.statistics.reconnects == 2)
            assert (await publish(ours, b"ours")).seq == 1
            assert (await probe.ask("GET", "c/1")).body == b"ours"
            assert (await publish(theirs, b"theirs")).seq == 5
            assert (await probe.ask("GET", "c/5")).body == b"theirs"
            assert ours.statistics.reconnects + theirs.statistics.reconnects == 3
            await ours.close()
            await theirs.close()


@pytest.mark.descriptors
class TestEnds:
    async def test_an_unknown_channel_is_an_end_and_not_a_fault(self) -> None:
        async with probing(autocreate=False) as probe:
            publisher = publisher_of(probe.server.channel_url("c"))
            await publisher.start()
            async with asyncio.timeout(HANG):
                await publisher.wait_ended()
            assert isinstance(publisher.failure, ChannelClosed)
            with pytest.raises(ChannelClosed, match="404"):
                await publisher.next_segment()
            await publisher.close()

    async def test_a_deleted_channel_ends_the_publisher(self) -> None:
        async with probing(autocreate=False) as probe:
            probe.server.create_channel("c", "")
            publisher = publisher_of(probe.server.channel_url("c"))
            await publisher.start()
            writer = await publisher.next_segment()
            await writer.write(b"x")
            await until(lambda: probe.server._channels.get("c").next_write == 1)
            await probe.ask("DELETE", "c")
            async with asyncio.timeout(HANG):
                await publisher.wait_ended()
            await writer.close()
            await writer.confirmed()
            with pytest.raises(ChannelClosed, match="closed"):
                await publisher.next_segment()
            await publisher.close()

    async def test_a_swept_channel_ends_the_publisher(self) -> None:
        async with probing(idle_timeout=0.1, sweep_interval=0.02, autocreate=False) as probe:
            probe.server.create_channel("c", "")
            publisher = publisher_of(probe.server.channel_url("c"))
            await publisher.start()
            async with asyncio.timeout(HANG):
                await publisher.wait_ended()
            assert isinstance(publisher.failure, ChannelClosed)
            await publisher.close()

    @pytest.mark.parametrize(("status", "fatal"), [(400, True), (403, True), (503, False)])
    async def test_a_refusal_is_told_and_a_passing_one_is_retried(self, status: int, fatal: bool) -> None:
        requests = 0

        async def script(raw: Raw, head: bytes) -> None:
            nonlocal requests
            requests += 1
            raw.send(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)

        async with scripted(script) as url:
            publisher = publisher_of(url, retry_for=0.4)
            await publisher.start()
            async with asyncio.timeout(HANG):
                await publisher.wait_ended()
            assert publisher.failure is not None
            assert str(status) in publisher.failure.message
            assert (requests == 1) == fatal
            await publisher.close()

    async def test_close_deletes_the_channel_after_what_was_closed(self) -> None:
        async with probing() as probe:
            publisher = publisher_of(probe.server.channel_url("c"))
            await publisher.start()
            collecting = asyncio.create_task(
                collect(TrickleSubscriber(probe.server.channel_url("c"), start=0, not_found_grace=5))
            )
            await publish(publisher, b"one")
            await until(lambda: probe.server.connection_count >= 3)
            writer = await publisher.next_segment()
            await writer.write(b"two")
            await writer.close()
            await publisher.close()
            assert probe.server.channels == ()
            assert await collecting == {0: b"one", 1: b"two"}
            with pytest.raises(SinkError, match="closed"):
                await publisher.next_segment()

    async def test_a_channel_that_is_left_open_can_be_continued(self) -> None:
        async with probing() as probe:
            url = probe.server.channel_url("c")
            first = publisher_of(url)
            await first.start()
            await publish(first, b"one")
            unfinished = await first.next_segment()
            await unfinished.write(b"part")
            collecting = asyncio.create_task(collect(TrickleSubscriber(url, start=0)))
            await until(lambda: probe.server._channels.get("c").next_write == 2)
            await first.close(delete_channel=False)
            assert all(segment.closed for segment in probe.server._channels.get("c").segments)
            second = publisher_of(url)
            await second.start(NEXT)
            assert (await publish(second, b"three")).seq == 3
            await asyncio.sleep(0.05)
            await second.close()
            assert await collecting == {0: b"one", 1: b"part", 3: b"three"}

    async def test_a_closed_publisher_has_left_nothing(self) -> None:
        async with probing() as probe, nothing_left():
            # The server's side of each connection ends with it.
            publisher = publisher_of(probe.server.channel_url("c"))
            await publisher.start()
            await (await publisher.next_segment()).write(b"never closed")
            begun = time.monotonic()
            await publisher.close()
            await publisher.close()
            assert time.monotonic() - begun < 5

    async def test_a_publisher_that_never_reached_its_server_closes_at_once(self) -> None:
        async with serving() as server:
            url = server.channel_url("c")
        async with nothing_left():
            publisher = publisher_of(url, retry_for=60)
            starting = asyncio.create_task(publisher.start())
            await asyncio.sleep(0.1)
            await publisher.close()
            with pytest.raises(SinkError, match="closed"):
                await starting

    async def test_closing_in_the_moment_of_the_start_ends_the_start(self) -> None:
        publisher = publisher_of("http://127.0.0.1:1/c", retry_for=60)
        starting = asyncio.create_task(publisher.start())
        closing = asyncio.create_task(publisher.close())
        async with asyncio.timeout(HANG):
            with pytest.raises(SinkError, match="closed"):
                await starting
            await closing

    async def test_closing_while_the_server_is_asked_ends_the_start(self) -> None:
        asked = asyncio.Event()

        async def script(raw: Raw, head: bytes) -> None:
            asked.set()
            await asyncio.sleep(0.1)
            raw.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n7")

        async with scripted(script) as url, nothing_left():
            publisher = publisher_of(url)
            starting = asyncio.create_task(publisher.start(NEXT))
            await asked.wait()
            await publisher.close()
            with pytest.raises(SinkError, match="closed"):
                await starting

    async def test_one_that_was_not_started_has_nothing_to_close(self) -> None:
        publisher = publisher_of("http://127.0.0.1:1/c")
        with pytest.raises(SinkError, match="not started"):
            await publisher.next_segment()
        await publisher.close()


@pytest.mark.descriptors
class TestTls:
    async def test_a_self_signed_certificate_needs_leave(self, tmp_path: Path) -> None:
        certificate, key = self_signed(tmp_path)
        async with serving(tls_certificate=certificate, tls_key=key) as server:
            url = server.channel_url("c")
            assert url.startswith("https://")
            strict = publisher_of(url)
            with pytest.raises(SinkError, match="certificate"):
                await strict.start()
            await strict.close()
            async with publisher_of(url, verify_tls=False) as publisher:
                await publisher.start()
                subscriber = TrickleSubscriber(url, start=0, verify_tls=False)
                reading = asyncio.create_task(collect(subscriber))
                body = random.Random(2).randbytes(700_000)
                await publish(publisher, body)
                await publish(publisher, b"end")
                await until(lambda: subscriber.statistics.segments == 2)
                await publisher.close()
                assert await reading == {0: body, 1: b"end"}


class TestUrls:
    @pytest.mark.parametrize(
        "url",
        [
            "",
            "x/c",
            "ftp://x/c",
            "http:///c",
            "http://x",
            "http://x/",
            "http://x:p/c",
            "http://u:p@x/c",
            "http://x/c?q",
            "http://x/ö",
            "http://x/a b",
        ],
    )
    async def test_one_that_names_no_channel_is_refused(self, url: str) -> None:
        with pytest.raises(InvalidInput) as caught:
            TricklePublisher(url)
        assert caught.value.field == "url"
        with pytest.raises(InvalidInput):
            TrickleSubscriber(url)

    async def test_a_slash_at_the_end_does_no_harm(self) -> None:
        async with (
            probing(base_path="/ai/trickle/") as probe,
            publisher_of(probe.server.channel_url("c") + "/") as publisher,
        ):
            await publisher.start()
            await publish(publisher, b"x")
            assert (await probe.ask("GET", "c/0")).body == b"x"

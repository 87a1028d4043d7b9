"""The subscriber against a real server, through a relay that can break, and against servers with a script."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
from trickle_helpers import HANG, Probe, Raw, Relay, collect, nothing_left, probing, scripted, serving, until

from stream.errors import SourceError, TooLarge
from stream.trickle.protocol import NEXT, ChannelIdle
from stream.trickle.subscriber import SubscribedSegment, TrickleSubscriber


def subscriber_of(url: str, **options: object) -> TrickleSubscriber:
    return TrickleSubscriber(url, **{"retry_for": 5.0, "not_found_grace": 0.0, **options})


async def first_segment(subscriber: TrickleSubscriber) -> SubscribedSegment:
    segments = subscriber.segments()
    async with asyncio.timeout(HANG):
        segment = await anext(segments)
    # An iteration that is thrown away ends the subscription; this one lives as long as its segment.
    segment.iteration = segments
    return segment


async def next_chunk(segment_chunks: object) -> bytes:
    async with asyncio.timeout(HANG):
        return (await anext(segment_chunks)).data


async def wait_parked(probe: Probe, seq: int) -> None:
    """Until a reader waits for segment ``seq`` of channel c."""
    await until(lambda: any(s.seq == seq and s._watchers for s in probe.segments("c")))


class TestReading:
    async def test_chunks_come_as_they_are_written_with_the_time_of_their_arrival(self) -> None:
        async with probing() as probe, subscriber_of(probe.server.channel_url("c")) as subscriber:
            begun = time.monotonic_ns()
            posting = await probe.begin_segment("c", 0, b"first")
            segment = await first_segment(subscriber)
            assert segment.seq == 0
            chunks = segment.chunks()
            first = await anext(chunks)
            assert first.data == b"first"
            assert begun < first.arrived < time.monotonic_ns()
            posting.send_chunk(b"second")
            # The time is that of the arrival, however late the chunk is asked for.
            await asyncio.sleep(0.2)
            second = await anext(chunks)
            assert second.data == b"second"
            assert first.arrived < second.arrived < time.monotonic_ns() - 100_000_000
            posting.end_chunks()
            assert [chunk async for chunk in chunks] == []
            assert not segment.truncated

    @pytest.mark.parametrize(("start", "first"), [(-2, 4), (-1, 5), (0, 0), (2, 2), (3, 3)])
    async def test_starts_where_it_is_told_to(self, start: int, first: int) -> None:
        async with probing() as probe:
            for number in range(5):
                await probe.post(f"c/{number}", b"%d" % number)
            subscriber = subscriber_of(probe.server.channel_url("c"), start=start)
            reading = asyncio.create_task(collect(subscriber))
            await wait_parked(probe, 5)
            await probe.post("c/5", b"5")
            await wait_parked(probe, 6)
            await probe.ask("DELETE", "c")
            assert await reading == {number: b"%d" % number for number in range(first, 6)}
            assert subscriber.statistics.skipped == 0

    async def test_asks_for_the_next_segment_while_it_reads_one(self) -> None:
        async with probing() as probe, subscriber_of(probe.server.channel_url("c")) as subscriber:
            await probe.begin_segment("c", 0, b"x")
            await first_segment(subscriber)
            await wait_parked(probe, 1)

    async def test_waits_for_a_segment_as_long_as_it_takes(self) -> None:
        async with probing() as probe, Relay(probe.server.channel_url("c")) as relay:
            await probe.post("c/0", b"0")
            subscriber = subscriber_of(relay.url, reissue_after=0.1)
            reading = asyncio.create_task(collect(subscriber))
            await until(lambda: relay.accepted >= 5)
            await probe.post("c/1", b"1")
            await wait_parked(probe, 2)
            await probe.ask("DELETE", "c")
            assert await reading == {0: b"0", 1: b"1"}
            assert subscriber.statistics.reconnects == 0

    async def test_what_is_not_taken_stays_with_the_server(self) -> None:
        async with probing() as probe, Relay(probe.server.channel_url("c")) as relay:
            body = random.Random(3).randbytes(40_000_000)
            assert (await probe.post("c/0", body)).status == 200
            async with subscriber_of(relay.url) as subscriber:
                segment = await first_segment(subscriber)
                chunks = segment.chunks()
                received = (await anext(chunks)).data
                await asyncio.sleep(0.3)
                # What was let through fills the buffers of two connections and not a byte of more memory.
                assert relay.downstream < 25_000_000
                received += b"".join([chunk.data async for chunk in chunks])
                assert received == body

    async def test_a_segment_that_is_not_read_to_its_end_is_left(self) -> None:
        async with probing() as probe, subscriber_of(probe.server.channel_url("c"), start=0) as subscriber:
            await probe.begin_segment("c", 0, b"0")
            numbers = []
            async for segment in subscriber.segments():
                numbers.append(segment.seq)
                if segment.seq == 0:
                    await probe.post("c/1", b"1")
                else:
                    await probe.ask("DELETE", "c")
            assert numbers == [0, 1]

    async def test_a_whole_segment_is_read_up_to_a_limit(self) -> None:
        async with probing() as probe:
            for body, limit in ((b"12345", 5), (b"123456", 5)):
                await probe.post("c/0", body)
                async with subscriber_of(probe.server.channel_url("c")) as subscriber:
                    segment = await first_segment(subscriber)
                    if len(body) <= limit:
                        assert await segment.read(limit) == body
                    else:
                        with pytest.raises(TooLarge, match="limit of 5"):
                            await segment.read(limit)
                await probe.ask("DELETE", "c")

    async def test_a_body_that_ends_with_its_connection_is_whole(self) -> None:
        async def script(raw: Raw, head: bytes) -> None:
            if head.startswith(b"GET /c/-2 "):
                raw.send(b"HTTP/1.0 200 OK\r\nLp-Trickle-Seq: 4\r\n\r\nfour")
            else:
                raw.send(b"HTTP/1.1 404 Gone\r\nContent-Length: 0\r\n\r\n")

        async with scripted(script) as url:
            assert await collect(subscriber_of(url)) == {4: b"four"}

    async def test_is_read_once(self) -> None:
        async with probing() as probe, subscriber_of(probe.server.channel_url("c")) as subscriber:
            await probe.post("c/0", b"x")
            await first_segment(subscriber)
            with pytest.raises(RuntimeError):
                await anext(subscriber.segments())


class TestGaps:
    async def test_one_that_fell_behind_goes_on_with_the_newest(self) -> None:
        async with probing() as probe:
            await probe.begin_segment("c", 0, b"0")
            subscriber = subscriber_of(probe.server.channel_url("c"))
            segments = subscriber.segments()
            assert (await anext(segments)).seq == 0
            await wait_parked(probe, 1)
            for number in range(1, 12):
                await probe.post(f"c/{number}", b"%d" % number)
            one = await anext(segments)
            # 1 was asked for while 0 was read; what follows it is out of the ring.
            assert (one.seq, await one.read(10)) == (1, b"1")
            newest = asyncio.create_task(anext(segments))
            await wait_parked(probe, 12)
            await probe.post("c/12", b"12")
            assert [(await newest).seq, (await anext(segments)).seq] == [11, 12]
            assert subscriber.statistics.skipped == 9
            await subscriber.close()

    async def test_empty_segments_are_passed_over(self) -> None:
        async with probing() as probe:
            await probe.post("c/0", b"0")
            subscriber = subscriber_of(probe.server.channel_url("c"))
            reading = asyncio.create_task(collect(subscriber))
            await wait_parked(probe, 1)
            for number in (1, 2, 3):
                await probe.post(f"c/{number}", b"")
            await probe.post("c/4", b"4")
            await wait_parked(probe, 5)
            await probe.ask("DELETE", "c")
            assert await reading == {0: b"0", 4: b"4"}
            assert subscriber.statistics.empty == 3

    async def test_segments_begun_out_of_order_are_not_read_twice(self) -> None:
        async with probing() as probe:
            await probe.post("c/1", b"1")
            await probe.post("c/0", b"0")
            subscriber = subscriber_of(probe.server.channel_url("c"), start=1)
            reading = asyncio.create_task(collect(subscriber))
            # The server now says of 2 that it does not exist and that 1 is the next to come.
            await until(lambda: subscriber.statistics.segments == 1)
            await asyncio.sleep(0.1)
            await probe.post("c/2", b"2")
            await wait_parked(probe, 3)
            await probe.ask("DELETE", "c")
            assert await reading == {1: b"1", 2: b"2"}

    async def test_a_publisher_that_starts_anew_is_followed(self) -> None:
        async with probing() as probe:
            await probe.post("c/57", b"old")
            subscriber = subscriber_of(probe.server.channel_url("c"))
            numbers: list[int] = []

            async def read() -> None:
                async for segment in subscriber.segments():
                    numbers.append(segment.seq)
                    await segment.read(100)

            reading = asyncio.create_task(read())
            await wait_parked(probe, 58)
            for number in range(8):
                await probe.post(f"c/{number}", b"new")
                await asyncio.sleep(0.02)
            await until(lambda: 7 in numbers)
            await probe.ask("DELETE", "c")
            async with asyncio.timeout(HANG):
                await reading
            assert numbers[0] == 57
            assert numbers[1:] == sorted(set(numbers[1:]))
            # 58 was waited for until the new one took its slot with 3.
            assert set(numbers[1:]) >= {4, 5, 6, 7}

    async def test_a_segment_that_stalls_is_left_for_the_next_one(self) -> None:
        async with probing() as probe:
            await probe.begin_segment("c", 0, b"part")
            subscriber = subscriber_of(probe.server.channel_url("c"), stall_timeout=0.1)
            segments = subscriber.segments()
            first = await anext(segments)
            reading = asyncio.create_task(first.read(100))
            await wait_parked(probe, 1)
            await asyncio.sleep(0.3)
            assert not reading.done()
            await probe.post("c/1", b"next")
            assert await reading == b"part"
            assert first.truncated
            assert await (await anext(segments)).read(100) == b"next"
            assert subscriber.statistics.truncated == 1
            await subscriber.close()

    async def test_a_slow_segment_is_not_left_while_nothing_follows(self) -> None:
        async with probing() as probe:
            posting = await probe.begin_segment("c", 0, b"one")
            async with subscriber_of(probe.server.channel_url("c"), stall_timeout=0.05) as subscriber:
                segment = await first_segment(subscriber)
                chunks = segment.chunks()
                assert await next_chunk(chunks) == b"one"
                last = asyncio.create_task(next_chunk(chunks))
                await asyncio.sleep(0.3)
                posting.send_chunk(b"two")
                assert await last == b"two"

    async def test_a_server_that_refuses_every_number_is_left_in_time(self) -> None:
        requests = 0

        async def script(raw: Raw, head: bytes) -> None:
            nonlocal requests
            requests += 1
            raw.send(b"HTTP/1.1 470 No\r\nLp-Trickle-Latest: 5\r\nContent-Length: 0\r\n\r\n")

        async with scripted(script) as url:
            with pytest.raises(SourceError, match="470"):
                await first_segment(subscriber_of(url, missing_patience=0.5))
        assert 3 < requests < 30


class TestEnds:
    async def test_a_closed_channel_is_the_end_for_one_that_waits(self) -> None:
        async with probing() as probe:
            await probe.post("c", b"")
            reading = asyncio.create_task(collect(subscriber_of(probe.server.channel_url("c"))))
            await wait_parked(probe, 0)
            await probe.ask("DELETE", "c")
            assert await reading == {}

    async def test_404_after_success_is_the_end(self) -> None:
        async with probing() as probe:
            await probe.post("c/0", b"0")
            segments = []
            async for segment in subscriber_of(probe.server.channel_url("c")).segments():
                await wait_parked(probe, 1)
                await probe.ask("DELETE", "c/1")
                await asyncio.sleep(0.05)
                await probe.ask("DELETE", "c")
                segments.append(await segment.read(10))
            assert segments == [b"0"]

    async def test_404_after_a_request_was_held_open_is_the_end(self) -> None:
        async with probing() as probe:
            await probe.post("c", b"")
            subscriber = subscriber_of(probe.server.channel_url("c"), reissue_after=0.1)
            reading = asyncio.create_task(collect(subscriber))
            await wait_parked(probe, 0)
            await until(lambda: subscriber._cursor.seen)
            await probe.ask("DELETE", "c")
            assert await reading == {}

    async def test_404_at_the_start_is_an_error_that_says_so(self) -> None:
        async with serving() as server:
            url = server.channel_url("c")
            with pytest.raises(SourceError, match=f"{url}.*404"):
                await first_segment(subscriber_of(url))

    async def test_a_channel_has_a_moment_to_appear(self) -> None:
        async with probing() as probe:
            subscriber = subscriber_of(probe.server.channel_url("c"), not_found_grace=10)
            reading = asyncio.create_task(first_segment(subscriber))
            await asyncio.sleep(0.3)
            await probe.post("c/0", b"x")
            assert (await reading).seq == 0
            await subscriber.close()

    async def test_an_unreachable_server_is_named(self) -> None:
        async with serving() as server:
            url = server.channel_url("c")
        with pytest.raises(SourceError, match=rf"{url}/-2: .*[Cc]onnect"):
            await first_segment(subscriber_of(url, retry_for=0.3))

    async def test_a_server_that_goes_away_is_an_error(self) -> None:
        async with probing() as probe, Relay(probe.server.channel_url("c")) as relay:
            await probe.post("c/0", b"x")
            subscriber = subscriber_of(relay.url, retry_for=0.3)
            reading = asyncio.create_task(collect(subscriber))
            await wait_parked(probe, 1)
            relay._listener.close()
            relay.break_all()
            with pytest.raises(SourceError, match=relay._path):
                await reading

    @pytest.mark.parametrize(("status", "tries"), [(401, 1), (307, 1), (500, 3), (503, 3)])
    async def test_a_refusal_is_told_and_a_passing_one_is_retried(self, status: int, tries: int) -> None:
        requests = 0

        async def script(raw: Raw, head: bytes) -> None:
            nonlocal requests
            requests += 1
            raw.send(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status)

        async with scripted(script) as url:
            with pytest.raises(SourceError, match=str(status)):
                await first_segment(subscriber_of(url, retry_for=0.4))
        assert requests >= tries
        assert tries > 1 or requests == 1

    @pytest.mark.parametrize(
        "answer",
        [
            b"",
            b"nonsense\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nLp-Trickle-Seq: -7\r\nContent-Length: 1\r\n\r\nx",
        ],
    )
    async def test_nonsense_is_an_error(self, answer: bytes) -> None:
        async def script(raw: Raw, head: bytes) -> None:
            raw.send(answer)

        async with scripted(script) as url:
            with pytest.raises(SourceError):
                await first_segment(subscriber_of(url, retry_for=0.2))

    async def test_silence_is_told_when_asked_for(self) -> None:
        async with probing() as probe:
            await probe.post("c/0", b"x")
            with pytest.raises(ChannelIdle, match=r"0\.2 s"):
                await collect(subscriber_of(probe.server.channel_url("c"), idle_timeout=0.2))

    async def test_the_next_segment_may_take_long_to_read(self) -> None:
        async with probing() as probe:
            posting = await probe.begin_segment("c", 0, b"0")
            subscriber = subscriber_of(probe.server.channel_url("c"), idle_timeout=0.2)
            reading = asyncio.create_task(collect(subscriber))
            await wait_parked(probe, 1)
            await asyncio.sleep(0.5)
            posting.end_chunks()
            await probe.post("c/1", b"1")
            await wait_parked(probe, 2)
            await probe.ask("DELETE", "c")
            assert await reading == {0: b"0", 1: b"1"}


@pytest.mark.descriptors
class TestBrokenConnections:
    async def test_a_segment_that_breaks_off_is_continued_without_a_byte_twice(self) -> None:
        async with probing() as probe, Relay(probe.server.channel_url("c")) as relay:
            body = random.Random(4).randbytes(900_000)
            await probe.post("c/0", body)
            for cut in (300, 100_000, 600_000):
                relay.downstream, relay.cut_downstream_at = 0, cut
                async with subscriber_of(relay.url) as subscriber:
                    segment = await first_segment(subscriber)
                    assert await segment.read(10**6) == body
                    assert not segment.truncated
                    assert subscriber.statistics.resumed + subscriber.statistics.reconnects >= 1
                assert relay.cut_downstream_at is None

    async def test_an_unfinished_segment_is_continued_live(self) -> None:
        async with probing() as probe, Relay(probe.server.channel_url("c")) as relay:
            posting = await probe.begin_segment("c", 0, b"one")
            async with subscriber_of(relay.url) as subscriber:
                segment = await first_segment(subscriber)
                chunks = segment.chunks()
                assert await next_chunk(chunks) == b"one"
                relay.break_all()
                coming = asyncio.create_task(next_chunk(chunks))
                await until(lambda: subscriber.statistics.resumed == 1)
                posting.send_chunk(b"two")
                posting.end_chunks()
                assert await coming == b"two"
                assert [chunk async for chunk in chunks] == []
                assert not segment.truncated

    async def test_a_segment_that_is_another_one_now_is_not_mixed_with_it(self) -> None:
        async with probing() as probe, Relay(probe.server.channel_url("c")) as relay:
            await probe.begin_segment("c", 0, b"old beginning")
            subscriber = subscriber_of(relay.url)
            segments = subscriber.segments()
            segment = await anext(segments)
            chunks = segment.chunks()
            assert await next_chunk(chunks) == b"old beginning"
            # All at once for the subscriber: the connection breaks and the server has forgotten everything.
            relay.break_all()
            probe.server.delete_channel("c")
            probe.server.create_channel("c", "")
            upload = probe.server._channels.get("c").upload(0)
            upload.write(b"quite a different segment")
            upload.finish()
            assert [chunk async for chunk in chunks] == []
            assert segment.truncated
            assert subscriber.statistics.truncated == 1
            await subscriber.close()

    async def test_a_segment_that_is_gone_is_truncated_and_the_next_one_read(self) -> None:
        async with probing() as probe, Relay(probe.server.channel_url("c")) as relay:
            await probe.begin_segment("c", 0, b"part")
            subscriber = subscriber_of(relay.url)
            segments = subscriber.segments()
            first = await anext(segments)
            chunks = first.chunks()
            assert await next_chunk(chunks) == b"part"
            await wait_parked(probe, 1)
            # As seen by the subscriber: the connection breaks, and the slot has a new owner.
            relay.break_all()
            probe.server._channels.get("c").upload(5)
            assert [chunk async for chunk in chunks] == []
            assert first.truncated
            await wait_parked(probe, 1)
            await probe.post("c/1", b"next")
            second = await anext(segments)
            assert (second.seq, await second.read(10)) == (1, b"next")
            await subscriber.close()

    async def test_a_lost_request_is_repeated(self) -> None:
        async with probing() as probe, Relay(probe.server.channel_url("c")) as relay:
            await probe.post("c/0", b"0")
            subscriber = subscriber_of(relay.url)
            reading = asyncio.create_task(collect(subscriber))
            await wait_parked(probe, 1)
            relay.break_all()
            await until(lambda: subscriber.statistics.reconnects == 1)
            await probe.post("c/1", b"1")
            await wait_parked(probe, 2)
            await probe.ask("DELETE", "c")
            assert await reading == {0: b"0", 1: b"1"}


@pytest.mark.descriptors
class TestClosing:
    async def test_one_that_waits_is_ended(self) -> None:
        async with probing() as probe:
            await probe.post("c", b"")
            async with nothing_left():
                subscriber = subscriber_of(probe.server.channel_url("c"))
                reading = asyncio.create_task(collect(subscriber))
                await wait_parked(probe, 0)
                await subscriber.close()
                assert await reading == {}

    async def test_one_in_the_middle_of_a_segment_is_ended(self) -> None:
        async with probing() as probe:
            await probe.begin_segment("c", 0, b"x")
            async with nothing_left():
                subscriber = subscriber_of(probe.server.channel_url("c"))
                reading = asyncio.create_task(collect(subscriber))
                await wait_parked(probe, 1)
                await subscriber.close()
                assert await reading == {0: b"x"}

    async def test_one_that_cannot_connect_is_ended(self) -> None:
        async with serving() as server:
            url = server.channel_url("c")
        async with nothing_left():
            subscriber = subscriber_of(url, retry_for=60)
            reading = asyncio.create_task(collect(subscriber))
            await until(lambda: subscriber.statistics.reconnects >= 2)
            await subscriber.close()
            assert await reading == {}

    async def test_cancelling_the_reader_leaves_nothing(self) -> None:
        async with probing() as probe:
            await probe.begin_segment("c", 0, b"x")
            async with nothing_left():
                for _ in range(5):
                    reading = asyncio.create_task(collect(subscriber_of(probe.server.channel_url("c"))))
                    await wait_parked(probe, 1)
                    reading.cancel()
                    await asyncio.wait({reading})
                    assert reading.cancelled()

    async def test_closing_before_anything_was_read_does_no_harm(self) -> None:
        subscriber = subscriber_of("http://127.0.0.1:1/c", start=NEXT)
        await subscriber.close()
        await subscriber.close()
        assert [segment async for segment in subscriber.segments()] == []

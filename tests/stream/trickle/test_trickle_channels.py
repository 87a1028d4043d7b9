"""Control, events and data channels against a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from trickle_helpers import HANG, Relay, collect, nothing_left, probing, serving, until

from stream.errors import HeadraceError, InvalidInput, SinkError, SourceError, TooLarge
from stream.trickle.channels import ControlReader, DataWriter, EventsWriter
from stream.trickle.server import TrickleServer
from stream.trickle.subscriber import TrickleSubscriber


@asynccontextmanager
async def running(part: ControlReader | EventsWriter | DataWriter, *args: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(part.run(*args))
    try:
        yield
    finally:
        await part.close()
        async with asyncio.timeout(HANG):
            await task


async def begin_reading(server: TrickleServer) -> asyncio.Task[dict[int, bytes]]:
    """A reader that waits for segment 0 of channel c and collects all to its end."""
    server.create_channel("c", "application/json")
    task = asyncio.create_task(collect(TrickleSubscriber(server.channel_url("c"), start=0)))
    await until(lambda: any(s._watchers for s in server._channels.get("c").segments))
    return task


def beat() -> tuple[dict[str, Any], str]:
    return {"type": "status"}, "ai_stream_events"


class TestControl:
    async def test_each_segment_is_a_message_and_keepalives_are_not(self) -> None:
        async with probing() as probe:
            messages: list[dict[str, Any]] = []
            await probe.post("c", b"")
            reader = ControlReader(probe.server.channel_url("c"))

            async def take(message: dict[str, Any]) -> None:
                messages.append(message)

            async with running(reader, take):
                for number, body in enumerate([b'{"a":1}', b'{"keep":"alive"}', b'{"a":{"b":[2]}}', b"{}"]):
                    await until(lambda n=number: any(s.seq == n and s._watchers for s in probe.segments("c")))
                    await probe.post(f"c/{number}", body)
                await until(lambda: len(messages) == 3)
            assert messages == [{"a": 1}, {"a": {"b": [2]}}, {}]

    async def test_a_message_in_pieces_is_put_together(self) -> None:
        async with probing() as probe:
            posting = await probe.begin_segment("c", 0, b'{"prompt":')
            async with aclosing(ControlReader(probe.server.channel_url("c")).messages()) as messages:
                reading = asyncio.create_task(anext(messages))
                posting.send_chunk(b'"x"}')
                posting.end_chunks()
                assert await reading == {"prompt": "x"}

    async def test_bad_messages_are_told_and_the_next_is_read(self) -> None:
        async with probing() as probe:
            problems: list[HeadraceError] = []
            await probe.post("c", b"")
            reader = ControlReader(
                probe.server.channel_url("c"), on_problem=problems.append, max_message_bytes=20
            )
            messages = reader.messages()
            reading = asyncio.create_task(anext(messages))
            bodies = [b"nonsense", b"[1]", b'{"a":"' + b"x" * 20 + b'"}', b'{"good":1}']
            for number, body in enumerate(bodies):
                await until(lambda n=number: any(s.seq == n and s._watchers for s in probe.segments("c")))
                await probe.post(f"c/{number}", body)
            assert await reading == {"good": 1}
            assert [type(problem) for problem in problems] == [InvalidInput, InvalidInput, TooLarge]
            await reader.close()

    async def test_ends_with_its_channel(self) -> None:
        async with probing() as probe:
            await probe.post("c/0", b'{"a":1}')
            reader = ControlReader(probe.server.channel_url("c"))
            seen: list[dict[str, Any]] = []

            async def take(message: dict[str, Any]) -> None:
                seen.append(message)

            async with nothing_left():
                running = asyncio.create_task(reader.run(take))
                await until(lambda: seen)
                probe.server.delete_channel("c")
                async with asyncio.timeout(HANG):
                    await running

    async def test_an_unknown_channel_is_an_error(self) -> None:
        async with serving() as server:
            with pytest.raises(SourceError, match="404"):
                await anext(ControlReader(server.channel_url("c"), not_found_grace=0).messages())

    async def test_what_its_handler_raises_comes_out_and_nothing_is_left(self) -> None:
        async with probing() as probe:
            await probe.post("c/0", b'{"a":1}')

            async def fail(message: dict[str, Any]) -> None:
                raise ValueError(message)

            async with nothing_left():
                with pytest.raises(ValueError, match="a"):
                    await ControlReader(probe.server.channel_url("c")).run(fail)


@pytest.mark.descriptors
class TestEvents:
    async def test_each_event_is_one_document_in_order(self) -> None:
        async with serving() as server:
            reading = await begin_reading(server)
            events = EventsWriter(server.channel_url("c"), beat, interval=60)
            async with running(events):
                for number in range(5):
                    events.send({"type": "error", "number": number}, "ai_stream_events")
                    # A ring of five would overtake the reader.
                    await until(lambda n=number: events.sent == n + 2)
                    await asyncio.sleep(0.02)
            received = [json.loads(body) for body in (await reading).values()]
            assert received[0] == {"event": {"type": "status"}, "queue_event_type": "ai_stream_events"}
            assert [document["event"]["number"] for document in received[1:]] == list(range(5))

    async def test_the_heart_beats_from_the_very_start(self) -> None:
        async with serving() as server:
            beats = 0

            def count() -> tuple[dict[str, Any], str]:
                nonlocal beats
                beats += 1
                return {"type": "heartbeat", "number": beats}, "stream_heartbeat"

            reading = await begin_reading(server)
            async with running(EventsWriter(server.channel_url("c"), count, interval=0.1)):
                await until(lambda: beats >= 5)
            received = [json.loads(body) for body in (await reading).values()]
            assert received[0]["event"] == {"type": "heartbeat", "number": 1}
            assert received[0]["queue_event_type"] == "stream_heartbeat"
            assert len(received) >= 5

    async def test_the_heart_beats_while_events_keep_coming(self) -> None:
        async with serving() as server:
            beats = 0

            def count() -> None:
                nonlocal beats
                beats += 1

            events = EventsWriter(server.channel_url("c"), count, interval=0.05)
            async with running(events):
                for _ in range(60):
                    events.send({"type": "busy"})
                    await asyncio.sleep(0.005)
            assert beats >= 4

    @pytest.mark.parametrize("answer", [None, ({"a": float("nan")}, "x"), ({"a": "x" * 1_100_000}, "x")])
    async def test_without_a_usable_beat_a_bare_one_is_sent(self, answer: Any) -> None:
        async with serving() as server:
            problems: list[HeadraceError] = []
            reading = await begin_reading(server)
            events = EventsWriter(
                server.channel_url("c"), lambda: answer, interval=60, on_problem=problems.append
            )
            async with running(events):
                await until(lambda: events.sent == 1)
                await asyncio.sleep(0.05)
            (document,) = [json.loads(body) for body in (await reading).values()]
            assert document["event"]["type"] == "heartbeat"
            assert len(problems) == (answer is not None)

    async def test_the_oldest_give_way_and_are_counted(self) -> None:
        async with serving() as server:
            events = EventsWriter(server.channel_url("c"), beat, interval=60, max_queue=3)
            for number in range(10):
                events.send({"number": number})
            assert events.dropped == 7
            reading = await begin_reading(server)
            async with running(events):
                await until(lambda: events.sent == 4)
                await asyncio.sleep(0.05)
            numbers = [json.loads(body)["event"].get("number") for body in (await reading).values()]
            assert numbers[-3:] == [7, 8, 9]

    async def test_an_event_is_taken_as_it_is_when_it_is_sent(self) -> None:
        events = EventsWriter("http://127.0.0.1:1/c", beat)
        with pytest.raises(InvalidInput):
            events.send({"a": object()})
        event = {"a": 1}
        events.send(event)
        event["a"] = object()
        assert events._queue[0] == b'{"event":{"a":1},"queue_event_type":"ai_stream_events"}'

    async def test_what_is_queued_at_the_end_is_sent(self) -> None:
        async with serving() as server:
            reading = await begin_reading(server)
            events = EventsWriter(server.channel_url("c"), beat, interval=60)
            async with running(events):
                await until(lambda: events.sent == 1)
                await asyncio.sleep(0.05)
                events.send({"type": "stream_stopped"})
            assert [json.loads(body)["event"]["type"] for body in (await reading).values()] == [
                "status",
                "stream_stopped",
            ]
            assert server.channels == ()

    async def test_ends_with_its_channel(self) -> None:
        async with probing() as probe, nothing_left():
            events = EventsWriter(probe.server.channel_url("c"), beat, interval=60)
            running = asyncio.create_task(events.run())
            await until(lambda: events.sent == 1)
            probe.server.delete_channel("c")
            async with asyncio.timeout(HANG):
                await running

    async def test_a_swept_channel_is_its_end_too(self) -> None:
        async with probing(idle_timeout=0.1, sweep_interval=0.02, autocreate=False) as probe:
            probe.server.create_channel("c", "application/json")
            events = EventsWriter(probe.server.channel_url("c"), beat, interval=60)
            async with asyncio.timeout(HANG):
                await events.run()
            assert probe.server.channels == ()

    async def test_an_unreachable_server_is_an_error(self) -> None:
        async with serving() as server:
            url = server.channel_url("c")
        events = EventsWriter(url, beat, retry_for=0.2)
        with pytest.raises(SinkError, match=url):
            await events.run()
        await events.close()

    async def test_a_passing_outage_loses_no_event(self) -> None:
        async with probing() as probe, Relay(probe.server.channel_url("c")) as relay:
            reading = await begin_reading(probe.server)
            events = EventsWriter(relay.url, beat, interval=60)
            async with running(events):
                for number in range(6):
                    await until(lambda n=number: events.sent == n + 1)
                    await asyncio.sleep(0.03)
                    relay.break_all()
                    events.send({"number": number})
                await until(lambda: events.sent == 7)
                await asyncio.sleep(0.05)
            received = [json.loads(body)["event"] for body in (await reading).values()]
            numbers = [event["number"] for event in received if "number" in event]
            # One whose confirmation was lost may come twice, and none is left out.
            assert sorted(set(numbers)) == list(range(6))

    async def test_cancelling_leaves_nothing(self) -> None:
        async with serving() as server, nothing_left():
            events = EventsWriter(server.channel_url("c"), beat)
            running = asyncio.create_task(events.run())
            await until(lambda: events.sent == 1)
            running.cancel()
            await asyncio.wait({running})
            assert running.cancelled()
            await events.close()


class TestData:
    async def test_items_are_batched_as_arrays_on_a_line(self) -> None:
        async with serving() as server:
            reading = await begin_reading(server)
            data = DataWriter(server.channel_url("c"), interval=0.1)
            async with running(data):
                for item in ("hello", {"a": [1, None]}, 3.5):
                    data.send(item)
                await until(lambda: data.sent == 3)
                await asyncio.sleep(0.02)
                data.send("later")
                await until(lambda: data.sent == 4)
                await asyncio.sleep(0.02)
            assert list((await reading).values()) == [b'["hello",{"a":[1,null]},3.5]\n', b'["later"]\n']

    async def test_batches_keep_their_distance(self) -> None:
        async with serving() as server:
            reading = await begin_reading(server)
            data = DataWriter(server.channel_url("c"), interval=0.2)
            async with running(data):
                for number in range(30):
                    data.send(number)
                    await asyncio.sleep(0.02)
            batches = [json.loads(body) for body in (await reading).values()]
            assert [number for batch in batches for number in batch] == list(range(30))
            assert len(batches) < 10

    async def test_long_batches_are_split_into_lines(self) -> None:
        async with serving() as server:
            reading = await begin_reading(server)
            data = DataWriter(server.channel_url("c"))
            items = ["x" * 30_000] * 5
            for item in items:
                data.send(item)
            async with running(data):
                await until(lambda: data.sent == 5)
                await asyncio.sleep(0.02)
            (body,) = (await reading).values()
            lines = body.splitlines(keepends=True)
            assert all(len(line) < 65_536 for line in lines)
            assert [item for line in lines for item in json.loads(line)] == items

    async def test_an_empty_array_keeps_the_channel_alive(self) -> None:
        async with serving() as server:
            reading = await begin_reading(server)
            async with running(DataWriter(server.channel_url("c"), keepalive=0.1)):
                await asyncio.sleep(0.5)
            bodies = list((await reading).values())
            assert len(bodies) >= 3
            assert set(bodies) == {b"[]\n"}

    async def test_what_does_not_fit_on_a_line_is_refused(self) -> None:
        data = DataWriter("http://127.0.0.1:1/c")
        with pytest.raises(TooLarge, match="limit"):
            data.send("x" * 65_536)
        with pytest.raises(InvalidInput):
            data.send(object())

    async def test_the_oldest_give_way_by_number_and_by_size(self) -> None:
        data = DataWriter("http://127.0.0.1:1/c", max_items=3, max_queued_bytes=40)
        for number in range(5):
            data.send(number)
        assert (data.dropped, list(data._items)) == (2, [b"2", b"3", b"4"])
        data.send("x" * 37)
        assert (data.dropped, len(data._items)) == (4, 2)

    async def test_ends_with_its_channel(self) -> None:
        async with probing(autocreate=False) as probe, nothing_left():
            async with asyncio.timeout(HANG):
                await DataWriter(probe.server.channel_url("c")).run()

    async def test_one_that_never_ran_is_closed_at_once(self) -> None:
        await DataWriter("http://127.0.0.1:1/c").close()

"""The server's wire behaviour, seen from plain sockets."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from trickle_helpers import HANG, Probe, probing, serving, until

from stream.errors import InvalidInput, NotFound
from stream.trickle.server import TrickleServer, TrickleServerSettings, serve_trickle


class TestChannels:
    async def test_create_is_repeatable_and_keeps_the_first_type(self) -> None:
        async with probing() as probe:
            for mime in ("video/mp2t", "text/other"):
                reply = await probe.post("c", b"", f"Expect-Content: {mime}")
                assert (reply.status, reply.body) == (200, b"")
            await probe.post("c/0", b"x", "Content-Type: text/third")
            assert (await probe.ask("GET", "c/0")).headers["content-type"] == "video/mp2t"

    async def test_a_channel_made_without_a_type_has_an_empty_one(self) -> None:
        async with probing() as probe:
            await probe.post("c/0", b"x")
            assert (await probe.ask("GET", "c/0")).headers["content-type"] == ""

    async def test_autocreate_takes_the_type_of_the_first_post(self) -> None:
        async with probing() as probe:
            await probe.post("c/0", b"{}", "Content-Type: application/json")
            assert (await probe.ask("GET", "c/0")).headers["content-type"] == "application/json"

    async def test_without_autocreate_only_the_owner_makes_channels(self) -> None:
        async with probing(autocreate=False) as probe:
            created = await probe.post("c", b"")
            assert (created.status, created.body) == (404, b"Stream not found\n")
            preconnect = await probe.begin_post("c/0")
            posted = await preconnect.reply()
            assert (posted.status, posted.headers["connection"]) == (404, "close")
            assert await preconnect.at_end()
            probe.server.create_channel("c", "video/mp2t")
            assert (await probe.post("c/0", b"x")).status == 200

    async def test_next_tells_where_the_channel_stands(self) -> None:
        async with probing() as probe:
            await probe.post("c/7", b"x")
            reply = await probe.ask("GET", "c/next")
            assert (reply.status, reply.body, reply.headers["lp-trickle-latest"]) == (200, b"8", "8")
            assert reply.headers["content-type"].startswith("text/plain")

    async def test_delete_ends_everything_and_frees_the_name(self) -> None:
        async with probing() as probe:
            posting = await probe.begin_post("c/0")
            posting.send_chunk(b"ab")
            reading = await probe.begin("GET", "c/0")
            await reading.head()
            assert await reading.chunk() == b"ab"
            parked, preconnect = await probe.begin("GET", "c/1"), await probe.begin_post("c/1")
            assert await parked.quiet()
            assert (await probe.ask("DELETE", "c")).status == 200
            assert await reading.chunk() == b""
            ended = await parked.reply()
            assert (ended.status, ended.body, ended.headers["lp-trickle-closed"]) == (200, b"", "terminated")
            ended = await preconnect.reply()
            assert (ended.status, ended.headers["lp-trickle-closed"]) == (200, "terminated")
            assert (ended.headers["lp-trickle-seq"], ended.headers["connection"]) == ("1", "close")
            assert await preconnect.at_end()
            posting.send_chunk(b"late")
            posting.end_chunks()
            assert (await posting.reply()).status == 200
            assert (await probe.ask("GET", "c/0")).status == 404
            await probe.post("c/0", b"new")
            assert (await probe.ask("GET", "c/next")).body == b"1"

    async def test_what_is_not_there_is_answered_as_the_protocol_says(self) -> None:
        async with probing() as probe:
            await probe.post("c/0", b"x")
            expected = {
                ("DELETE", "none"): (400, b"Invalid stream\n"),
                ("DELETE", "none/0"): (404, b"Stream not found\n"),
                ("DELETE", "c/9"): (400, b"Nonexistent segment\n"),
                ("DELETE", "c/x"): (400, b"Invalid idx\n"),
                ("GET", "none/0"): (404, b"Stream not found\n"),
                ("GET", "none/next"): (404, b"Stream not found\n"),
                ("GET", "c/x"): (400, b"Invalid idx\n"),
                ("GET", "c/99999999999999999999"): (400, b"Invalid idx\n"),
                ("GET", "c/"): (404, b"404 page not found\n"),
                ("GET", "c/0/0"): (404, b"404 page not found\n"),
                ("GET", ""): (404, b"404 page not found\n"),
                ("GET", "c/%zz"): (400, b"Bad Request\n"),
            }
            for (method, path), answer in expected.items():
                reply = await probe.ask(method, path)
                assert (reply.status, reply.body) == answer, (method, path)
                assert reply.headers["content-type"] == "text/plain; charset=utf-8"
                assert reply.headers["x-content-type-options"] == "nosniff"

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("POST", "c/-2"),
            ("POST", "c/-5"),
            ("GET", "c/-3"),
            ("GET", "c/-5"),
            ("DELETE", "c/-1"),
            ("DELETE", "c/-2"),
            ("DELETE", "c/-5"),
        ],
    )
    async def test_impossible_numbers_are_refused_and_harm_nothing(self, method: str, path: str) -> None:
        async with probing() as probe:
            await probe.post("c/0", b"x")
            reply = await (probe.post(path, b"y") if method == "POST" else probe.ask(method, path))
            assert (reply.status, reply.body) == (400, b"Invalid idx\n")
            assert (await probe.ask("GET", "c/0")).body == b"x"
            assert (await probe.post("c/1", b"z")).status == 200

    async def test_other_methods_are_named(self) -> None:
        async with probing() as probe:
            reply = await probe.ask("PUT", "c/0")
            assert (reply.status, reply.headers["allow"]) == (405, "DELETE, GET, HEAD, POST")
            reply = await probe.ask("GET", "c")
            assert (reply.status, reply.headers["allow"]) == (405, "DELETE, POST")

    async def test_unclean_paths_are_redirected(self) -> None:
        async with probing(base_path="/ai/trickle/") as probe:
            reply = await probe.ask("GET", "c//0?q=1")
            assert (reply.status, reply.headers["location"]) == (307, "/ai/trickle/c/0?q=1")
            reply = await probe.ask("GET", "../../../c/0")
            assert (reply.status, reply.headers["location"]) == (307, "/c/0")

    async def test_names_and_numbers_are_decoded(self) -> None:
        async with probing(base_path="/ai/trickle") as probe:
            await probe.post("a%2Fb/+0", b"x")
            assert probe.server.channels == ("a/b",)
            assert (await probe.ask("GET", "a%2Fb/00")).body == b"x"


class TestPublishing:
    async def test_a_segment_is_confirmed_with_its_number(self) -> None:
        async with probing() as probe:
            reply = await probe.post("c/-1", b"hello")
            assert (reply.status, reply.body, reply.headers["lp-trickle-seq"]) == (200, b"", "0")
            assert "connection" not in reply.headers
            assert (await probe.post("c/-1", b"again")).headers["lp-trickle-seq"] == "1"

    async def test_a_connection_serves_one_segment_after_the_other(self) -> None:
        async with probing() as probe:
            raw = await probe.connect()
            for number in range(3):
                raw.send(b"POST /c/%d HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx" % number)
                assert (await raw.reply()).headers["lp-trickle-seq"] == str(number)

    async def test_a_preconnect_is_kept_alive_until_its_first_byte(self) -> None:
        async with probing(keepalive_interval=0.05) as probe:
            raw = await probe.begin_post("c/0")
            for _ in range(3):
                async with asyncio.timeout(HANG):
                    assert await raw.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            raw.send_chunk(b"x")
            await until(lambda: probe.server._channels.get("c").next_write == 1)
            while not await raw.quiet():
                pass
            raw.end_chunks()
            assert (await raw.reply()).status == 200

    async def test_one_who_waits_for_100_continue_gets_it(self) -> None:
        async with probing() as probe:
            raw = await probe.begin("POST", "c/0", "Content-Length: 1", "Expect: 100-continue")
            async with asyncio.timeout(HANG):
                await raw.reader.readuntil(b"100 Continue\r\n\r\n")
            raw.send(b"x")
            assert (await raw.reply()).status == 200

    async def test_a_zero_byte_post_leaves_an_empty_segment(self) -> None:
        async with probing() as probe:
            raw = await probe.begin_post("c/0")
            raw.end_chunks()
            reply = await raw.reply()
            assert (reply.status, reply.headers["connection"]) == (200, "close")
            assert await raw.at_end()
            for _ in range(2):
                reply = await probe.ask("GET", "c/0")
                assert (reply.status, reply.body, reply.headers["content-length"]) == (200, b"", "0")
                assert (reply.headers["lp-trickle-seq"], reply.headers["lp-trickle-latest"]) == ("0", "1")
                assert "lp-trickle-closed" not in reply.headers

    async def test_a_takeover_closes_the_old_segment(self) -> None:
        async with probing() as probe:
            await probe.post("c/0", b"old")
            reading = await probe.begin("GET", "c/1")
            taken = await probe.begin_post("c/1")
            posting = await probe.begin_post("c/6")
            reply = await taken.reply()
            assert (reply.status, reply.headers["lp-trickle-seq"]) == (200, "1")
            assert "lp-trickle-closed" not in reply.headers
            assert (await reading.reply()).headers["content-length"] == "0"
            assert (await probe.ask("GET", "c/1")).status == 470
            posting.send_chunk(b"x")
            posting.end_chunks()
            assert (await posting.reply()).status == 200
            assert (await probe.ask("GET", "c/0")).body == b"old"

    async def test_a_closed_segment_discards_what_is_posted_again(self) -> None:
        async with probing() as probe:
            await probe.post("c/0", b"first")
            await probe.post("c/1", b"x")
            reply = await probe.post("c/0", b"second")
            assert (reply.status, reply.headers["connection"]) == (200, "close")
            assert (await probe.ask("GET", "c/0")).body == b"first"
            assert (await probe.ask("GET", "c/next")).body == b"1"

    async def test_the_answer_reaches_one_whose_body_is_discarded(self) -> None:
        async with probing() as probe:
            await probe.post("c/0", b"first")
            raw = await probe.begin("POST", "c/0", "Content-Length: 3000000")
            raw.send(bytes(3_000_000))
            assert (await raw.reply()).status == 200
            assert await raw.at_end()

    async def test_gaps_and_rewinds_are_taken_as_they_come(self) -> None:
        async with probing() as probe:
            await probe.post("c/7", b"x")
            for number in range(7):
                reply = await probe.ask("GET", f"c/{number}")
                assert (reply.status, reply.headers["lp-trickle-latest"]) == (470, "8")
                assert (reply.headers["lp-trickle-seq"], reply.body) == (str(number), b"Entry not found")
            await probe.post("c/0", b"anew")
            assert (await probe.ask("GET", "c/next")).body == b"1"
            assert (await probe.ask("GET", "c/7")).headers["lp-trickle-latest"] == "1"
            assert (await probe.ask("GET", "c/-2")).body == b"anew"

    async def test_reset_ends_lower_segments_and_leaves_higher_ones(self) -> None:
        async with probing() as probe:
            dead = await probe.begin_post("c/3")
            dead.send_chunk(b"part")
            waiting = await probe.begin("GET", "c/3")
            await waiting.head()
            assert await waiting.chunk() == b"part"
            higher = await probe.begin_post("c/6")
            reply = await probe.post("c/-1", b"x", "Lp-Trickle-Reset: 1")
            assert reply.headers["lp-trickle-seq"] == "4"
            assert await waiting.chunk() == b""
            assert await higher.quiet()
            dead.send_chunk(b" late")
            dead.end_chunks()
            assert (await dead.reply()).status == 200
            assert (await probe.ask("GET", "c/3")).body == b"part late"

    async def test_an_abandoned_segment_stays_open_until_it_is_deleted(self) -> None:
        async with probing() as probe:
            dying = await probe.begin_post("c/0")
            dying.send_chunk(b"part")
            reading = await probe.begin("GET", "c/0")
            await reading.head()
            assert await reading.chunk() == b"part"
            dying.reset()
            assert await reading.quiet()
            assert (await probe.ask("DELETE", "c/0")).status == 200
            # The wait above took the beginning of nothing: the end is all that is left.
            assert await reading.chunk() == b""
            assert (await probe.ask("GET", "c/0")).body == b"part"
            assert (await probe.ask("GET", "c/next")).body == b"1"

    async def test_an_abandoned_segment_can_be_continued(self) -> None:
        async with probing() as probe:
            dying = await probe.begin("POST", "c/0", "Content-Length: 10")
            dying.send(b"one ")
            reading = await probe.begin("GET", "c/0")
            await reading.head()
            assert await reading.chunk() == b"one "
            dying.writer.write_eof()
            broken = await dying.reply()
            assert (broken.status, broken.body) == (500, b"Server error\n")
            await probe.post("c/0", b"two")
            assert await reading.chunk() == b"two"
            assert await reading.chunk() == b""

    async def test_a_segment_over_the_limit_is_refused_and_ended(self) -> None:
        async with probing(max_segment_bytes=1000) as probe:
            raw = await probe.begin_post("c/0")
            raw.send_chunk(bytes(900))
            reading = await probe.begin("GET", "c/0")
            await reading.head()
            raw.send_chunk(bytes(101))
            reply = await raw.reply()
            assert reply.status == 413
            assert b"1000" in reply.body
            assert await raw.at_end()
            assert await reading.chunk() == bytes(900)
            assert await reading.chunk() == b""


class TestSubscribing:
    async def test_the_live_edge_is_told_by_a_missing_header(self) -> None:
        async with probing() as probe:
            edge = await probe.begin("GET", "c0/0")
            assert (await edge.reply()).status == 404
            await probe.post("c", b"")
            edge, ahead = await probe.begin("GET", "c/-1"), await probe.begin("GET", "c/1")
            assert await edge.quiet()
            assert await ahead.quiet()
            assert (await probe.ask("GET", "c/2")).status == 470
            await probe.post("c/0", b"x")
            reply = await edge.reply()
            assert reply.headers["lp-trickle-seq"] == "0"
            assert "lp-trickle-latest" not in reply.headers
            await probe.post("c/1", b"y")
            assert (await ahead.reply()).headers["lp-trickle-latest"] == "0"
            assert (await probe.ask("GET", "c/0")).headers["lp-trickle-latest"] == "2"

    async def test_one_who_joins_late_gets_the_beginning_and_then_what_comes(self) -> None:
        async with probing() as probe:
            posting = await probe.begin_post("c/0")
            for part in (b"a", b"b", b"c"):
                posting.send_chunk(part)
            await until(lambda: probe.server.channels == ("c",))
            await until(lambda: probe.server._channels.get("c").segments[0].size == 3)
            joining = await probe.begin("GET", "c/-2")
            await joining.head()
            assert await joining.chunk() == b"abc"
            posting.send_chunk(b"d")
            assert await joining.chunk() == b"d"
            posting.end_chunks()
            assert await joining.chunk() == b""

    async def test_head_waits_like_get_and_has_no_body(self) -> None:
        async with probing() as probe:
            await probe.post("c", b"")
            raw = await probe.begin("HEAD", "c/0")
            assert await raw.quiet()
            await probe.post("c/0", b"x")
            status, headers, _ = await raw.head()
            assert (status, headers["lp-trickle-seq"]) == (200, "0")
            raw.send(b"GET /c/0 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await raw.reply()).body == b"x"

    async def test_an_old_client_gets_the_body_unframed(self) -> None:
        async with probing() as probe:
            await probe.post("c/0", b"body")
            raw = await probe.connect()
            raw.send(b"GET /c/0 HTTP/1.0\r\n\r\n")
            _, headers, _ = await raw.head()
            assert "transfer-encoding" not in headers
            async with asyncio.timeout(HANG):
                assert await raw.reader.read() == b"body"

    async def test_a_slow_reader_keeps_its_segment_when_the_ring_moves_on(self) -> None:
        async with probing() as probe:
            body = bytes(range(256)) * 40_000
            posting = await probe.begin_post("c/0")
            posting.send_chunk(body[:1000])
            reading = await probe.begin("GET", "c/0")
            await reading.head()
            posting.send_chunk(body[1000:])
            posting.end_chunks()
            assert (await posting.reply()).status == 200
            for number in range(1, 8):
                await probe.post(f"c/{number}", b"x")
            assert (await probe.ask("GET", "c/0")).status == 470
            received = b""
            while chunk := await reading.chunk():
                received += chunk
            assert received == body

    async def test_a_stalled_reader_does_not_hold_the_publisher(self) -> None:
        async with probing() as probe:
            body = bytes(50_000_000)
            posting = await probe.begin("POST", "c/0", f"Content-Length: {len(body)}")
            posting.send(body[:1000])
            reading = await probe.begin("GET", "c/0")
            await reading.head()
            posting.send(body[1000:])
            assert (await posting.reply()).status == 200
            received = 0
            while chunk := await reading.chunk():
                received += len(chunk)
            assert received == len(body)

    async def test_a_reader_that_leaves_is_noticed_at_once(self) -> None:
        async with probing() as probe:
            await probe.post("c", b"")
            count = probe.server.connection_count
            parked = await probe.begin("GET", "c/0")
            await until(lambda: probe.server.connection_count == count + 1)
            parked.close()
            await until(lambda: probe.server.connection_count == count)


@pytest.mark.descriptors
class TestHousekeeping:
    async def test_idle_channels_are_swept(self) -> None:
        async with probing(idle_timeout=0.1, sweep_interval=0.02) as probe:
            await probe.post("c/0", b"x")
            reading, preconnect = await probe.begin("GET", "c/1"), await probe.begin_post("c/1")
            assert (await reading.reply()).headers["lp-trickle-closed"] == "terminated"
            assert (await preconnect.reply()).headers["lp-trickle-closed"] == "terminated"
            assert probe.server.channels == ()

    async def test_the_changefeed_is_a_channel(self) -> None:
        async with probing(changefeed=True) as probe:
            await probe.post("c/0", b"x")
            await probe.ask("DELETE", "c")
            feed = [await probe.ask("GET", f"_changes/{n}") for n in range(3)]
            assert [json.loads(reply.body) for reply in feed] == [
                {"added": ["_changes"]},
                {"added": ["c"]},
                {"removed": ["c"]},
            ]
            assert feed[0].headers["content-type"] == "application/json"

    async def test_too_many_connections_are_told_so(self) -> None:
        async with probing(max_connections=2) as probe:
            parked = [await probe.begin_post(f"c/{n}") for n in range(2)]
            await until(lambda: probe.server.connection_count == 2)
            refused = await (await probe.begin("GET", "c/0")).reply()
            assert refused.status == 503
            parked[0].close()
            await until(lambda: probe.server.connection_count < 2)
            assert (await probe.ask("GET", "c/next")).status == 200

    async def test_too_many_channels_are_told_so(self) -> None:
        async with probing(max_channels=1) as probe:
            await probe.post("a/0", b"x")
            reply = await probe.post("b/0", b"x")
            assert (reply.status, reply.headers["connection"]) == (503, "close")

    async def test_the_end_of_the_server_ends_every_request(self) -> None:
        async with serving() as server:
            probe = Probe(server)
            await probe.post("c/0", b"x")
            idle = await probe.connect()
            parked, preconnect = await probe.begin("GET", "c/1"), await probe.begin_post("c/2")
            sending = await probe.begin_post("c/3")
            sending.send_chunk(b"x")
            await until(lambda: probe.server._channels.get("c").next_write == 4)
            await until(lambda: probe.server.connection_count == 5)
        assert (await parked.reply()).headers["lp-trickle-closed"] == "terminated"
        assert (await preconnect.reply()).headers["lp-trickle-closed"] == "terminated"
        assert await idle.at_end()
        assert server.connection_count == 0
        probe.close()

    async def test_channels_are_made_and_deleted_in_the_process_too(self) -> None:
        async with probing(autocreate=False) as probe:
            probe.server.create_channel("c", "text/plain")
            parked = await probe.begin("GET", "c/0")
            assert await parked.quiet()
            probe.server.delete_channel("c")
            assert (await parked.reply()).headers["lp-trickle-closed"] == "terminated"
            with pytest.raises(NotFound):
                probe.server.delete_channel("c")

    async def test_serves_until_it_is_told_to_stop(self) -> None:
        stop, urls = asyncio.Event(), []
        settings = TrickleServerSettings(port=0, base_path="/ai/trickle/")
        task = asyncio.create_task(serve_trickle(settings, stop, urls.append))
        await until(lambda: urls)
        assert urls[0].startswith("http://127.0.0.1:")
        assert urls[0].endswith("/ai/trickle")
        stop.set()
        async with asyncio.timeout(HANG):
            await task


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("port", 70000),
            ("idle_timeout", 0),
            ("max_segment_bytes", 0),
            ("base_path", "x"),
            ("tls_key", "k"),
        ],
    )
    def test_what_cannot_be_is_named(self, name: str, value: object) -> None:
        with pytest.raises(InvalidInput) as caught:
            TrickleServerSettings(**{name: value})
        assert caught.value.field in (name, "tls_certificate")

    async def test_an_unusable_certificate_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "cert.pem").write_text("nonsense")
        settings = TrickleServerSettings(port=0, tls_certificate=str(tmp_path / "cert.pem"))
        with pytest.raises(InvalidInput, match=r"cert\.pem"):
            async with TrickleServer(settings):
                pass

    async def test_a_taken_port_is_an_error_of_the_system(self) -> None:
        async with serving() as server:
            port = int(server.url.rsplit(":", 1)[1])
            with pytest.raises(OSError, match="in use"):
                async with TrickleServer(TrickleServerSettings(port=port)):
                    pass

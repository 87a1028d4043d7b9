"""Who may publish to a session, what a failure leaves, and which session gives way. Peers are stand-ins."""

import asyncio
import json
import time

from offers import PUBLISHING, VIEWING
from whip_program import whip_program

from stream.errors import InvalidInput
from stream.mpegts import AccessUnit
from stream.webrtc.publications import LIVE


def put(peer):
    """A peer's media arrives."""
    peer.feed.put(AccessUnit(1, "opus", "audio", b"\xfc", 0, 0, time.monotonic_ns(), True, False, 2))


async def peers_made(program, count):
    for _ in range(500):
        if len(program.made) == count:
            return
        await asyncio.sleep(0.01)
    raise TimeoutError


async def field_of(answer):
    return json.loads(await answer.text()).get("field")


async def test_a_refused_takeover_changes_nothing_of_what_runs():
    async with whip_program() as program:
        await program.post("/whip/live?workflow=a", PUBLISHING)
        session, factory = program.host.table.find("live"), program.peers.factory

        def refusing(ice, on_closed):
            peer = factory(ice, on_closed)
            peer.fails = InvalidInput("no codec", field="sdp")
            return peer

        program.peers.factory = refusing
        assert (await program.post("/whip/live?workflow=b&param.x=1", PUBLISHING)).status == 400
        program.peers.factory = factory
        program.peers.max_publishers = 1
        assert (await program.post("/whip/live?workflow=b", PUBLISHING)).status == 503
        assert (session.processor.asked, session.params) == ([], {"workflow": "a"})
        assert program.publications.find("live").params == {"workflow": "a"}
        assert program.publications.find("live").ingest.publisher == program.made[0].id
        assert session.ending is None


async def test_a_change_that_takes_longer_than_connecting_may_does_not_cost_the_connection():
    async with whip_program(connect_timeout=0.2) as program:
        await program.post("/whip/live", PUBLISHING)
        program.made[0].state = "connected"
        answer = await program.post("/whip/live?param.slow=0.8", PUBLISHING)
        assert answer.status == 201
        assert program.made[1].closed is None
        await asyncio.sleep(0.6)
        assert program.made[1].closed == "it did not connect in time"


async def test_a_publisher_whose_media_arrives_is_replaced_on_demand_only():
    async with whip_program() as program:
        await program.post("/whip/live?workflow=a", PUBLISHING)
        put(program.made[0])
        answer = await program.post("/whip/live?workflow=b", PUBLISHING)
        assert (answer.status, await field_of(answer)) == (409, "takeover")
        assert program.host.table.find("live").params == {"workflow": "a"}
        assert len(program.peers) == 1
        assert (await program.post("/whip/live?takeover=maybe", PUBLISHING)).status == 400
        assert (await program.post("/whip/live?takeover=1", PUBLISHING)).status == 201
        assert program.made[0].state == "replaced"
        # The new one has sent nothing yet.
        assert (await program.post("/whip/live", PUBLISHING)).status == 201
        put(program.made[-1])
        program.publications.find("live").ingest.heard_at -= LIVE
        assert (await program.post("/whip/live", PUBLISHING)).status == 201


async def test_a_publisher_that_fails_does_not_end_the_session_of_another_one_on_its_way():
    async with whip_program() as program:
        factory, gate = program.peers.factory, asyncio.Event()

        def failing_late(ice, on_closed):
            peer = factory(ice, on_closed)
            answer = peer.answer

            async def fail(*arguments, **options):
                await answer(*arguments, **options)
                await gate.wait()
                raise InvalidInput("no codec", field="sdp")

            peer.answer = fail
            return peer

        program.peers.factory = failing_late
        first = asyncio.create_task(program.post("/whip/live", PUBLISHING))
        await peers_made(program, 1)
        program.peers.factory = factory
        answer = await program.client.post(
            "/whip/live", data=PUBLISHING, headers={"Content-Type": "application/sdp"}
        )
        assert answer.status == 201
        gate.set()
        assert (await first).status == 400
        session = program.host.table.find("live")
        assert session.ending is None
        program.made[1].connect()
        assert program.publications.find("live").ingest.publisher == program.made[1].id


async def test_the_last_of_several_that_fail_ends_the_session():
    async with whip_program() as program:
        factory, gate = program.peers.factory, asyncio.Event()

        def failing(ice, on_closed):
            peer = factory(ice, on_closed)

            async def fail(*arguments, **options):
                await gate.wait()
                raise InvalidInput("no codec", field="sdp")

            peer.answer = fail
            return peer

        program.peers.factory = failing
        both = [asyncio.create_task(program.post("/whip/live", PUBLISHING)) for _ in range(2)]
        await peers_made(program, 2)
        gate.set()
        assert [(await one).status for one in both] == [400, 400]
        assert await program.host.table.wait_ended("live")


async def test_a_session_without_a_name_ends_with_its_publisher():
    async with whip_program(capacity=1) as program:
        for connects in (True, False):
            if connects:
                answer = await program.post("/whip", PUBLISHING)
            else:
                answer = await program.client.post(
                    "/whip", data=PUBLISHING, headers={"Content-Type": "application/sdp"}
                )
            assert answer.status == 201
            place = answer.headers["Location"]
            session = program.host.table.find(place.split("/")[2])
            assert (await program.client.delete(place)).status == 200
            async with asyncio.timeout(5):
                assert await program.host.table.wait_ended(session.id)
            assert session.ending.error is None


async def test_what_nobody_publishes_to_or_watches_gives_way_the_oldest_first(caplog):
    caplog.set_level("INFO")
    async with whip_program(capacity=3) as program:
        for name in ("watched", "one", "two"):
            answer = await program.post(f"/whip/{name}", PUBLISHING)
            await program.client.delete(answer.headers["Location"])
            if name == "watched":
                assert (await program.post("/whep/watched", VIEWING)).status == 201
        for name, gone in (("three", "one"), ("four", "two")):
            assert (await program.post(f"/whip/{name}", PUBLISHING)).status == 201
            assert gone not in {session.id for session in program.host.table}
            assert f"session {gone}, which nobody" in caplog.text
        assert {session.id for session in program.host.table} == {"watched", "three", "four"}
        assert (await program.post("/whip/five", PUBLISHING)).status == 503

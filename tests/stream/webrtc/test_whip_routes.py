"""WHIP and WHEP as HTTP: statuses, headers, limits and who may ask. Peers are stand-ins here."""

import asyncio
import json

import pytest
from offers import DATA_ONLY, PUBLISHING, VIEWING
from whip_program import SDP, whip_program

from stream.errors import InvalidInput
from stream.webrtc.ice import IceServer, IceSettings

FRESH = f"a=ice-ufrag:efgh\r\na=ice-pwd:{'q' * 22}\r\n"
SAME = f"a=ice-ufrag:abcd\r\na=ice-pwd:{'p' * 22}\r\n"
LINE = "a=candidate:1 1 udp 1 192.0.2.9 5000 typ host\r\n"


def problem(answer, body):
    """The JSON problem of an answer."""
    found = json.loads(body)
    assert found["detail"]["msg"]
    return answer.status, found["code"], found.get("field")


async def test_a_post_makes_a_session_and_says_where_it_is():
    ice = IceSettings(servers=(IceServer(("stun:x",)), IceServer(("turn:y",), "u", "c")))
    async with whip_program(ice=ice) as program:
        answer = await program.post("/whip/live?workflow=edges&width=320&height=240", PUBLISHING)
        assert answer.status == 201
        assert answer.content_type == "application/sdp"
        assert (await answer.text()).startswith("v=0")
        assert answer.headers["Location"] == f"/whip/live/{program.made[0].id}"
        assert answer.headers["ETag"].startswith('"')
        links = answer.headers.getall("Link")
        assert links[0] == '<stun:x>; rel="ice-server"'
        assert 'username="u"' in links[1]
        session = program.host.table.find("live")
        assert session.params == {"workflow": "edges"}
        assert program.publications.find("live").ingest.publisher == program.made[0].id


async def test_without_a_name_one_is_made_that_cannot_be_guessed():
    async with whip_program() as program:
        places = [(await program.post("/whip", PUBLISHING)).headers["Location"] for _ in range(2)]
        names = [place.split("/")[2] for place in places]
        assert names[0] != names[1]
        assert all(len(name) == 32 for name in names)
        assert {session.id for session in program.host.table} == set(names)


@pytest.mark.parametrize("way", ["whip", "whep"])
async def test_what_is_no_offer_is_refused_and_leaves_nothing(way):
    async with whip_program() as program:
        path = f"/{way}/live"
        wrong = VIEWING if way == "whip" else PUBLISHING
        for body in (b"", b"\xff\xfe", b"v=0", b"{}", DATA_ONLY, wrong):
            answer = await program.post(path, body)
            assert problem(answer, await answer.text())[0] == 400
        answer = await program.client.post(path, data=PUBLISHING, headers={"Content-Type": "text/plain"})
        assert problem(answer, await answer.text()) == (415, "unsupported_type", "Content-Type")
        answer = await program.post(path, PUBLISHING, Accept="text/html, application/sdp;q=0")
        assert problem(answer, await answer.text()) == (406, "not_acceptable", "Accept")
        answer = await program.post(path, PUBLISHING, Content_Encoding="gzip")
        assert answer.status in (400, 415)
        assert len(program.host.table) == len(program.peers) == 0


async def test_ten_megabytes_are_refused_before_they_are_read():
    async with whip_program() as program:
        answer = await program.post("/whip/live", PUBLISHING + "a=x\r\n" * 2_000_000)
        assert problem(answer, await answer.text())[:2] == (413, "too_large")

        async def pieces():
            for _ in range(100):
                yield b"a=x\r\n" * 20_000

        answer = await program.client.post("/whip/live", data=pieces(), headers=SDP)
        assert answer.status == 413
        assert len(program.host.table) == 0


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("workflow=unknown", "workflow"),
        ("width=5", "width"),
        ("widht=5", "widht"),
        ("publish_url=x", "publish_url"),
    ],
)
async def test_a_wrong_selection_names_its_part(query, field):
    async with whip_program() as program:
        answer = await program.post(f"/whip/live?{query}", PUBLISHING)
        status, _, named = problem(answer, await answer.text())
        assert (status, named) == (400, field)
        assert len(program.host.table) == 0


@pytest.mark.parametrize("name", ["a%20b", "a%2Fb", "x" * 129, "%00", "%C3%BC"])
async def test_names_that_could_not_be_in_a_url_are_refused(name):
    async with whip_program() as program:
        answer = await program.post(f"/whip/{name}", PUBLISHING)
        assert answer.status in (400, 404)


async def test_an_offer_that_cannot_be_answered_ends_the_session_that_it_made():
    async with whip_program() as program:
        program.peers.factory = fails(program.peers.factory, InvalidInput("no codec", field="sdp"))
        answer = await program.post("/whip/live", PUBLISHING)
        assert problem(answer, await answer.text()) == (400, "invalid_input", "sdp")
        assert len(program.peers) == 0
        assert await program.host.table.wait_ended("live")


def fails(factory, error):
    def make(ice, on_closed):
        peer = factory(ice, on_closed)
        peer.fails = error
        return peer

    return make


async def test_a_second_publisher_takes_over_and_may_change_what_runs():
    async with whip_program() as program:
        await program.post("/whip/live?workflow=a", PUBLISHING)
        session = program.host.table.find("live")
        assert (await program.post("/whip/live?workflow=a", PUBLISHING)).status == 201
        assert program.host.table.find("live") is session
        assert program.made[0].state == "replaced"
        assert (await program.post("/whip/live", PUBLISHING)).status == 201
        assert session.params == {"workflow": "a"}
        assert (await program.post("/whip/live?workflow=b&param.x=1", PUBLISHING)).status == 201
        assert session.params == {"workflow": "b", "x": 1}


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("width=320&height=240", "width"),
        ("param.stubborn=1", "stubborn"),
        ("publish_url=http://x/y", "publish_url"),
    ],
)
async def test_what_cannot_change_while_it_runs_is_a_conflict_that_says_why(query, field):
    async with whip_program() as program:
        await program.post("/whip/live", PUBLISHING)
        answer = await program.post(f"/whip/live?{query}", PUBLISHING)
        assert problem(answer, await answer.text()) == (409, "conflict", field)
        assert program.publications.find("live").ingest.publisher == program.made[0].id


async def test_a_session_outlives_its_publisher_for_the_grace_time():
    async with whip_program(grace=0.3) as program:
        first = await program.post("/whip/live", PUBLISHING)
        session = program.host.table.find("live")
        assert (await program.client.delete(first.headers["Location"])).status == 200
        assert program.made[0].closed == "bye"
        assert session.ending is None
        await program.post("/whip/live", PUBLISHING)
        assert program.host.table.find("live") is session
        await asyncio.sleep(0.5)
        assert session.ending is None
        await program.made[1].close("gone")
        assert await program.host.table.wait_ended("live")
        assert session.ending.error is None


async def test_a_full_worker_says_when_to_come_again():
    async with whip_program(capacity=1, max_publishers=2, max_viewers=1) as program:
        await program.post("/whip/one", PUBLISHING)
        answer = await program.post("/whip/two", PUBLISHING)
        assert problem(answer, await answer.text())[:2] == (503, "at_capacity")
        assert int(answer.headers["Retry-After"]) > 0
        assert (await program.post("/whep/one", VIEWING)).status == 201
        answer = await program.post("/whep/one", VIEWING)
        assert (answer.status, "Retry-After" in answer.headers) == (503, True)
        await program.post("/whip/one", PUBLISHING)
        assert (await program.post("/whip/one", PUBLISHING)).status == 503


async def test_candidates_come_by_patch():
    async with whip_program() as program:
        posted = await program.post("/whip/live", PUBLISHING)
        place, tag = posted.headers["Location"], posted.headers["ETag"]
        answer = await program.patch(place, SAME + LINE + "a=end-of-candidates\r\n", If_Match=tag)
        assert (answer.status, "ETag" in answer.headers) == (204, False)
        assert program.made[0].candidates == [LINE[2:].strip()]
        assert program.made[0].ended
        # What some clients send for candidates of the same ICE session.
        assert (await program.patch(place, SAME + LINE, If_Match="*")).status == 204
        assert (await program.patch(place, LINE, If_Match=tag)).status == 204


async def test_an_ice_restart_is_answered_with_new_credentials_and_a_new_tag():
    async with whip_program() as program:
        posted = await program.post("/whip/live", PUBLISHING)
        place, tag = posted.headers["Location"], posted.headers["ETag"]
        answer = await program.patch(place, FRESH + LINE, If_Match="*")
        assert answer.status == 200
        assert answer.content_type == "application/trickle-ice-sdpfrag"
        text = await answer.text()
        assert "a=ice-ufrag:ours" in text
        assert "a=candidate:" in text
        assert answer.headers["ETag"] != tag
        assert (await program.patch(place, LINE, If_Match=tag)).status == 412
        assert (await program.patch(place, LINE, If_Match=answer.headers["ETag"])).status == 204


async def test_patches_that_are_refused():
    async with whip_program() as program:
        posted = await program.post("/whip/live", PUBLISHING)
        place, tag = posted.headers["Location"], posted.headers["ETag"]
        assert (await program.patch(place, LINE)).status == 428
        assert (await program.patch(place, LINE, If_Match='"other"')).status == 412
        assert (await program.patch(place, FRESH, If_Match=tag)).status == 422
        assert (await program.patch(place, "what?", If_Match=tag)).status == 400
        assert (await program.patch(place, LINE, If_Match=tag, Content_Type="text/plain")).status == 415
        assert (await program.patch(place, LINE * 2000, If_Match=tag)).status == 413
        assert program.made[0].candidates == []
        assert (await program.patch(f"{place}x", LINE, If_Match=tag)).status == 404
        assert (await program.patch(place.replace("live", "other"), LINE, If_Match=tag)).status == 404
        assert (await program.client.delete(place)).status == 200
        assert (await program.patch(place, LINE, If_Match=tag)).status == 404
        assert (await program.client.delete(place)).status == 404


async def test_a_slash_at_the_end_changes_nothing():
    async with whip_program(token="t") as program:
        places = []
        for path in ("/whip/?token=t", "/whip/live/?token=t", "/key/t/whip/"):
            answer = await program.post(path, PUBLISHING)
            assert answer.status == 201, path
            places.append(answer.headers["Location"].split("/"))
        assert [len(place) for place in places] == [4, 4, 4]
        assert places[1][2] == "live"
        assert (await program.post("/whep/live/?token=t", VIEWING)).status == 201
        assert (await program.post("/whep/?token=t", VIEWING)).status == 404
        for path in ("/whip/", "/whep/", "/whip/live/"):
            assert (await program.client.options(f"{path}?token=t")).headers[
                "Accept-Post"
            ] == "application/sdp"
            assert (await program.post(path, PUBLISHING)).status == 401


async def test_other_methods_say_which_there_are():
    async with whip_program() as program:
        for path in ("/whip", "/whip/x", "/whep/x"):
            answer = await program.client.options(path)
            assert (answer.status, answer.headers["Accept-Post"]) == (204, "application/sdp")
            for method in ("GET", "PUT", "PATCH"):
                assert (await program.client.request(method, path)).status == 405
        answer = await program.client.options("/whip/x/y")
        assert answer.headers["Accept-Patch"] == "application/trickle-ice-sdpfrag"


async def test_the_token_is_taken_from_every_place_where_clients_put_it():
    async with whip_program(token="s3cret") as program:
        for path, headers in [
            ("/whip/a", {"Authorization": "Bearer s3cret"}),
            ("/whip/b?token=s3cret", {}),
            ("/whip/c?access_token=s3cret", {}),
            ("/key/s3cret/whip/d", {}),
            ("/key/s3cret/whep/d", {}),
        ]:
            answer = await program.post(path, VIEWING if "whep" in path else PUBLISHING, **headers)
            assert answer.status == 201, path
            assert "s3cret" not in answer.headers["Location"]
            # What comes after needs nothing but the unguessable resource.
            place = answer.headers["Location"]
            assert (await program.patch(place, LINE, If_Match=answer.headers["ETag"])).status == 204
            assert (await program.client.delete(place)).status == 200


async def test_wrong_tokens_are_refused_before_the_body_is_read_and_never_repeated(caplog):
    async with whip_program(token="s3cret") as program:
        for path, headers in [
            ("/whip/a", {}),
            ("/whip/a", {"Authorization": "Bearer wr0ng"}),
            ("/whip/a", {"Authorization": "Basic wr0ng"}),
            ("/whip/a?token=wr0ng", {}),
            ("/whip/a?token=s3cret", {"Authorization": "Bearer wr0ng"}),
            ("/key/wr0ng/whip/a", {}),
            ("/key/wr0ng/whep", {}),
            ("/whep/a", {}),
        ]:
            answer = await program.post(path, b"\xff", **headers)
            text = await answer.text()
            assert answer.status == 401, path
            assert "wr0ng" not in text
        assert len(program.host.table) == 0
    assert "wr0ng" not in caplog.text
    assert "s3cret" not in caplog.text


async def test_pages_of_allowed_origins_may_use_it_and_others_may_not():
    page = "https://studio.example"
    async with whip_program(token="s3cret", origins=(page,)) as program:
        asked = {"Origin": page, "Access-Control-Request-Method": "POST"}
        answer = await program.client.options("/whip/live", headers=asked)
        assert answer.status == 204
        assert answer.headers["Access-Control-Allow-Origin"] == page
        assert "PATCH" in answer.headers["Access-Control-Allow-Methods"]
        assert "If-Match" in answer.headers["Access-Control-Allow-Headers"]
        posted = await program.post("/whip/live", PUBLISHING, Origin=page, Authorization="Bearer s3cret")
        assert posted.status == 201
        assert posted.headers["Access-Control-Allow-Origin"] == page
        for name in ("Location", "ETag", "Link"):
            assert name in posted.headers["Access-Control-Expose-Headers"]
        wrong = await program.post("/whip/live", PUBLISHING, Origin=page)
        assert (wrong.status, wrong.headers["Access-Control-Allow-Origin"]) == (401, page)
        foreign = await program.post(
            "/whip/live", PUBLISHING, Origin="https://evil.example", Authorization="Bearer s3cret"
        )
        assert foreign.status == 403
        assert "Access-Control-Allow-Origin" not in foreign.headers
        asked["Origin"] = "https://evil.example"
        assert (
            "Access-Control-Allow-Origin"
            not in (await program.client.options("/whip", headers=asked)).headers
        )


async def test_viewers_of_nothing_are_told_to_come_again_or_wait():
    async with whip_program() as program:
        answer = await program.post("/whep/live", VIEWING)
        assert problem(answer, await answer.text())[:2] == (404, "not_found")
        assert int(answer.headers["Retry-After"]) > 0
        assert (await program.post("/whep/live?wait=x", VIEWING)).status == 400
        waiting = asyncio.create_task(program.post("/whep/live?wait=20", VIEWING))
        await asyncio.sleep(0.2)
        await program.post("/whip/live", PUBLISHING)
        assert (await waiting).status == 201
        assert (await program.post("/whep", VIEWING)).headers["Location"].startswith("/whep/live/")


async def test_a_session_that_is_fed_otherwise_has_viewers_but_no_publisher():
    async with whip_program() as program:
        started = await program.client.post("/stream/start", json={"stream_id": "fed", "params": {}})
        assert started.status == 200
        assert (await program.post("/whep/fed", VIEWING)).status == 201
        answer = await program.post("/whip/fed", PUBLISHING)
        assert problem(answer, await answer.text())[:2] == (409, "conflict")


async def test_the_end_of_a_session_closes_its_peers():
    async with whip_program() as program:
        await program.post("/whip/live", PUBLISHING)
        await program.post("/whep/live", VIEWING)
        await program.post("/whip/other", PUBLISHING)
        program.host.table.find("live").stop("enough")
        assert await program.host.table.wait_ended("live")
        await asyncio.sleep(0.05)
        assert [peer.closed for peer in program.made] == ["the session has ended"] * 2 + [None]
        assert len(program.peers) == 1


async def test_a_peer_that_does_not_connect_is_given_up_with_a_reason():
    async with whip_program(connect_timeout=0.2) as program:
        await program.post("/whip/live", PUBLISHING)
        await program.post("/whip/live", PUBLISHING)
        program.made[1].state = "connected"
        await asyncio.sleep(0.6)
        assert program.made[0].closed == "it did not connect in time"
        assert program.made[1].closed is None
        assert "0.2 s" in program.peers.report()["failures"][0]["reason"]


async def test_a_peer_that_hangs_does_not_keep_the_worker_from_stopping():
    async with whip_program() as program:
        await program.post("/whip/live", PUBLISHING)
        program.made[0].hangs = True
        async with asyncio.timeout(5):
            await program.peers.close("stop")
        assert (await program.post("/whip/live", PUBLISHING)).status == 503
        assert (await program.post("/whep/live", VIEWING)).status == 503


@pytest.mark.descriptors
async def test_fifty_connections_that_come_and_go_leave_nothing():
    async with whip_program() as program:
        for _ in range(50):
            posted = await program.post("/whip/live", PUBLISHING)
            viewed = await program.post("/whep/live", VIEWING)
            for answer in (posted, viewed):
                assert answer.status == 201
                assert (await program.client.delete(answer.headers["Location"])).status == 200
        assert len(program.peers) == 0
        assert len(program.host.table) == 1

"""Who may ask, over a real server."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream.access import check_exposure, guard
from stream.errors import InvalidInput

TOKEN = "s3cret-Ünïcode"


@asynccontextmanager
async def program(token=None):
    """A client of a program with one route that acts, one that tells, and an open one; ``acted`` counts."""

    async def act(request):
        made.acted.append(await request.read())
        return web.json_response({"done": True})

    app = web.Application(middlewares=[guard(token)])
    for path in ("/act", "/health"):
        app.router.add_route("*", path, act)
    async with TestClient(TestServer(app)) as made:
        made.acted = []
        yield made


async def ask(client, method="POST", path="/act", **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await client.request(method, path, headers=headers, data=b"body")
    body = await answer.json()
    assert (answer.status == 200) == ("done" in body)
    return answer.status, body, answer.headers


@pytest.mark.parametrize("given", ["Bearer {}", "bearer {}", "BEARER   {} "])
async def test_the_token_opens(given):
    async with program("s3cret") as client:
        assert (await ask(client, Authorization=given.format("s3cret")))[0] == 200


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer ", "Bearer s3cre", "Basic s3cret", "s3cret", "Bearer s3cret2"]
)
async def test_anything_else_does_not_and_says_how(given):
    async with program("s3cret") as client:
        headers = {} if given is None else {"Authorization": given}
        status, body, answer_headers = await ask(client, **headers)
        assert (status, body["code"]) == (401, "unauthorized")
        assert answer_headers["WWW-Authenticate"] == "Bearer"
        assert "Authorization" in body["detail"]["msg"]
        assert client.acted == []


async def test_a_token_may_have_any_characters():
    async with program(TOKEN) as client:
        reader, writer = await asyncio.open_connection(client.host, client.port)
        lines = [
            "POST /act HTTP/1.1",
            "Host: localhost",
            f"Authorization: Bearer {TOKEN}",
            "Connection: close",
        ]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_the_refusal_does_not_wait_for_the_body():
    async with program("s3cret") as client:
        reader, writer = await asyncio.open_connection(client.host, client.port)
        writer.write(b"POST /act HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
        assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 401")
        writer.close()


@pytest.mark.parametrize("path", ["/health", "/health?x=1"])
async def test_what_orchestrators_read_needs_no_token(path):
    async with program("s3cret") as client:
        assert (await ask(client, "GET", path))[0] == 200


@pytest.mark.parametrize("token", [None, "s3cret"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Origin": "not a url"},
        {"Origin": "http://["},
        {"Sec_Fetch_Site": "cross-site"},
    ],
)
async def test_pages_of_other_sites_change_nothing(token, headers):
    async with program(token) as client:
        if token:
            headers = {**headers, "Authorization": f"Bearer {token}"}
        for method in ("POST", "DELETE", "PATCH", "PUT"):
            status, body, _ = await ask(client, method, **headers)
            assert (status, body["code"]) == (403, "forbidden")
        assert client.acted == []


async def test_the_own_page_and_programs_do():
    async with program() as client:
        origin = f"http://{client.host}:{client.port}"
        assert (await ask(client, Origin=origin, Sec_Fetch_Site="same-origin"))[0] == 200
        assert (await ask(client))[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "10.0.0.1", "127.0.0.1.evil.example", "[::2]"]
)
async def test_without_a_token_only_names_of_this_machine_are_answered(host):
    async with program() as client:
        status, body, _ = await ask(client, "GET", Host=host)
        assert (status, body["field"]) == (403, "Host")
    async with program("s3cret") as client:
        assert (await ask(client, "GET", Host=host, Authorization="Bearer s3cret"))[0] == 200


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:9", "127.0.0.1:80", "127.9.9.9", "[::1]:8000", "app.localhost"]
)
async def test_every_name_of_this_machine_is_answered(host):
    async with program() as client:
        assert (await ask(client, "GET", Host=host))[0] == 200


HEADER_TEXT = st.text(
    st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=60
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.dictionaries(st.sampled_from(["Origin", "Host", "Authorization", "Sec-Fetch-Site"]), HEADER_TEXT))
def test_no_header_is_a_fault_and_none_opens(headers):
    async def run():
        async with program("s3cret") as client:
            reader, writer = await asyncio.open_connection(client.host, client.port)
            lines = [f"{name}: {value}" for name, value in {"Host": "localhost", **headers}.items()]
            head = "\r\n".join(["POST /act HTTP/1.1", *lines, "Connection: close", "", ""])
            writer.write(head.encode("latin-1"))
            status = (await asyncio.wait_for(reader.readline(), 10)).split()[1]
            assert status in (b"400", b"401", b"403")
            assert client.acted == []
            writer.close()

    asyncio.run(run())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.org", ""])
def test_listening_for_other_machines_needs_a_token(host):
    with pytest.raises(InvalidInput, match="set a token"):
        check_exposure(host, None)
    check_exposure(host, "s3cret")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.2"])
def test_listening_for_this_machine_needs_none(host):
    check_exposure(host, None)

"""The worker's certificate."""

import datetime
import ssl
import stat

import pytest
from aiohttp import ClientSession, TCPConnector, web
from aiohttp.test_utils import TestServer

from headrace.server import tls
from headrace.settings import Settings
from stream.errors import InvalidInput


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "headrace" / "tls"


async def test_a_worker_with_a_certificate_of_its_own_is_reached_by_those_who_trust_it(cache):
    context = tls.server_context(Settings(self_signed=True))

    async def hello(request):
        return web.Response(text=request.scheme)

    app = web.Application()
    app.router.add_get("/", hello)
    trusting = ssl.create_default_context(cafile=cache / "headrace.pem")
    server = TestServer(app, host="127.0.0.1", scheme="https")
    await server.start_server(ssl=context)
    async with ClientSession(connector=TCPConnector(ssl=trusting)) as client:
        for name in ("127.0.0.1", "localhost"):
            async with client.get(f"https://{name}:{server.port}/") as answer:
                assert await answer.text() == "https"
    await server.close()


def test_the_key_is_for_this_user_alone(cache):
    path = tls.self_signed(cache, ["localhost"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert list(cache.iterdir()) == [path]


def test_the_certificate_is_kept_while_it_is_good(cache, monkeypatch):
    first = tls.self_signed(cache, ["localhost", "127.0.0.1", "a.example"]).read_bytes()
    assert tls.self_signed(cache, ["localhost"]).read_bytes() == first
    other = tls.self_signed(cache, ["localhost", "b.example"]).read_bytes()
    assert other != first
    monkeypatch.setattr(tls, "RENEWED_BEFORE", tls.VALID_FOR + datetime.timedelta(days=1))
    assert tls.self_signed(cache, ["localhost", "b.example"]).read_bytes() != other


@pytest.mark.parametrize("damage", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_damaged_file_is_made_anew(cache, damage):
    path = tls.self_signed(cache, ["localhost"])
    path.write_bytes(damage)
    tls.self_signed(cache, ["localhost"])
    ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(path)


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="no certificate can be kept"):
        tls.self_signed(tmp_path / "file" / "tls", ["localhost"])


def test_the_operators_files_are_used_and_faults_in_them_named(cache, tmp_path):
    good = tls.self_signed(cache, ["localhost"])
    assert tls.server_context(Settings(tls_certificate=good, tls_key=good)) is not None
    assert tls.server_context(Settings()) is None
    (tmp_path / "bad.pem").write_text("no certificate")
    for certificate, key in ((tmp_path / "bad.pem", good), (good, tmp_path / "none.pem")):
        with pytest.raises(InvalidInput, match="cannot be used") as raised:
            tls.server_context(Settings(tls_certificate=certificate, tls_key=key))
        assert raised.value.field == "tls_certificate"

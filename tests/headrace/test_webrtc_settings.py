"""WebRTC as the worker sets it up."""

import json
import subprocess
import sys

import pytest
from fuzzed_server import FuzzedServer
from pydantic import SecretStr

from headrace.server.app import build_app
from headrace.server.webrtc import ice_settings, viewer_bitrates
from headrace.server.worker import Worker
from headrace.settings import Settings
from stream.errors import InvalidInput


def test_ice_is_what_the_settings_say():
    settings = Settings(
        stun_servers="stun:a, stun:b:5000",
        turn_servers=("turn:c?transport=tcp",),
        turn_secret=SecretStr("s3cret"),
        turn_ttl=600,
        media_ports="50000-50010",
        public_address="203.0.113.7",
        host_candidates="ipv4",
        ice_exclude="tun*,10.0.0.0/8",
        gather_timeout=1,
    )
    found = ice_settings(settings)
    assert [server.urls for server in found.servers] == [("stun:a", "stun:b:5000"), ("turn:c?transport=tcp",)]
    assert found.servers[1].credentials(now=0).username == "600:headrace"
    assert found.port_range == (50000, 50010)
    assert found.public_addresses == ("203.0.113.7",)
    assert found.exclude == ("tun*", "10.0.0.0/8")
    assert (found.host_candidates, found.gather_timeout) == ("ipv4", 1)
    assert ice_settings(Settings()).servers == ()


def test_viewers_get_what_the_settings_allow():
    found = viewer_bitrates(
        Settings(bitrate=8_000_000, viewer_bitrate_min=400_000, viewer_bitrate_max=5_000_000)
    )
    assert (found.lowest, found.start, found.highest) == (400_000, 5_000_000, 5_000_000)
    with pytest.raises(InvalidInput, match="at most viewer_bitrate_max") as refused:
        viewer_bitrates(Settings(viewer_bitrate_min=9_000_000))
    assert refused.value.field == "viewer_bitrate_min"


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("stun_servers", {"stun_servers": ("turn:a",)}),
        ("turn_servers", {"turn_servers": ("stun:a",)}),
        ("turn_servers", {"turn_servers": ("turn:a",)}),
        ("turn_servers", {"turn_servers": ("http://a",)}),
        ("media_ports", {"media_ports": "many"}),
        ("media_ports", {"media_ports": "50-60"}),
        ("public_address", {"public_address": ("example.org",)}),
    ],
)
def test_a_wrong_setting_is_named(field, settings):
    with pytest.raises(InvalidInput) as caught:
        ice_settings(Settings(**settings))
    assert caught.value.field == field


def test_the_worker_has_the_routes_and_guards_them():
    servers = {"turn_servers": ("turn:a",), "turn_username": "u", "turn_credential": SecretStr("p")}
    with FuzzedServer(token=SecretStr("s3cret"), **servers) as server:
        allowed = {"Authorization": "Bearer s3cret"}
        assert server.ask("GET", "/ice").status == 401
        told = server.ask("GET", "/ice", headers=allowed).data
        assert told == {"iceServers": [{"urls": ["turn:a"], "username": "u", "credential": "p"}]}
        assert server.ask("GET", "/peers", headers=allowed).data == {"peers": [], "failures": []}
        for path in ("/whip", "/whip/x", "/whep/x", "/key/wrong/whip/x"):
            assert server.ask("POST", path, b"v=0").status == 401, path
        sdp = {**allowed, "Content-Type": "application/sdp"}
        assert server.ask("POST", "/whip/x", b"v=0", sdp).status == 400
        assert server.ask("POST", "/key/s3cret/whip/x?token=s3cret", b"v=0").status == 415
        assert server.ask("DELETE", "/whip/x/guessed").status == 404


@pytest.mark.parametrize("origins", [("example.org",), ("https://a/b",), ("ftp://a",), ("*",)])
def test_origins_that_are_none_or_too_many_are_refused(origins):
    with pytest.raises(InvalidInput) as caught:
        build_app(Worker(Settings(allowed_origins=origins)))
    assert caught.value.field == "allowed_origins"


def test_aiortc_is_not_loaded_before_the_first_peer():
    code = "import json, sys, headrace.server.app; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    loaded = json.loads(done.stdout)
    assert "aiohttp" in loaded
    assert not {"aiortc", "aioice"} & set(loaded)

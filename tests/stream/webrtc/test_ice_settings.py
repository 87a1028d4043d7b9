"""What an operator says of ICE, and what follows from it."""

import base64
import hashlib
import hmac
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import InvalidInput
from stream.webrtc.ice import (
    IceServer,
    IceSettings,
    Interface,
    SilentServers,
    Tried,
    announced,
    describe_candidates,
    host_addresses,
    parse_port_range,
    parse_uri,
    timed_credentials,
)


@pytest.mark.parametrize(
    ("uri", "host", "port", "transport"),
    [
        ("stun:stun.example.org", "stun.example.org", 3478, "udp"),
        ("turn:10.0.0.1:5000?transport=tcp", "10.0.0.1", 5000, "tcp"),
        ("turn:turn.example.org", "turn.example.org", 3478, "udp"),
        ("turns:turn.example.org", "turn.example.org", 5349, "tcp"),
        ("turn:[2001:db8::1]:3478", "2001:db8::1", 3478, "udp"),
    ],
)
def test_uris_are_read_with_their_defaults(uri, host, port, transport):
    found = parse_uri(uri)
    assert (found.host, found.port, found.transport) == (host, port, transport)


@pytest.mark.parametrize(
    "uri",
    ["", "http://x", "stun:", "stun:a b", "turn:x:99999", "turn:x:0", "stun:x?transport=udp", "turn:x?y=1"],
)
def test_what_is_no_server_is_refused_by_name(uri):
    with pytest.raises(InvalidInput) as caught:
        parse_uri(uri, "turn_servers")
    assert caught.value.field == "turn_servers"


def test_timed_credentials_are_those_that_coturn_computes():
    made = timed_credentials("secret", ttl=600, now=1_000_000.7, user="me")
    assert made.username == "1000600:me"
    digest = hmac.new(b"secret", b"1000600:me", hashlib.sha1).digest()
    assert made.credential == base64.b64encode(digest).decode()


def test_turn_needs_one_kind_of_credentials():
    for wrong in ({}, {"username": "u"}, {"username": "u", "credential": "c", "secret": "s"}):
        with pytest.raises(InvalidInput):
            IceServer(("turn:x",), **wrong)
    assert IceServer(("stun:x",)).credentials() is None


def test_clients_are_told_of_every_server_with_fresh_credentials():
    settings = IceSettings(
        servers=(
            IceServer(("stun:a",)),
            IceServer(("turn:b?transport=udp", "turns:b"), secret='qu"ote'),
        )
    )
    links = settings.link_headers(now=0)
    assert links[0] == '<stun:a>; rel="ice-server"'
    assert len(links) == 3
    assert 'username="86400:headrace"' in links[1]
    assert 'credential-type="password"' in links[2]
    browser = settings.for_browser(now=0)
    assert browser[0] == {"urls": ["stun:a"]}
    assert browser[1]["username"] == "86400:headrace"
    assert "qu" not in repr(settings)


@pytest.mark.parametrize(("text", "found"), [("5000", (5000, 5000)), (" 50000 - 50010 ", (50000, 50010))])
def test_port_ranges_are_read(text, found):
    assert parse_port_range(text) == found


@pytest.mark.parametrize("text", ["", "a", "1-2-3", "-5", "50000-", "5.5"])
def test_other_port_ranges_are_refused(text):
    with pytest.raises(InvalidInput):
        parse_port_range(text)


@pytest.mark.parametrize("ports", [(80, 90), (50010, 50000), (60000, 70000)])
def test_ranges_that_cannot_be_are_refused(ports):
    with pytest.raises(InvalidInput) as caught:
        IceSettings(port_range=ports)
    assert caught.value.field == "media_ports"


MACHINE = [
    Interface("lo", "127.0.0.1"),
    Interface("lo", "::1"),
    Interface("eth0", "fe80::1"),
    Interface("eth0", "2001:db8:1::5"),
    Interface("docker0", "172.17.0.1"),
    Interface("br-4711", "172.18.0.1"),
    Interface("tun0", "10.8.0.2"),
    Interface("eth0", "10.0.0.5"),
    Interface("eth1", "8.8.4.4"),
]


def test_bridges_loopback_and_link_local_addresses_are_left_out_and_ipv4_goes_first():
    found = host_addresses(MACHINE, IceSettings(exclude=(*IceSettings().exclude, "10.8.0.0/16")))
    assert found == ["8.8.4.4", "10.0.0.5", "2001:db8:1::5"]


def test_loopback_serves_where_there_is_nothing_else():
    assert host_addresses(MACHINE[:3], IceSettings()) == ["127.0.0.1", "::1"]


def test_a_public_address_is_announced_before_the_own_ones_or_instead():
    both = IceSettings(public_addresses=("203.0.113.7",))
    assert announced("10.0.0.5", both) == ["203.0.113.7", "10.0.0.5"]
    assert announced("2001:db8:1::5", both) == ["2001:db8:1::5"]
    alone = IceSettings(public_addresses=("203.0.113.7",), host_candidates="none")
    assert announced("10.0.0.5", alone) == ["203.0.113.7"]
    assert "10.0.0.5" in host_addresses(MACHINE, alone)
    assert "2001:db8:1::5" not in host_addresses(MACHINE, alone)


def test_only_routable_addresses_on_request():
    settings = IceSettings(host_candidates="public")
    assert host_addresses(MACHINE, settings) == ["8.8.4.4"]


def test_without_announced_addresses_sockets_are_opened_for_stun_alone():
    assert host_addresses(MACHINE, IceSettings(host_candidates="none")) == []
    stun = IceSettings(host_candidates="none", servers=(IceServer(("stun:x",)),))
    assert "10.0.0.5" in host_addresses(MACHINE, stun)


addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
machines = st.lists(st.builds(Interface, st.sampled_from(["lo", "eth0", "docker0"]), addresses), max_size=8)
settings_of_any_kind = st.builds(
    IceSettings,
    public_addresses=st.lists(addresses, max_size=2).map(tuple),
    host_candidates=st.sampled_from(["all", "ipv4", "public", "none"]),
)


@given(machines, settings_of_any_kind)
def test_what_is_announced_is_allowed_and_has_a_socket_of_its_family(machine, settings):
    opened = host_addresses(machine, settings)
    assert len(set(opened)) == len(opened)
    for address in opened:
        version = ipaddress.ip_address(address).version
        shown = announced(address, settings)
        assert shown
        for other in shown:
            assert ipaddress.ip_address(other).version == version
            if other not in settings.public_addresses:
                assert settings.host_candidates != "none"
                assert settings.host_candidates != "ipv4" or version == 4
                assert settings.host_candidates != "public" or ipaddress.ip_address(other).is_global


def test_a_silent_server_is_asked_again_after_a_while():
    silent, uri = SilentServers(), parse_uri("stun:x")
    assert silent.worth_asking(uri, 0)
    silent.failed(uri, 10)
    assert not silent.worth_asking(uri, 69)
    assert silent.worth_asking(uri, 70)
    silent.failed(uri, 100)
    silent.answered(uri)
    assert silent.worth_asking(uri, 101)


def test_a_failure_names_the_candidates_and_what_helps():
    local, remote = [Tried("host", "10.0.0.5", 50001)], [Tried("srflx", "2001:db8::1", 4000)]
    text = describe_candidates(local, remote, IceSettings(port_range=(50000, 50010)))
    for part in (
        "host 10.0.0.5:50001",
        "srflx [2001:db8::1]:4000",
        "UDP 50000-50010",
        "public_address",
        "TURN",
    ):
        assert part in text
    reachable = describe_candidates([Tried("host", "8.8.4.4", 1)], remote, IceSettings())
    assert "public_address" not in reachable
    assert "the other side sent no candidates" in describe_candidates(local, [], IceSettings())
    assert "this worker announced none" in describe_candidates([], remote, IceSettings())
    relayed = describe_candidates([Tried("relay", "8.8.4.4", 1)], remote, IceSettings())
    assert "give a TURN server" not in relayed


@given(st.lists(st.builds(Tried, st.just("host"), addresses, st.integers(1, 65535)), max_size=200))
def test_a_failure_stays_readable(candidates):
    assert len(describe_candidates(candidates, candidates, IceSettings())) < 2500

"""Where callers' URLs may lead, by their text and by where a connection really ends up."""

import asyncio
import ipaddress

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from stream.errors import InvalidInput
from stream.hosts import HostRules, refusal
from stream.trickle.http1 import Endpoint, open_connection

LINK_LOCAL = ["169.254.169.254", "fe80::1", "fe80::1%eth0", "::ffff:169.254.1.1"]


def allows(rules, host, address=None):
    """Whether a URL of that host is accepted and a connection of it to the address."""
    url = f"http://[{host}]:80/c" if ":" in host else f"http://{host}:80/c"
    try:
        rules.check_url(url, "subscribe_url")
    except InvalidInput as error:
        assert error.field == "subscribe_url"
        assert "HEADRACE_ALLOWED_HOSTS" in error.message
        return False
    return address is None or rules.problem(host, address) is None


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "10.1.2.3", "::1", "orchestrator.example", "8.8.8.8"]
)
def test_without_a_list_ordinary_hosts_are_allowed(host):
    assert allows(HostRules(), host)


@pytest.mark.parametrize("host", [*LINK_LOCAL, "224.0.0.1", "ff02::1", "fd00:ec2::254", "100.100.100.200"])
def test_link_local_multicast_and_metadata_addresses_must_be_listed(host):
    assert not allows(HostRules(), host)
    assert not allows(HostRules(["*.example", "localhost"]), host)
    assert allows(HostRules([host.partition("%")[0].removeprefix("::ffff:")]), host)


def test_a_name_that_leads_to_a_metadata_service_is_refused_at_the_connection():
    for rules in (HostRules(), HostRules(["metadata.example"])):
        assert allows(rules, "metadata.example")
        assert not allows(rules, "metadata.example", "169.254.169.254")
    assert allows(HostRules(["metadata.example", "169.254.0.0/16"]), "metadata.example", "169.254.169.254")


def test_a_list_allows_what_it_names_and_nothing_else():
    rules = HostRules(["Orch.example", "*.cdn.example", "10.0.0.0/8", "[2001:db8::1]"])
    for host, address in [
        ("orch.example", "198.51.100.1"),
        ("ORCH.EXAMPLE.", "198.51.100.1"),
        ("a.cdn.example", "198.51.100.1"),
        ("10.9.8.7", "10.9.8.7"),
        ("2001:db8::1", "2001:db8::1"),
        ("inside.example", "10.1.1.1"),
    ]:
        assert allows(rules, host, address), host
    for host, address in [
        ("cdn.example", "198.51.100.1"),
        ("evilcdn.example", "198.51.100.1"),
        ("orch.example.evil.example", "198.51.100.1"),
        ("inside.example", "11.1.1.1"),
        ("11.0.0.1", "11.0.0.1"),
        ("2001:db8::2", "2001:db8::2"),
    ]:
        assert not allows(rules, host, address), host


def test_names_alone_are_refused_by_their_text():
    assert not allows(HostRules(["a.example"]), "b.example")


@pytest.mark.parametrize("entry", ["", "*", "http://a", "a/b", "a:80", "*.*.a", "user@a", "a b"])
def test_entries_that_are_no_hosts_are_refused(entry):
    with pytest.raises(InvalidInput, match="is not a host"):
        HostRules([entry])


@given(st.ip_addresses(), st.ip_addresses())
@example(ipaddress.ip_address("::ffff:10.0.0.1"), ipaddress.ip_address("10.0.0.2"))
def test_only_the_listed_address_is_allowed(listed, other):
    plain = [getattr(address, "ipv4_mapped", None) or address for address in (listed, other)]
    assume(plain[0] != plain[1])
    rules = HostRules([str(listed)])
    assert rules.problem("name", str(listed)) is None
    assert rules.problem("name", str(other)) is not None


@given(st.ip_addresses(v=4, network="169.254.0.0/16") | st.ip_addresses(v=6, network="fe80::/10"))
def test_no_link_local_address_is_allowed_unlisted(address):
    assert HostRules().problem("name", str(address)) is not None


async def test_connections_of_a_bound_task_are_refused_before_a_byte_is_sent():
    received, closed = [], asyncio.Event()

    async def serve(reader, writer):
        received.append(await reader.read(100))
        writer.close()
        closed.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    endpoint = Endpoint.parse(f"http://localhost:{server.sockets[0].getsockname()[1]}/channel")

    async def refused():
        HostRules(["10.0.0.0/8"]).bind()
        with pytest.raises(PermissionError, match="localhost is not among the allowed hosts"):
            await open_connection(endpoint, verify_tls=True, timeout=5)

    async with server:
        await asyncio.create_task(refused())
        await asyncio.wait_for(closed.wait(), 5)
        assert received == [b""]
        assert refusal("localhost", "127.0.0.1") is None, "the rules leaked out of the task"
        connection = await open_connection(endpoint, verify_tls=True, timeout=5)
        await connection.close()

"""Gathering of our ICE candidates (RFC 8445, section 5.1): sockets, STUN and TURN within one time limit."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import random
import socket
import time
import zlib
from collections.abc import Coroutine, Sequence
from typing import Any

import ifaddr
from aioice import Candidate, Connection, stun, turn
from aioice.candidate import candidate_priority
from aioice.ice import StunProtocol

from stream.errors import AtCapacity
from stream.webrtc.ice import IceServer, IceSettings, Interface, ServerUri, announced, host_addresses

log = logging.getLogger(__name__)

SOCKET_BUFFER = 1 << 20
"""Bytes; a key picture goes out in one burst."""
MAX_RELAYS = 4
HIDDEN = {4: ("0.0.0.0", 9), 6: ("::", 9)}
"""The related address of a candidate whose base is not announced (RFC 8839, 5.1)."""


async def gather(
    connection: Connection, protocols: list[StunProtocol], settings: IceSettings
) -> list[Candidate]:
    """Open the sockets, into ``protocols``, and return what is to be announced, best first.

    Raises `AtCapacity` when every port of the settings' range is taken.
    """
    found: list[Candidate] = []
    hosts: list[StunProtocol] = []
    for address in host_addresses(interfaces(), settings):
        protocol = await _open(connection, address, len(hosts), settings)
        if protocol is not None:
            hosts.append(protocol)
            protocols.append(protocol)
            found += _announced_of(protocol, settings)
    if not hosts and settings.port_range is not None:
        first, last = settings.port_range
        raise AtCapacity(f"every UDP port of {first}-{last} is in use (media_ports)")
    for candidate, relay in await _ask_servers(connection, hosts, settings):
        if relay is not None:
            protocols.append(relay)
        if not any((c.host, c.port) == (candidate.host, candidate.port) for c in found):
            found.append(candidate)
    return found


def interfaces() -> list[Interface]:
    """The machine's addresses with their interfaces' names."""
    found = []
    for adapter in ifaddr.get_adapters():
        for entry in adapter.ips:
            address = entry.ip if isinstance(entry.ip, str) else entry.ip[0]
            found.append(Interface(adapter.name, address))
    return found


async def _open(
    connection: Connection, address: str, index: int, settings: IceSettings
) -> StunProtocol | None:
    opened = _bound_socket(address, settings.port_range)
    if opened is None:
        return None
    loop = asyncio.get_running_loop()
    try:
        _, protocol = await loop.create_datagram_endpoint(lambda: StunProtocol(connection), sock=opened)
    except BaseException:
        opened.close()
        raise
    host, port = opened.getsockname()[:2]
    protocol.local_candidate = _host_candidate(host, port, index)
    return protocol


def _bound_socket(address: str, port_range: tuple[int, int] | None) -> socket.socket | None:
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    ports = [0]
    if port_range is not None:
        ports = list(range(port_range[0], port_range[1] + 1))
        random.shuffle(ports)
    opened = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        opened.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
    for port in ports:
        try:
            opened.bind((address, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                log.info("no socket on %s: %s", address, error)
                break
        else:
            return opened
    opened.close()
    return None


def _host_candidate(host: str, port: int, index: int) -> Candidate:
    return Candidate(
        foundation=_foundation("host", host),
        component=1,
        transport="udp",
        priority=candidate_priority(1, "host", 65_535 - index),
        host=host,
        port=port,
        type="host",
    )


def _announced_of(protocol: StunProtocol, settings: IceSettings) -> list[Candidate]:
    base = protocol.local_candidate
    return [
        _host_candidate(address, base.port, i) for i, address in enumerate(announced(base.host, settings))
    ]


def _foundation(kind: str, base: str) -> str:
    """The same for candidates of one kind, base and server (RFC 8445, 5.1.1.3), short for small parsers."""
    return f"{zlib.crc32(f'{kind} {base}'.encode()):08x}"


async def _ask_servers(
    connection: Connection, hosts: Sequence[StunProtocol], settings: IceSettings
) -> list[tuple[Candidate, StunProtocol | None]]:
    now = time.monotonic()
    asked: dict[asyncio.Task[tuple[Candidate, StunProtocol | None]], ServerUri] = {}

    def ask(uri: ServerUri, question: Coroutine[Any, Any, tuple[Candidate, StunProtocol | None]]) -> None:
        asked[asyncio.create_task(question)] = uri

    relays = 0
    for server in settings.servers:
        for uri in server.uris():
            if not settings.silent.worth_asking(uri, now):
                continue
            if uri.relays and relays < MAX_RELAYS:
                relays += 1
                ask(uri, _relay(connection, server, uri))
            elif uri.scheme == "stun" and not settings.public_addresses:
                ask(uri, _reflexive(hosts, uri, settings))
    if not asked:
        return []
    try:
        await asyncio.wait(asked, timeout=settings.gather_timeout)
    finally:
        for task in asked:
            task.cancel()
        await asyncio.wait(asked)
    return [answer for task, uri in asked.items() if (answer := _answer(task, uri, settings)) is not None]


def _answer(
    task: asyncio.Task[tuple[Candidate, StunProtocol | None]], uri: ServerUri, settings: IceSettings
) -> tuple[Candidate, StunProtocol | None] | None:
    name = f"{uri.scheme}:{uri.host}:{uri.port}"
    if not task.cancelled() and task.exception() is None:
        settings.silent.answered(uri)
        return task.result()
    if task.cancelled():
        settings.silent.failed(uri, time.monotonic())
        log.warning("%s did not answer within %g s", name, settings.gather_timeout)
    else:
        log.warning("%s gave no candidate: %s", name, task.exception() or "no reason")
    return None


async def _reflexive(
    hosts: Sequence[StunProtocol], uri: ServerUri, settings: IceSettings
) -> tuple[Candidate, None]:
    """Ask a STUN server for our outer address (RFC 8489), from the address that the way to it begins at."""
    loop = asyncio.get_running_loop()
    answers = await loop.getaddrinfo(uri.host, uri.port, family=socket.AF_INET, type=socket.SOCK_DGRAM)
    server = (str(answers[0][4][0]), uri.port)
    source = _source_address(server)
    protocol = next((p for p in hosts if p.local_candidate.host == source), None)
    if protocol is None:
        raise OSError(errno.ENETUNREACH, f"no socket on {source}, which leads to {uri.host}")
    request = stun.Message(message_method=stun.Method.BINDING, message_class=stun.Class.REQUEST)
    response, _ = await protocol.request(request, server)
    host, port = response.attributes["XOR-MAPPED-ADDRESS"]
    base = protocol.local_candidate
    shown = base.host in announced(base.host, settings)
    related = (base.host, base.port) if shown else HIDDEN[4]
    candidate = Candidate(
        foundation=_foundation("srflx", base.host),
        component=1,
        transport="udp",
        priority=candidate_priority(1, "srflx"),
        host=host,
        port=port,
        type="srflx",
        related_address=related[0],
        related_port=related[1],
    )
    return candidate, None


def _source_address(server: tuple[str, int]) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(server)  # sends nothing
        return str(probe.getsockname()[0])


async def _relay(connection: Connection, server: IceServer, uri: ServerUri) -> tuple[Candidate, StunProtocol]:
    """Allocate an address of a TURN server (RFC 8656)."""
    credentials = server.credentials()
    assert credentials is not None
    _, protocol = await turn.create_turn_endpoint(
        lambda: StunProtocol(connection),
        server_addr=(uri.host, uri.port),
        username=credentials.username,
        password=credentials.credential,
        ssl=uri.scheme == "turns",
        transport=uri.transport,
    )
    host, port = protocol.transport.get_extra_info("sockname")
    related = HIDDEN[ipaddress.ip_address(host).version]
    protocol.local_candidate = Candidate(
        foundation=_foundation("relay", f"{host} {uri}"),
        component=1,
        transport="udp",
        priority=candidate_priority(1, "relay"),
        host=host,
        port=port,
        type="relay",
        related_address=related[0],
        related_port=related[1],
    )
    return protocol.local_candidate, protocol

"""What an operator can say of ICE, and what follows from it without any network: servers and their
credentials, which host candidates are announced, ports, and words for a connection that failed.

Sources: RFC 8445 (ICE), RFC 8839 (its SDP), RFC 7064 and 7065 (``stun:`` and ``turn:`` URIs), RFC 9725,
section 4.6 (``Link`` headers), and for time-limited TURN credentials draft-uberti-behave-turn-rest, which
coturn calls ``use-auth-secret``.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import hmac
import ipaddress
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from stream.errors import InvalidInput

HostCandidates = Literal["all", "ipv4", "public", "none"]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

BRIDGES = ("docker*", "br-*", "veth*", "virbr*", "cni*", "flannel*")
"""Interfaces of containers and virtual machines: no peer of another machine reaches their addresses."""
MIN_PORT = 1024
_URI = re.compile(
    r"(?P<scheme>stuns?|turns?):(?P<host>\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+)(:(?P<port>[0-9]{1,5}))?"
    r"(\?transport=(?P<transport>udp|tcp))?"
)


@dataclass(frozen=True, slots=True)
class ServerUri:
    """A parsed ``stun:`` or ``turn:`` URI. ``port`` is its default where none is named."""

    scheme: Literal["stun", "stuns", "turn", "turns"]
    host: str
    port: int
    transport: Literal["udp", "tcp"]

    @property
    def relays(self) -> bool:
        return self.scheme in ("turn", "turns")


def parse_uri(uri: str, field_name: str = "ice_servers") -> ServerUri:
    """Read a URI of RFC 7064 or RFC 7065; raises `InvalidInput` for anything else."""
    match = _URI.fullmatch(uri)
    if match is None:
        raise InvalidInput(
            f"{uri[:100]!r} is no ICE server: write stun:host, turn:host:3478?transport=udp or turns:host",
            field=field_name,
        )
    scheme, transport = match["scheme"], match["transport"]
    if transport is not None and scheme.startswith("stun"):
        raise InvalidInput(f"{uri[:100]!r}: a stun: URI names no transport", field=field_name)
    port = int(match["port"]) if match["port"] else (5349 if scheme.endswith("s") else 3478)
    if not 0 < port < 65536:
        raise InvalidInput(f"{uri[:100]!r}: a port is from 1 to 65535, not {port}", field=field_name)
    return ServerUri(
        scheme,  # type: ignore[arg-type]  # the pattern admits no other
        match["host"].strip("[]"),
        port,
        transport or ("tcp" if scheme == "turns" else "udp"),  # type: ignore[arg-type]
    )


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a TURN server asks for."""

    username: str
    credential: str = field(repr=False)


def timed_credentials(secret: str, *, ttl: float, now: float, user: str = "headrace") -> Credentials:
    """What a TURN server with the same shared ``secret`` takes for ``ttl`` s from ``now`` (Unix time).

    ``username`` is the time of expiry and a name, ``credential`` the Base64 of its HMAC-SHA1.
    """
    username = f"{int(now + ttl)}:{user}"
    digest = hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()
    return Credentials(username, base64.b64encode(digest).decode())


@dataclass(frozen=True, slots=True)
class IceServer:
    """One server with its URIs. For TURN either ``username`` and ``credential``, or a shared ``secret`` from
    which credentials for ``ttl`` seconds are made."""

    urls: tuple[str, ...]
    username: str | None = None
    credential: str | None = field(default=None, repr=False)
    secret: str | None = field(default=None, repr=False)
    ttl: float = 86_400.0

    def __post_init__(self) -> None:
        if not self.urls:
            raise InvalidInput("an ICE server needs at least one URI", field="ice_servers")
        turn = [uri for uri in self.urls if parse_uri(uri).relays]
        static = self.username is not None and self.credential is not None
        if turn and static == (self.secret is not None):
            raise InvalidInput(
                f"{turn[0]} needs a user name and a credential, or a shared secret, and not both",
                field="turn_servers",
            )

    def uris(self) -> tuple[ServerUri, ...]:
        return tuple(parse_uri(uri) for uri in self.urls)

    def credentials(self, now: float | None = None) -> Credentials | None:
        """What to log in with; fresh at each call where a shared secret makes it."""
        if self.secret is not None:
            return timed_credentials(self.secret, ttl=self.ttl, now=time.time() if now is None else now)
        if self.username is not None and self.credential is not None:
            return Credentials(self.username, self.credential)
        return None


class SilentServers:
    """Servers that did not answer are left out for a while, so that only the first session waits for them."""

    PAUSE = 60.0

    def __init__(self) -> None:
        self._until: dict[ServerUri, float] = {}

    def failed(self, server: ServerUri, now: float) -> None:
        self._until[server] = now + self.PAUSE

    def answered(self, server: ServerUri) -> None:
        self._until.pop(server, None)

    def worth_asking(self, server: ServerUri, now: float) -> bool:
        return now >= self._until.get(server, now)


@dataclass(frozen=True, slots=True)
class IceSettings:
    """``port_range``: first and last UDP port of host candidates; None: any that the system gives.

    ``public_addresses``: addresses under which a 1:1 NAT makes this machine reachable; they are announced
    with the port of each host candidate of their family, before all others.
    ``host_candidates``: which of the machine's own addresses are announced: ``all``, ``ipv4``, ``public``
    (globally routable ones) or ``none`` (only ``public_addresses``, STUN and TURN).
    ``exclude``: interfaces by pattern (``docker*``) and networks (``10.8.0.0/16``) that are left out.
    ``gather_timeout``: seconds for STUN and TURN together; what has not answered by then is gone without.
    """

    servers: tuple[IceServer, ...] = ()
    port_range: tuple[int, int] | None = None
    public_addresses: tuple[str, ...] = ()
    host_candidates: HostCandidates = "all"
    exclude: tuple[str, ...] = BRIDGES
    gather_timeout: float = 2.0
    silent: SilentServers = field(default_factory=SilentServers, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.port_range is not None:
            first, last = self.port_range
            if not MIN_PORT <= first <= last <= 65535:
                raise InvalidInput(
                    f"media_ports must be FIRST-LAST within {MIN_PORT} and 65535, not {first}-{last}",
                    field="media_ports",
                )
        for address in self.public_addresses:
            if _parsed(address) is None:
                raise InvalidInput(
                    f"public_address must be an IP address, not {address[:100]!r}", field="public_address"
                )

    def link_headers(self, now: float | None = None) -> list[str]:
        """Values of ``Link`` headers that tell a client the servers (RFC 9725, section 4.6)."""
        lines = []
        for server in self.servers:
            credentials = server.credentials(now)
            for uri in server.urls:
                line = f'<{uri}>; rel="ice-server"'
                if credentials is not None and parse_uri(uri).relays:
                    line += (
                        f'; username="{_quoted(credentials.username)}"'
                        f'; credential="{_quoted(credentials.credential)}"; credential-type="password"'
                    )
                lines.append(line)
        return lines

    def for_browser(self, now: float | None = None) -> list[dict[str, Any]]:
        """The servers as ``RTCIceServer`` objects of a page."""
        found: list[dict[str, Any]] = []
        for server in self.servers:
            credentials = server.credentials(now)
            entry: dict[str, Any] = {"urls": list(server.urls)}
            if credentials is not None:
                entry |= {"username": credentials.username, "credential": credentials.credential}
            found.append(entry)
        return found


def parse_port_range(text: str) -> tuple[int, int]:
    """``50000-50100`` or one port as two numbers; raises `InvalidInput`."""
    match = re.fullmatch(r"\s*(\d{1,5})\s*(?:-\s*(\d{1,5})\s*)?", text)
    if match is None:
        raise InvalidInput(f"media_ports must be FIRST-LAST, not {text[:40]!r}", field="media_ports")
    return int(match[1]), int(match[2] or match[1])


@dataclass(frozen=True, slots=True)
class Interface:
    """One address of the machine."""

    name: str
    address: str


def host_addresses(interfaces: Iterable[Interface], settings: IceSettings) -> list[str]:
    """The addresses to open sockets on, best first: IPv4 before IPv6; loopback where there is nothing else.

    One that is not announced itself is among them where a public address or a STUN server stands for it.
    """
    usable = [i for i in interfaces if _is_usable(i, settings)]
    chosen = [i.address for i in usable if _may_open(i.address, settings)]
    real = [a for a in chosen if not _must(a).is_loopback]
    ordered = sorted(real or chosen, key=lambda a: (_must(a).version, not _must(a).is_global))
    return list(dict.fromkeys(ordered))


def announced(address: str, settings: IceSettings) -> list[str]:
    """Under which addresses a socket bound to ``address`` is announced as a host candidate, best first."""
    bound = _must(address)
    public = [p for p in settings.public_addresses if _must(p).version == bound.version]
    kinds = settings.host_candidates
    own = (
        kinds == "all" or (kinds == "ipv4" and bound.version == 4) or (kinds == "public" and bound.is_global)
    )
    return list(dict.fromkeys([*public, *([address] if own else [])]))


def _is_usable(interface: Interface, settings: IceSettings) -> bool:
    address = _parsed(interface.address)
    # Link-local IPv6 addresses need a zone, which SDP has no place for (RFC 8839, 5.1).
    if address is None or address.is_link_local or address.is_multicast or address.is_unspecified:
        return False
    for pattern in settings.exclude:
        try:
            if address in ipaddress.ip_network(pattern, strict=False):
                return False
        except ValueError:
            if fnmatch.fnmatchcase(interface.name, pattern):
                return False
    return True


def _may_open(address: str, settings: IceSettings) -> bool:
    if announced(address, settings):
        return True
    # A STUN server tells the outer address of such a socket.
    return bool(settings.servers) and _must(address).version == 4


def _parsed(address: str) -> Address | None:
    try:
        return ipaddress.ip_address(address)
    except ValueError:
        return None


def _must(address: str) -> Address:
    return ipaddress.ip_address(address)


def _quoted(text: str) -> str:
    """For a quoted string of a header (RFC 9110, 5.6.4)."""
    return text.replace("\\", "\\\\").replace('"', '\\"')


@dataclass(frozen=True, slots=True)
class Tried:
    """A candidate as a failure tells of it."""

    kind: str
    address: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.kind} {host}:{self.port}"


def why_unusable(host: str, port: int) -> str | None:
    """Why no check can be sent to a candidate of the other side; None where it can."""
    address = _parsed(host)
    if address is None:
        return "a name, which only mDNS may give"
    if address.is_unspecified or address.is_multicast or host == "255.255.255.255":
        return "not the address of one machine"
    if address.version == 6 and (address.is_link_local or address.scope_id is not None):
        return "link-local, of an interface of the other side"
    return None if 0 < port < 65536 else "no port"


def describe_candidates(
    local: Sequence[Tried], remote: Sequence[Tried], settings: IceSettings, left_out: Iterable[str] = ()
) -> str:
    """What was tried in vain, and what would help, in words for the operator and his user.

    ``left_out``: candidates of the other side that could not be used, with the reason.
    """
    text = f"no path was found. Ours: {_listed(local)}. Theirs: {_listed(remote)}."
    unusable = ", ".join(left_out)
    if unusable:
        text += f" Left out: {unusable}."
    advice = []
    if not remote and unusable:
        advice.append("none of the other side's candidates can be used")
    elif not remote:
        advice.append("the other side sent no candidates: it must send them in its offer or by PATCH")
    if not local:
        advice.append("this worker announced none: check host_candidates, ice_exclude and media_ports")
    elif not any(_reachable(c) for c in local):
        advice.append("set public_address when this machine is behind a NAT (cloud machines are)")
    ports = "the UDP ports" if settings.port_range is None else "UDP {}-{}".format(*settings.port_range)
    advice.append(
        f"open {ports} of this machine to the other side"
        + ("" if settings.port_range else " (media_ports makes them a fixed range)")
    )
    if not any(c.kind == "relay" for c in (*local, *remote)):
        advice.append("or give a TURN server (turn_servers), which works through firewalls that block UDP")
    return f"{text} What helps: {'; '.join(advice)}."


def _reachable(candidate: Tried) -> bool:
    address = _parsed(candidate.address)
    return candidate.kind != "host" or (address is not None and address.is_global)


def _listed(candidates: Sequence[Tried], most: int = 8) -> str:
    if not candidates:
        return "none"
    rest = f" and {len(candidates) - most} more" if len(candidates) > most else ""
    return ", ".join(map(str, candidates[:most])) + rest

"""Which hosts the URLs that callers give may lead to.

Names are checked when a stream starts, and the address that a name turned out to have once more when a
connection stands and before a byte is sent, because a name can lead anywhere.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from contextvars import ContextVar
from urllib.parse import urlsplit

from stream.errors import InvalidInput

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

METADATA = (ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200"))
"""Where clouds tell machines their secrets, besides the link-local 169.254.169.254."""


class HostRules:
    """``listed``: names, ``*.name`` for those below it, addresses, and networks as ``10.0.0.0/8``.

    With a list, only what it names is allowed. Without one everything is, but for link-local and multicast
    addresses and the metadata services of clouds; these must be listed by their address. Raises
    `InvalidInput` for an entry that is none of this.
    """

    def __init__(self, listed: Iterable[str] = ()) -> None:
        self._names: set[str] = set()
        self._suffixes: list[str] = []
        self._networks: list[Network] = []
        for entry in listed:
            self._take(entry.strip().lower())
        self._any = not (self._names or self._suffixes or self._networks)

    def _take(self, entry: str) -> None:
        try:
            self._networks.append(_unmapped(ipaddress.ip_network(entry.strip("[]"), strict=False)))
            return
        except ValueError:
            name = entry.removeprefix("*.").rstrip(".")
        if not name or any(c in name for c in "*/:@ []"):
            text = f"{entry!r} is not a host: give a name, *.name, an address or a network"
            raise InvalidInput(text, field="allowed_hosts")
        if entry.startswith("*."):
            self._suffixes.append(f".{name}")
        else:
            self._names.add(name)

    def check_url(self, url: str, field: str) -> None:
        """Raise `InvalidInput` for a URL whose host is not allowed, as far as its text tells."""
        host = urlsplit(url).hostname or ""
        address = _address(host)
        if address is not None:
            problem = self.problem(host, str(address))
        elif self._any or self._is_named(host) or self._networks:
            # Whether a name lies in a network is known when it is connected to.
            problem = None
        else:
            problem = f"{host} is not among the allowed hosts"
        if problem is not None:
            raise InvalidInput(f"{problem} (HEADRACE_ALLOWED_HOSTS)", field=field)

    def problem(self, host: str, address: str) -> str | None:
        """Why a connection to ``host`` that leads to ``address`` is not allowed; None when it is."""
        found = _address(address)
        if found is None:
            return f"{address} is not an address"
        if any(found in network for network in self._networks):
            return None
        if _is_dangerous(found):
            return f"{host} leads to {found}, which must be listed by its address"
        if self._any or self._is_named(host):
            return None
        return f"{host} is not among the allowed hosts"

    def bind(self) -> None:
        """Hold the running task and all that it starts to these rules."""
        _rules.set(self)

    def _is_named(self, host: str) -> bool:
        name = host.lower().rstrip(".")
        return name in self._names or any(name.endswith(suffix) for suffix in self._suffixes)


_rules: ContextVar[HostRules | None] = ContextVar("host rules", default=None)


def refusal(host: str, address: str) -> str | None:
    """Why the running task may not talk to ``address``, which ``host`` led to; None when it may."""
    rules = _rules.get()
    return None if rules is None else rules.problem(host, address)


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _unmapped(network: Network) -> Network:
    """An IPv4 network that was written as an IPv6 one (RFC 4291, 2.5.5.2) as what it is."""
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


def _is_dangerous(address: Address) -> bool:
    return address.is_link_local or address.is_multicast or address in METADATA

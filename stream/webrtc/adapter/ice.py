"""aiortc's peer connection with ICE as a server needs it: ports, addresses and servers by `IceSettings`.

aiortc 1.16 opens random ports on every address, asks one STUN and one TURN server for up to 5 s, waits for
mDNS names before it answers, and knows no ICE restart. Here an `IceConnection` takes the place of aioice's
`Connection` under its transports.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

from aioice import Candidate
from aiortc import RTCConfiguration, RTCPeerConnection
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcicetransport import RTCIceTransport

from stream.errors import InvalidInput, NotInstalled
from stream.webrtc.adapter.connection import IceConnection
from stream.webrtc.ice import IceSettings, Tried, describe_candidates

TESTED = {"aiortc": ("1.16.",), "aioice": ("0.13.",)}
"""Versions whose insides this package knows."""


def check_versions() -> None:
    """Raise `NotInstalled` when aiortc or aioice is of a version that is not among `TESTED`."""
    for package, prefixes in TESTED.items():
        found = importlib.metadata.version(package)
        if not found.startswith(prefixes):
            known = " or ".join(f"{prefix}x" for prefix in prefixes)
            raise NotInstalled(f"WebRTC needs {package} {known}, and {package} {found} is installed")


class PeerConnection(RTCPeerConnection):
    """aiortc's peer connection over `IceConnection`s.

    Raises `NotInstalled` at a version of aiortc or aioice that is not known.
    """

    def __init__(self, settings: IceSettings) -> None:
        check_versions()
        self.ice_settings = settings
        super().__init__(RTCConfiguration(iceServers=[]))

    def _RTCPeerConnection__createDtlsTransport(self) -> RTCDtlsTransport:  # noqa: N802  aiortc's name
        dtls: RTCDtlsTransport = super()._RTCPeerConnection__createDtlsTransport()  # type: ignore[misc]
        transport = dtls.transport
        stock = transport.iceGatherer._connection
        connection = IceConnection(
            self.ice_settings,
            username=stock.local_username,
            password=stock.local_password,
            only_receives=self._only_receives,
        )
        transport.iceGatherer._connection = transport._connection = connection  # type: ignore[assignment]
        transport._recv, transport._send = connection.recv, connection.send
        return dtls

    def _only_receives(self) -> bool:
        directions = {transceiver.currentDirection for transceiver in self.getTransceivers()}
        return self.sctp is None and "recvonly" in directions and not directions & {"sendonly", "sendrecv"}

    @property
    def ice_transport(self) -> RTCIceTransport:
        """That of the first bundled medium, which carries all. Raises `InvalidInput` before there is one."""
        transceivers = self.getTransceivers()
        carrier = transceivers[0].receiver if transceivers else self.sctp
        if carrier is None:
            raise InvalidInput("the connection has no media yet")
        return carrier.transport.transport

    @property
    def ice(self) -> IceConnection:
        connection = self.ice_transport._connection
        assert isinstance(connection, IceConnection)
        return connection

    def tried(self) -> tuple[list[Tried], list[Tried]]:
        """Our candidates and theirs."""
        return _tried(self.ice.local_candidates), _tried(self.ice.remote_candidates)

    def describe_failure(self) -> str:
        """Which candidates were tried in vain, and what helps."""
        local, remote = self.tried()
        return describe_candidates(local, remote, self.ice_settings, self.ice.left_out)


def parse_candidate(line: str) -> Candidate:
    """A ``candidate`` attribute (RFC 8839, 5.1), with or without ``a=``; raises `InvalidInput`."""
    text = line.strip().removeprefix("a=").removeprefix("candidate:")
    try:
        candidate = Candidate.from_sdp(text)
    except ValueError:
        raise InvalidInput(f"{line[:200]!r} is not an ICE candidate", field="candidate") from None
    if not 0 <= candidate.port < 65536:
        raise InvalidInput(f"{line[:200]!r}: a port is below 65536", field="candidate")
    return candidate


def candidate_lines(connection: IceConnection) -> list[str]:
    """Our candidates as lines of SDP, best first."""
    return [f"candidate:{candidate.to_sdp()}" for candidate in connection.local_candidates]


def _tried(candidates: Iterable[Candidate]) -> list[Tried]:
    return [Tried(c.type, c.host, c.port) for c in candidates]

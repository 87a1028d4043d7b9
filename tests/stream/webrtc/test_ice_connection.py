"""ICE under aiortc's transports, against stock aiortc peers and a real coturn."""

import asyncio
import socket
import time

import pytest
from aioice import Candidate, Connection
from aioice.ice import StunProtocol
from aioice.stun import TransactionTimeout
from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection
from turn_server import SECRET, turn_server

from stream.errors import AtCapacity, InvalidInput, NotInstalled
from stream.webrtc.adapter import connection as adapter
from stream.webrtc.adapter import generation
from stream.webrtc.adapter.ice import PeerConnection, candidate_lines, check_versions, parse_candidate
from stream.webrtc.ice import IceServer, IceSettings, timed_credentials

LIMIT = 20


async def until(condition):
    for _ in range(50 * LIMIT):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise TimeoutError


class Pair:
    """A stock peer that offers and one of ours that answers, with a data channel between them."""

    def __init__(self, settings, servers=()):
        self.stock = RTCPeerConnection(RTCConfiguration(iceServers=list(servers)))
        self.ours = PeerConnection(settings)
        self.received = asyncio.Queue()
        self.answered = asyncio.Queue()
        self.channel = self.stock.createDataChannel("x")
        self.channel.on("message", self.answered.put_nowait)
        self.ours.on("datachannel", self._opened)

    def _opened(self, channel):
        channel.on("message", self.received.put_nowait)
        self.back = channel

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        await self.ours.close()
        await self.stock.close()

    async def connect(self):
        await self.stock.setLocalDescription(await self.stock.createOffer())
        await self.ours.setRemoteDescription(self.stock.localDescription)
        await self.ours.setLocalDescription(await self.ours.createAnswer())
        await self.stock.setRemoteDescription(self.ours.localDescription)
        await until(lambda: self.channel.readyState == "open")
        await self.exchange("hello")

    async def exchange(self, text):
        """One message there and one back."""
        async with asyncio.timeout(LIMIT):
            self.channel.send(text)
            assert await self.received.get() == text
            self.back.send(text)
            assert await self.answered.get() == text


def candidates_of(connection):
    return [line for line in connection.localDescription.sdp.splitlines() if line.startswith("a=candidate")]


async def test_ports_and_addresses_are_those_of_the_settings():
    settings = IceSettings(port_range=(47100, 47120), public_addresses=("203.0.113.9",))
    async with Pair(settings) as pair:
        await pair.connect()
        lines = candidates_of(pair.ours)
        assert lines[0].split()[4] == "203.0.113.9"
        assert all(47100 <= int(line.split()[5]) <= 47120 for line in lines)
        own = next(line for line in lines if "203.0.113.9" not in line)
        assert own.split()[5] in {line.split()[5] for line in lines if "203.0.113.9" in line}


async def test_a_full_range_is_said_to_be_full():
    settings = IceSettings(port_range=(47130, 47130))
    async with Pair(settings) as first, Pair(settings) as second:
        await first.connect()
        await second.stock.setLocalDescription(await second.stock.createOffer())
        await second.ours.setRemoteDescription(second.stock.localDescription)
        with pytest.raises(AtCapacity, match="47130"):
            await second.ours.setLocalDescription(await second.ours.createAnswer())


@pytest.mark.descriptors
async def test_servers_that_do_not_answer_cost_the_limit_once():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mute:
        mute.bind(("127.0.0.1", 0))
        port = mute.getsockname()[1]
        servers = (
            IceServer((f"stun:127.0.0.1:{port}",)),
            IceServer((f"turn:127.0.0.1:{port}",), "user", "password"),
        )
        settings = IceSettings(servers=servers, gather_timeout=0.4)
        # STUN is asked from the address that leads to it.
        before = time.monotonic()
        async with Pair(settings) as pair:
            await pair.connect()
        assert time.monotonic() - before > 0.35
        assert not all(settings.silent.worth_asking(u, time.monotonic()) for s in servers for u in s.uris())
        async with Pair(settings) as pair:
            await pair.connect()


async def test_a_name_in_local_delays_no_answer_and_harms_nothing():
    async with Pair(IceSettings()) as pair:
        await pair.stock.setLocalDescription(await pair.stock.createOffer())
        sdp = pair.stock.localDescription.sdp
        line = "a=candidate:1 1 udp 2130706431 0c9d1b6e-0000-4000-8000-1b2c3d4e5f60.local 50000 typ host\r\n"
        hidden = "".join(
            text for text in sdp.splitlines(keepends=True) if not text.startswith("a=candidate")
        ).replace("a=end-of-candidates\r\n", line + "a=end-of-candidates\r\n")
        assert line in hidden
        offer = type(pair.stock.localDescription)(sdp=hidden, type="offer")
        async with asyncio.timeout(0.9):  # looking the name up would take one second
            await pair.ours.setRemoteDescription(offer)
        await pair.ours.setLocalDescription(await pair.ours.createAnswer())
        await pair.stock.setRemoteDescription(pair.ours.localDescription)
        await until(lambda: pair.channel.readyState == "open")
        await pair.exchange("found by its checks")


class Restarting:
    """The stock peer's side of a restart: another ICE connection under its DTLS, by hand."""

    def __init__(self, pair):
        self.pair = pair
        self.connection = Connection(ice_controlling=True)
        self.pump = None

    async def __aenter__(self):
        await self.connection.gather_candidates()
        return self

    async def answer(self):
        ours = self.pair.ours.ice
        self.connection.remote_username = ours.local_username
        self.connection.remote_password = ours.local_password
        for candidate in ours.local_candidates:
            await self.connection.add_remote_candidate(candidate)
        await self.connection.add_remote_candidate(None)
        async with asyncio.timeout(LIMIT):
            await self.connection.connect()
        transport = self.pair.stock.sctp.transport.transport
        transport._send = self.connection.send
        self.pump = asyncio.create_task(self._forward(transport._connection))

    async def _forward(self, old):
        while True:
            old._queue.put_nowait((await self.connection.recv(), 1))

    async def __aexit__(self, *error):
        if self.pump is not None:
            self.pump.cancel()
            await asyncio.wait({self.pump})
        await self.connection.close()


@pytest.mark.descriptors
async def test_a_restart_moves_a_live_connection_to_new_credentials_and_ports():
    async with Pair(IceSettings()) as pair:
        await pair.connect()
        ice = pair.ours.ice
        before = (ice.local_username, ice.local_password, candidate_lines(ice))
        async with Restarting(pair) as other:
            await ice.restart(
                other.connection.local_username,
                other.connection.local_password,
                other.connection.local_candidates,
            )
            after = (ice.local_username, ice.local_password, candidate_lines(ice))
            assert all(old != new for old, new in zip(before, after, strict=True))
            await pair.exchange("over the old path meanwhile")
            await other.answer()
            await until(lambda: ice.restarts == 1)
            await pair.exchange("over the new path")
            await asyncio.sleep(adapter.LINGER + 0.2)
            await pair.exchange("and without the old one")
            assert pair.ours.connectionState == "connected"


async def test_a_restart_that_finds_no_path_leaves_the_old_one_in_use(monkeypatch):
    monkeypatch.setattr(adapter, "RESTART_TIMEOUT", 0.3)
    async with Pair(IceSettings()) as pair:
        await pair.connect()
        ice = pair.ours.ice
        await ice.restart("abcd", "x" * 22, [])
        await until(lambda: ice._next is None)
        await pair.exchange("still there")
        assert ice.restarts == 0
        assert pair.ours.connectionState == "connected"


@pytest.mark.descriptors
async def test_closing_during_a_restart_leaves_nothing():
    async with Pair(IceSettings()) as pair:
        await pair.connect()
        ice = pair.ours.ice
        await ice.restart("abcd", "x" * 22, [])
        await ice.restart("efgh", "y" * 22, [])
    with pytest.raises(ConnectionError):
        await ice.restart("abcd", "x" * 22, [])


async def test_relayed_by_a_real_turn_server_with_credentials_of_a_shared_secret():
    with turn_server() as address:
        settings = IceSettings(
            servers=(IceServer((f"turn:{address}?transport=udp",), secret=SECRET),), host_candidates="none"
        )
        made = timed_credentials(SECRET, ttl=60, now=time.time())
        stock = RTCIceServer(f"turn:{address}", made.username, made.credential)
        async with Pair(settings, [stock]) as pair:
            await pair.connect()
            lines = candidates_of(pair.ours)
            assert lines
            assert all(" typ relay" in line for line in lines)
            assert all(" raddr 0.0.0.0 " in line for line in lines)


async def test_a_real_turn_server_is_reached_by_tcp_and_as_stun_and_refuses_a_wrong_secret():
    with turn_server() as address:
        servers = (
            IceServer((f"turn:{address}?transport=tcp",), secret=SECRET),
            IceServer((f"turn:{address}?transport=udp",), secret="wrong"),
        )
        async with Pair(IceSettings(servers=servers)) as pair:
            await pair.connect()
            assert sum(" typ relay" in line for line in set(candidates_of(pair.ours))) == 1


class Spare(Connection):
    """Sends checks as FFmpeg's WHIP muxer does: without a priority and without a role."""

    def build_request(self, pair, nominate):
        request = super().build_request(pair, nominate)
        for name in ("PRIORITY", "ICE-CONTROLLING"):
            del request.attributes[name]
        return request


@pytest.mark.parametrize("early", [True, False])
async def test_checks_that_lack_a_priority_are_taken(early):
    async with Pair(IceSettings()) as pair:
        await pair.stock.setLocalDescription(await pair.stock.createOffer())
        await pair.ours.setRemoteDescription(pair.stock.localDescription)
        ice = pair.ours.ice
        spare = Spare(ice_controlling=True, local_username="spare", local_password="s" * 22)
        ice.remote_username, ice.remote_password = spare.local_username, spare.local_password
        await ice.gather_candidates()
        await spare.gather_candidates()
        spare.remote_username, spare.remote_password = ice.local_username, ice.local_password
        for candidate in ice.local_candidates:
            await spare.add_remote_candidate(candidate)
        await spare.add_remote_candidate(None)
        try:
            async with asyncio.timeout(LIMIT):
                first, second = (spare, ice) if early else (ice, spare)
                begun = asyncio.create_task(first.connect())
                await asyncio.sleep(0.1)
                await asyncio.gather(begun, second.connect())
        finally:
            await spare.close()
            await ice.close()


@pytest.mark.parametrize("only_receives", [True, False])
async def test_a_publisher_that_answers_no_checks_stays_as_long_as_it_sends(monkeypatch, only_receives):
    monkeypatch.setattr(generation, "CONSENT_INTERVAL", 0.02)
    monkeypatch.setattr(generation, "CONSENT_FAILURES", 2)
    async with Pair(IceSettings()) as pair:
        await pair.connect()
        ice = pair.ours.ice
        ice._only_receives = lambda: only_receives

        async def unanswered(self, *arguments, **options):
            await asyncio.sleep(0.02)
            raise TransactionTimeout

        monkeypatch.setattr(StunProtocol, "request", unanswered)
        async with asyncio.timeout(LIMIT):
            if only_receives:
                for _ in range(20):
                    ice.authenticated += 1
                    await asyncio.sleep(0.02)
                assert pair.ours.connectionState == "connected"
            # Silence is not enough, nor is what anybody may send, nor media of one that we send to.
            while pair.ours.connectionState == "connected":
                ice.authenticated += not only_receives
                if ice.local_candidates:
                    pair.stock.sctp.transport.transport._connection._nominated[1].protocol.transport.sendto(
                        b"\xff", (ice.local_candidates[0].host, ice.local_candidates[0].port)
                    )
                await asyncio.sleep(0.02)


def test_candidate_lines_are_read_or_refused():
    line = "candidate:1 1 udp 2130706431 192.0.2.1 50000 typ host"
    for text in (line, f"a={line}", f" {line}\r\n"):
        assert parse_candidate(text).host == "192.0.2.1"
    for text in (
        "",
        "candidate:",
        "candidate:1 1 udp x 192.0.2.1 50000 typ host",
        line.replace("50000", "70000"),
    ):
        with pytest.raises(InvalidInput):
            parse_candidate(text)


async def test_candidates_beyond_the_limit_are_left_out():
    async with Pair(IceSettings()) as pair:
        await pair.connect()
        for port in range(1000, 1000 + 3 * generation.MAX_REMOTE):
            await pair.ours.ice.add_remote_candidate(
                Candidate(str(port), 1, "udp", 1, "192.0.2.77", port, "host")
            )
        assert len(pair.ours.ice.remote_candidates) <= generation.MAX_REMOTE


def test_unknown_versions_are_refused(monkeypatch):
    check_versions()
    monkeypatch.setattr("importlib.metadata.version", lambda package: "2.0.0")
    with pytest.raises(NotInstalled, match="aiortc"):
        check_versions()

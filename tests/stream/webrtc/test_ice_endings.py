"""The end of ICE connections when servers are silent or restarts race, and what counts as a sign of life."""

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest
from aioice import Candidate, stun
from test_ice_connection import LIMIT, Pair

from stream.webrtc.adapter.connection import IceConnection
from stream.webrtc.ice import IceServer, IceSettings, describe_candidates, why_unusable
from stream.webrtc.peer import Peer
from tests.stream.webrtc.media_peers import stage, until
from tests.stream.webrtc.offers import PUBLISHING
from tests.stream.webrtc.test_media_end_to_end import sound_track


class AllocatesOnly(asyncio.DatagramProtocol):
    """A TURN server that gives an address and then says nothing any more."""

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        asked = stun.parse_message(data)
        if asked.message_method == stun.Method.ALLOCATE:
            answer = stun.Message(asked.message_method, stun.Class.RESPONSE, asked.transaction_id)
            answer.attributes["LIFETIME"] = 600
            answer.attributes["XOR-MAPPED-ADDRESS"] = addr
            answer.attributes["XOR-RELAYED-ADDRESS"] = ("192.0.2.5", 50000)
            self.transport.sendto(bytes(answer), addr)


@asynccontextmanager
async def silent_turn():
    """Settings with such a server."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(AllocatesOnly, local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    try:
        yield IceSettings(servers=(IceServer((f"turn:127.0.0.1:{port}",), "user", "password"),))
    finally:
        transport.close()


async def nothing_runs(before):
    """Until no task is left but those of ``before``."""
    for _ in range(250):
        if not asyncio.all_tasks() - before:
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"still running: {asyncio.all_tasks() - before}")


@pytest.mark.descriptors
@pytest.mark.parametrize("patience", [None, 0.05])
async def test_a_turn_server_that_is_silent_keeps_no_peer_open(patience):
    before = asyncio.all_tasks()
    async with silent_turn() as settings, stage() as built:
        closed = []
        peer = Peer(settings, on_closed=closed.append)
        answer = await peer.answer(PUBLISHING, receive=built.ingest)
        assert " typ relay" in answer
        try:
            async with asyncio.timeout(patience or 5):
                await peer.close("enough")
        except TimeoutError:
            assert patience is not None
        assert closed == [peer]
        async with asyncio.timeout(5):
            await peer._connection.close()
    await nothing_runs(before)


@pytest.mark.descriptors
async def test_restarts_at_the_same_time_and_a_close_between_them_leave_nothing():
    before = asyncio.all_tasks()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mute:
        mute.bind(("127.0.0.1", 0))
        server = IceServer((f"turn:127.0.0.1:{mute.getsockname()[1]}",), "user", "password")
        for wait, timeout in ((0.2, 5.0), (1.0, 0.1)):
            async with Pair(IceSettings()) as pair:
                await pair.connect()
                ice = pair.ours.ice
                ice.settings = IceSettings(servers=(server,), gather_timeout=timeout)
                restarts = [asyncio.create_task(ice.restart(f"user{i}", f"{i}" * 22, [])) for i in range(3)]
                await asyncio.sleep(wait)
                async with asyncio.timeout(3):
                    await pair.ours.close()
                ended = await asyncio.gather(*restarts, return_exceptions=True)
                assert all(error is None or isinstance(error, ConnectionError) for error in ended)
                assert any(ended) == (timeout > wait)
    await nothing_runs(before)


async def test_a_restart_replaces_the_one_that_is_being_made():
    async with Pair(IceSettings()) as pair:
        await pair.connect()
        ice = pair.ours.ice
        await asyncio.gather(*(ice.restart(f"user{i}", f"{i}" * 22, []) for i in range(3)))
        assert ice.remote_username == "user2"
        await pair.exchange("over the old path")


async def test_an_end_before_the_beginning_is_told_to_whoever_asks():
    connection = IceConnection(IceSettings(), username=None, password=None)
    await connection.close()
    async with asyncio.timeout(LIMIT):
        assert await connection.get_event() is not None
        with pytest.raises(ConnectionError):
            await connection.recv()


async def test_only_media_that_passed_srtp_says_that_a_publisher_is_there():
    async with stage() as built:
        connection, peer = await built.publish(sound_track())
        await until(lambda: built.ingest.publisher is not None, "media")
        ice = peer._connection.ice
        await until(lambda: ice.authenticated > 3, "packets")
        # What anybody may send to the port, in place of what comes.
        forged = 0
        connection.getTransceivers()[0].sender._RTCRtpSender__rtp_task.cancel()
        target = ice.local_candidates[0]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            await asyncio.sleep(0.3)
            genuine = ice.authenticated
            while forged < 20:
                stranger.sendto(b"\x80\x6f" + bytes([forged]) * 60, (target.host, target.port))
                forged += 1
                await asyncio.sleep(0.01)
        assert ice.authenticated - genuine <= 4


@pytest.mark.parametrize(
    ("host", "port", "usable"),
    [
        ("192.0.2.1", 5000, True),
        ("169.254.1.2", 5000, True),
        ("2001:db8::1", 5000, True),
        ("printer.example", 5000, False),
        ("0.0.0.0", 5000, False),
        ("::", 5000, False),
        ("224.0.0.251", 5000, False),
        ("ff02::fb", 5000, False),
        ("255.255.255.255", 5000, False),
        ("fe80::1%eth0", 5000, False),
        ("fe80::1", 5000, False),
        ("192.0.2.1", 0, False),
    ],
)
async def test_candidates_that_no_check_can_reach_are_left_out_and_named(host, port, usable, caplog):
    caplog.set_level("INFO")
    assert (why_unusable(host, port) is None) == usable
    connection = IceConnection(IceSettings(), username=None, password=None)
    await connection.add_remote_candidate(Candidate("1", 1, "udp", 1, host, port, "host"))
    assert len(connection.remote_candidates) == usable
    words = describe_candidates([], [], connection.settings, connection.left_out)
    assert (f"{host}:{port}" in words) == (not usable)
    assert (host in caplog.text) == (not usable)
    await connection.close()

"""What a client's data channels may have the server hold, over real connections."""

import asyncio
import contextlib

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.rtcsctptransport import SCTP_DATA_FIRST_FRAG, DataChunk, ForwardTsnChunk
from media_peers import GUARD, ICE

from stream.errors import NotInstalled
from stream.webrtc.adapter import data
from stream.webrtc.adapter.data import BoundedSctp
from stream.webrtc.channels import MAX_MESSAGE, Request, RequestChannel
from stream.webrtc.peer import Peer
from tests.stream.quiet_session import quiet_session


class Client:
    """A stock peer with one data channel, and the server's end of it."""

    def __init__(self):
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.pc.addTransceiver("video", direction="recvonly")
        self.channel = self.pc.createDataChannel("control")
        self.opened, self.closed = asyncio.Event(), asyncio.Event()
        self.told = asyncio.Queue()
        self.channel.on("open", self.opened.set)
        self.channel.on("close", self.closed.set)
        self.channel.on("message", self.told.put_nowait)
        self.peer = Peer(ICE, on_closed=lambda peer: None)
        self.served = []
        self.answer = ""

    def serve(self, label, channel):
        async def echo(message):
            return {"size": len(message["text"])}

        self.served.append(RequestChannel(channel, {"echo": Request("echoed", echo)}))

    async def connect(self):
        await self.pc.setLocalDescription(await self.pc.createOffer())
        self.answer = await self.peer.answer(
            self.pc.localDescription.sdp, send=quiet_session("one"), channels=self.serve
        )
        await self.pc.setRemoteDescription(RTCSessionDescription(self.answer, "answer"))
        await asyncio.wait_for(self.opened.wait(), GUARD)

    @property
    def sctp(self):
        """The server's."""
        return self.peer._connection.sctp

    async def close(self):
        for each in self.served:
            each.close()
        await self.peer.close("done")
        await self.pc.close()


@pytest.fixture
async def client():
    client = Client()
    await client.connect()
    yield client
    await client.close()


async def _send(client, chunk):
    await client.pc.sctp._send_chunk(chunk)


def _piece(client, number, *, stream=2, size=1000, flags=0):
    chunk = DataChunk(flags=flags)
    chunk.tsn = (client.pc.sctp._local_tsn + number) & 0xFFFF_FFFF
    chunk.stream_id, chunk.stream_seq, chunk.protocol = stream, 0, 51
    chunk.user_data = b"x" * size
    return chunk


async def _ended(client, send):
    """Send, until the server ends the association."""
    for number in range(20_000):
        if client.sctp.state == "closed":
            break
        with contextlib.suppress(ConnectionError):
            await send(number)
        if number % 20 == 19:
            # The loop reads one datagram each time round: so none is lost to a full buffer.
            for _ in range(40):
                await asyncio.sleep(0)
    await asyncio.wait_for(client.closed.wait(), GUARD)
    assert client.sctp.state == "closed"
    assert client.peer.state == "connected"


async def test_the_announced_size_is_the_one_that_works(client):
    assert f"a=max-message-size:{MAX_MESSAGE}\r\n" in client.answer
    room = MAX_MESSAGE - len('{"type": "echo", "text": ""}')
    client.channel.send('{"type": "echo", "text": "' + "x" * room + '"}')
    assert f'"size": {room}' in await asyncio.wait_for(client.told.get(), GUARD)
    with pytest.raises(ValueError, match=str(MAX_MESSAGE)):
        client.channel.send("x" * (MAX_MESSAGE + 1))
    # A client that does not keep to it is told.
    client.pc.sctp._remote_max_message_size = 0
    client.channel.send('{"type": "echo", "text": "' + "x" * (room + 1) + '"}')
    assert f"at most {MAX_MESSAGE} bytes" in await asyncio.wait_for(client.told.get(), GUARD)


async def test_a_message_that_never_ends_does_not_grow_without_limit(client):
    await _ended(client, lambda n: _send(client, _piece(client, n, flags=0 if n else SCTP_DATA_FIRST_FRAG)))
    assert client.sctp._inbound_streams == {}


async def test_small_pieces_are_bounded_too(client):
    await _ended(client, lambda n: _send(client, _piece(client, n, size=1, flags=SCTP_DATA_FIRST_FRAG)))


async def test_streams_are_bounded(client):
    await _ended(client, lambda n: _send(client, _piece(client, n, stream=n + 2, flags=SCTP_DATA_FIRST_FRAG)))


async def test_what_comes_after_a_gap_is_bounded(client, monkeypatch):
    monkeypatch.setattr(data, "MAX_GAPS", 100)
    # Whole messages without order of a stream that is no channel: nothing of them is kept but the number.
    await _ended(client, lambda n: _send(client, _piece(client, n + 1, size=1, flags=0b111)))


async def test_streams_that_are_only_skipped_are_bounded(client):
    async def skip(number):
        chunk = ForwardTsnChunk()
        chunk.cumulative_tsn = client.pc.sctp._local_tsn + number
        chunk.streams = [(number * 20 + k, 0) for k in range(20)]
        await _send(client, chunk)

    await _ended(client, skip)


async def test_channels_are_bounded(client):
    for _ in range(data.MAX_CHANNELS + 1):
        client.pc.createDataChannel("more")
    await asyncio.wait_for(client.closed.wait(), GUARD)
    assert client.peer.state == "connected"


async def test_what_is_no_text_does_not_end_the_connection(client):
    await client.pc.sctp._send(client.channel.id, 51, b"\xff\xfe")
    await client.pc.sctp._send(client.channel.id, 50, b"\x03" + bytes(11))
    client.channel.send('{"type": "echo", "text": "x"}')
    assert '"size": 1' in await asyncio.wait_for(client.told.get(), GUARD)
    assert client.sctp.malformed == 2


def test_an_sctp_of_another_shape_is_refused():
    with pytest.raises(NotInstalled):
        BoundedSctp.adopt(object())

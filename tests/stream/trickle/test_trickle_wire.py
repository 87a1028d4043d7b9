"""One connection, against a plain socket."""

import asyncio
import socket
import struct

import pytest

from stream.trickle.wire import READ_LIMIT, Wire


async def test_a_reset_that_nobody_has_read_yet_is_a_lost_connection():
    """asyncio's own loop does not hear of it while it leaves the socket alone."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _, wire = await asyncio.get_running_loop().create_connection(Wire, *listener.getsockname())
        peer, _ = listener.accept()
    with peer:
        peer.sendall(bytes(2 * READ_LIMIT))
        while not wire._paused:  # noqa: ASYNC110 (asking is all that there is)
            await asyncio.sleep(0.01)
        # With a linger of nothing, closing resets.
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await asyncio.sleep(0.05)
    with pytest.raises(ConnectionError):
        wire.end_writing()
    wire.abort()

import asyncio

import pytest

from stream import sinks
from stream.errors import SinkError
from stream.sinks import TrickleSink
from stream.trickle.publisher import TricklePublisher
from stream.units import EncodedUnit, VideoParameters


async def _refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that takes a segment's beginning and then answers 500, over and over."""
    try:
        await reader.readuntil(b"\r\n\r\n")
        await reader.read(1000)
        writer.write(b"HTTP/1.1 500 Server error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def test_a_sink_whose_segments_are_never_confirmed_gives_up(monkeypatch):
    monkeypatch.setattr(sinks, "GIVE_UP", 1.0)
    server = await asyncio.start_server(_refuse, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/out"
    sink = TrickleSink(
        TricklePublisher(url),
        video_parameters=lambda: VideoParameters(64, 64),
        audio_parameters=lambda: None,
        request_key=lambda: None,
        on_sent=lambda unit: None,
    )
    running = asyncio.create_task(sink.run())

    async def feed() -> None:
        for i in range(200):
            sink.offer(EncodedUnit("video", b"\0\0\0\1\x65" + bytes(500), i * 9000, 9000, key=i % 5 == 0))
            await asyncio.sleep(0.05)

    feeding = asyncio.create_task(feed())
    with pytest.raises(SinkError):
        await asyncio.wait_for(running, 15)
    feeding.cancel()
    await asyncio.gather(feeding, return_exceptions=True)
    server.close()
    await server.wait_closed()

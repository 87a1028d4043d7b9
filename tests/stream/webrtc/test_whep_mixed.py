"""Ends that mix: what comes by WHIP goes out by trickle, and what comes by trickle is seen by WHEP."""

from contextlib import asynccontextmanager

from stock_peers import Publisher, Viewer, until
from whip_program import whip_program

from stream.trickle.server import TrickleServer, TrickleServerSettings

RED, BLUE = (220, 30, 30), (30, 30, 220)


def shows(viewer, colour):
    return len(viewer.colour) == 3 and all(
        abs(a - b) < 60 for a, b in zip(viewer.colour, colour, strict=True)
    )


@asynccontextmanager
async def everything():
    """A program and a trickle server, and a publisher whose pictures go out to its channel ``through``."""
    async with TrickleServer(TrickleServerSettings(port=0)) as trickle, whip_program(real=True) as program:
        publisher, viewer = Publisher(program.client, RED), Viewer(program.client)
        try:
            url = f"{trickle.url}/through"
            assert await publisher.post(f"/whip/first?publish_url={url}") == 201
            yield program, trickle, url, viewer
        finally:
            await publisher.close()
            await viewer.close()


async def test_whip_in_trickle_out_and_trickle_in_whep_out():
    async with everything() as (program, trickle, url, viewer):
        first = program.host.table.find("first")
        await until(lambda: first.bytes_sent > 5000)
        assert "through" in trickle.channels
        body = {"stream_id": "second", "subscribe_url": url, "params": {}}
        assert (await program.client.post("/stream/start", json=body)).status == 200
        assert await viewer.post("/whep/second") == 201
        await until(lambda: shows(viewer, RED))
        # The end of the first ends the second, and with it its viewer.
        first.stop("enough")
        await until(lambda: len(program.host.table) == len(program.peers) == 0)


async def test_a_viewer_sees_the_next_publisher_of_a_name_after_the_first_was_lost():
    async with whip_program(real=True) as program:
        first, second = Publisher(program.client, RED), Publisher(program.client, BLUE)
        viewer = Viewer(program.client)
        try:
            assert await first.post("/whip/live") == 201
            assert await viewer.post("/whep/live") == 201
            await until(lambda: shows(viewer, RED))
            # Gone without a word; the second comes while the worker still waits for it.
            await first.close()
            assert await second.post("/whip/live") == 201
            await until(lambda: shows(viewer, BLUE))
        finally:
            await first.close()
            await second.close()
            await viewer.close()

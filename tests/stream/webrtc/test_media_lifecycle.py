"""Peers come and go: what is left of them, who is told, and what a session makes of it."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import threading
import weakref

import pytest

from stream.errors import Conflict, InvalidInput
from stream.webrtc.ice import IceSettings
from stream.webrtc.peer import Peer
from tests.stream.webrtc.media_peers import Stage, stage, until, within
from tests.stream.webrtc.test_media_end_to_end import picture_track, sound_track


def held() -> tuple[int, int, int]:
    """Tasks, threads and descriptors."""
    gc.collect()
    return len(asyncio.all_tasks()), threading.active_count(), len(os.listdir("/proc/self/fd"))


async def one_viewer(built: Stage) -> weakref.ref[Peer]:
    """Connects, sees a picture and leaves, from one side or the other."""
    connection, viewer, tracks = await built.watch("video", "audio")
    await within(tracks["video"].recv())
    if len(built.closed) % 2:
        await viewer.close("bye")
        await connection.close()
    else:
        await connection.close()
        await until(lambda: viewer in built.closed, "the end of the viewer's peer")
    built.peers.remove(viewer)
    built.closed.remove(viewer)
    built.stock.remove(connection)
    return weakref.ref(viewer)


async def test_nothing_is_left_of_peers_that_came_and_went() -> None:
    async with stage() as built:
        await built.publish(picture_track(), sound_track())
        for _ in range(2):
            await one_viewer(built)
        await until(lambda: not built.session.sinks, "empty places")
        await asyncio.sleep(0.2)
        before = held()
        gone = [await one_viewer(built) for _ in range(8)]
        await until(lambda: not built.session.sinks, "empty places")
        await until(lambda: held()[0] <= before[0] and held()[2] <= before[2], "what they had")
        assert held()[1] <= before[1] + 1, "the pool of the loop may grow by a thread"
        gc.collect()
        assert [peer for peer in gone if peer() is not None] == []
        assert built.session.ending is None


async def test_a_publisher_that_comes_back_goes_on_for_the_same_viewers() -> None:
    async with stage() as built:
        first, peer = await built.publish(picture_track(), sound_track())
        _, viewer, tracks = await built.watch("video")
        await within(tracks["video"].recv())
        await first.close()
        await until(lambda: peer in built.closed, "the end of the publisher's peer")
        assert built.ingest.publisher is None
        await built.publish(picture_track(), sound_track())
        await until(lambda: built.ingest.publisher is not None, "its return")
        before = viewer.report()["out"]["video"]["units"]
        await until(lambda: viewer.report()["out"]["video"]["units"] > before + 20, "pictures")
        await within(tracks["video"].recv())
        assert viewer.state == "connected"


async def test_a_second_publisher_takes_over_and_the_first_is_closed() -> None:
    async with stage() as built:
        _, first = await built.publish(picture_track())
        await until(lambda: built.ingest.publisher == first.id[:8], "the first")
        _, second = await built.publish(picture_track())
        await until(lambda: built.ingest.publisher == second.id[:8], "the second")
        await until(lambda: first in built.closed, "the end of the first")
        assert first.reason is not None
        assert "took over" in first.reason
        assert built.session.ending is None


async def test_a_publisher_that_never_connects_takes_nothing_over() -> None:
    async with stage() as built:
        _, first = await built.publish(picture_track())
        await until(lambda: built.ingest.publisher == first.id[:8], "the first")
        offerer = built.stock_peer()
        offerer.addTransceiver(picture_track(), direction="sendonly")
        await offerer.setLocalDescription(await offerer.createOffer())
        second = built.peer()
        await second.answer(offerer.localDescription.sdp, receive=built.ingest)
        await second.close("no path")
        assert built.ingest.publisher == first.id[:8]
        assert first.state == "connected"


async def test_viewers_are_closed_with_their_session() -> None:
    async with stage() as built:
        await built.publish(picture_track())
        _, viewer, tracks = await built.watch("video")
        await within(tracks["video"].recv())
        built.session.stop("the show is over")
        await until(lambda: viewer in built.closed, "the end of the viewer's peer")
        assert viewer.state == "closed"
        assert viewer.reason == "the session ended"


async def test_data_channels_are_handed_on_with_their_labels() -> None:
    opened: list[str] = []
    answers: list[str] = []
    async with stage() as built:
        offerer = built.stock_peer()
        offerer.addTransceiver(picture_track(), direction="sendonly")
        channel = offerer.createDataChannel("control")
        channel.on("message", answers.append)
        await offerer.setLocalDescription(await offerer.createOffer())
        peer = built.peer()

        def take(label: str, ours: object) -> None:
            opened.append(label)
            ours.on("message", lambda text: ours.send(f"heard {text}"))  # type: ignore[attr-defined]

        answer = await peer.answer(offerer.localDescription.sdp, receive=built.ingest, channels=take)
        from aiortc import RTCSessionDescription

        await offerer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        await until(lambda: channel.readyState == "open", "the channel")
        channel.send("hello")
        await until(lambda: answers == ["heard hello"], "the answer")
        assert opened == ["control"]


async def test_a_peer_both_publishes_and_watches_and_tells_when_what_was_sent() -> None:
    from aiortc import RTCSessionDescription

    async with stage() as built:
        offerer = built.stock_peer()
        track = picture_track()
        offerer.addTrack(track)
        await offerer.setLocalDescription(await offerer.createOffer())
        peer = built.peer()
        answer = await peer.answer(offerer.localDescription.sdp, receive=built.ingest, send=built.session)
        await offerer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        back = offerer.getReceivers()[0].track
        first = await within(back.recv())
        for _ in range(15):
            later = await within(back.recv())
        assert later.pts > first.pts
        timings = peer.timings()
        assert len(timings) > 5
        assert all(0 <= spent < 5000 for _, _, spent in timings)
        steps = {(b[0] - a[0]) & 0xFFFF_FFFF for a, b in itertools.pairwise(timings)}
        assert all(step % 3000 == 0 for step in steps), "the source's own timestamps"
        assert peer.timings() != timings


async def test_an_offer_is_answered_once_and_not_after_the_end() -> None:
    async with stage() as built:
        _, peer = await built.publish(picture_track())
        with pytest.raises(Conflict):
            await peer.answer("v=0", receive=built.ingest)
        late = built.peer()
        await late.close("early")
        await late.close("twice")
        with pytest.raises(Conflict):
            await late.answer("v=0", receive=built.ingest)
        assert built.closed.count(late) == 1
        assert late.state == "closed"


async def test_candidates_of_the_other_side_are_taken_one_by_one() -> None:
    from aiortc import RTCSessionDescription

    async with stage() as built:
        offerer = built.stock_peer()
        offerer.addTransceiver(picture_track(), direction="sendonly")
        await offerer.setLocalDescription(await offerer.createOffer())
        lines = offerer.localDescription.sdp.splitlines()
        candidates = [line for line in lines if line.startswith("a=candidate")]
        bare = [line for line in lines if not line.startswith(("a=candidate", "a=end-of-candidates"))]
        peer = built.peer()
        answer = await peer.answer("\r\n".join(bare) + "\r\n", receive=built.ingest)
        for line in candidates:
            peer.add_candidate(line[2:], "0")
        peer.end_of_candidates()
        with pytest.raises(InvalidInput):
            peer.add_candidate("candidate:nonsense", None)
        await offerer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        await until(lambda: built.ingest.publisher == peer.id[:8], "the connection")


async def test_closing_while_an_offer_is_answered_leaves_nothing() -> None:
    async with stage() as built:
        offerer = built.stock_peer()
        offerer.addTransceiver(picture_track(), direction="sendonly")
        await offerer.setLocalDescription(await offerer.createOffer())
        closed: list[Peer] = []
        peer = Peer(IceSettings(gather_timeout=0.5), on_closed=closed.append)
        answering = asyncio.create_task(peer.answer(offerer.localDescription.sdp, receive=built.ingest))
        await asyncio.sleep(0)
        answering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answering
        assert closed == [peer]

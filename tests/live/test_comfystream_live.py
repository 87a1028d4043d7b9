"""ComfyStream's way of connecting, with stock aiortc as the browser and a real engine behind."""

import asyncio
import contextlib
import json
import time
from fractions import Fraction

import av
import numpy as np
import pytest
import pytest_asyncio
from aiortc import RTCPeerConnection, RTCRtpSender, RTCSessionDescription, VideoStreamTrack
from aiortc.mediastreams import AudioStreamTrack, MediaStreamError
from live_rig import INVERT, running

from tests.stream.recording.recorded_file import contents

LIMIT = 40
SIZE = (160, 120)


class Camera(VideoStreamTrack):
    """Dark green pictures, 30 a second."""

    async def recv(self):
        pts, base = await self.next_timestamp()
        picture = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
        picture[..., 1] = 60
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = pts, base
        return frame


class Microphone(AudioStreamTrack):
    """A tone."""

    async def recv(self):
        frame = await super().recv()
        times = (np.arange(frame.samples) + frame.pts) / frame.sample_rate
        tone = (np.sin(times * 2764) * 8000).astype(np.int16)[None]
        made = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
        made.pts, made.sample_rate, made.time_base = (
            frame.pts,
            frame.sample_rate,
            Fraction(1, frame.sample_rate),
        )
        return made


class Page:
    """A page as ComfyStream's: sends a camera, shows what comes back, has two data channels."""

    def __init__(self, *, send=True, audio=False, codec=None):
        self.connection = RTCPeerConnection()
        self.control = self.connection.createDataChannel("control")
        self.data = self.connection.createDataChannel("data")
        self.said = []
        self.pictures = []
        self.sounds = 0
        self.opened = asyncio.Event()
        self._arrived = asyncio.Event()
        self._tasks = []
        self.control.on("open", self.opened.set)
        self.control.on("message", lambda text: self._hear("control", text))
        self.data.on("message", lambda text: self._hear("data", text))
        self.connection.on("track", lambda track: self._tasks.append(asyncio.create_task(self._read(track))))
        if send:
            self.connection.addTrack(Camera())
        else:
            self.connection.addTransceiver("video", direction="recvonly")
        if audio:
            self.connection.addTrack(Microphone())
        if codec is not None:
            known = RTCRtpSender.getCapabilities("video").codecs
            wanted = [each for each in known if each.mimeType == codec]
            self.connection.getTransceivers()[0].setCodecPreferences(wanted)

    def _hear(self, label, text):
        self.said.append((label, json.loads(text)))
        self._arrived.set()

    async def _read(self, track):
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                if track.kind == "audio":
                    self.sounds += 1
                else:
                    mean = frame.to_ndarray(format="rgb24").reshape(-1, 3).mean(0)
                    self.pictures.append((frame.width, frame.height, tuple(mean)))
                self._arrived.set()

    async def connect(self, rig, route="/offer", **body):
        """Post an offer; status and answer."""
        await self.connection.setLocalDescription(await self.connection.createOffer())
        local = self.connection.localDescription
        offer = {"sdp": local.sdp, "type": local.type}
        status, answer = await rig.post(route, {"offer": offer, **body})
        if status == 200:
            description = RTCSessionDescription(answer["sdp"], answer["type"])
            await self.connection.setRemoteDescription(description)
        return status, answer

    async def until(self, so, timeout=LIMIT):
        async with asyncio.timeout(timeout):
            while not so():
                self._arrived.clear()
                await self._arrived.wait()

    async def ask(self, message, reply):
        await asyncio.wait_for(self.opened.wait(), LIMIT)
        self.said.clear()
        self.control.send(json.dumps(message))
        await self.until(lambda: any(said["type"] == reply for _, said in self.said))
        return next(said for _, said in self.said if said["type"] == reply)

    async def close(self):
        await self.connection.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def inverted(picture):
    return picture[2][0] > 200 and picture[2][1] < 230


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_rig(tmp_path_factory):
    """A worker for two streams that may record them."""
    folder = tmp_path_factory.mktemp("comfystream")
    async with running(folder, capacity=2, recordings=folder / "recordings", recording_reserve=0) as rig:
        yield rig


async def gone(rig, count=0):
    end = time.monotonic() + LIMIT
    while len(rig.worker.table) > count or len(rig.worker.webrtc.peers) > count:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


async def test_a_page_is_processed_steered_recorded_and_gone(rig):
    folder = rig.folder / "recordings"
    page = Page(audio=True)
    try:
        resolution = {"width": 128, "height": 96}
        status, answer = await page.connect(rig, "/live/offer", prompts=[INVERT], resolution=resolution)
        assert (status, answer["type"]) == (200, "answer"), answer
        await page.until(lambda: page.pictures and inverted(page.pictures[-1]))
        assert page.pictures[-1][:2] == (128, 96)
        nodes = (await page.ask({"type": "get_nodes"}, "nodes_info"))["nodes"]
        assert nodes["0"]["2"]["class_type"] == "ImageInvert"
        unknown = await page.ask({"type": "dance"}, "error")
        assert unknown["success"] is False
        begun = answer["session"]
        record = {"stream_id": begun, "what": "both", "name": "page"}
        status, recording = await rig.post("/stream/record", record)
        assert (status, len(recording["files"])) == (201, 2), recording
        timing = await page.ask({"type": "timing", "on": True}, "timing_set")
        assert timing["success"]
        await page.until(lambda: any(said["type"] == "timing" and said["frames"] for _, said in page.said))
        frames = next(s["frames"] for _, s in page.said if s["type"] == "timing" and s["frames"])
        assert all(len(frame) == 3 and 0 < frame[2] < 20_000 for frame in frames)
        sent = {frame[0] for frame in frames}
        assert len(sent) > 1
        await page.until(lambda: page.sounds > 20)
        answer = await page.ask({"type": "update_prompts", "prompts": [{"1": {}}]}, "prompts_updated")
        assert answer["success"] is False
        answer = await page.ask({"type": "switch_workflow", "workflow": "passthrough"}, "workflow_switched")
        assert answer["success"]
        await page.until(lambda: not inverted(page.pictures[-1]))
        assert rig.worker.table.find(begun).pipeline.figures.counts.frames_in > 5
    finally:
        await page.close()
    await gone(rig)
    for name in recording["files"]:
        found = contents(folder / name)
        assert found.first_is_key, name
        assert len(found.video) > 5
        assert found.audio
        assert abs(found.audio[0] - found.video[0]) < 0.3


async def test_vp8_is_recorded_as_it_came_and_the_answer_says_so(rig):
    folder = rig.folder / "recordings"
    page = Page(codec="video/VP8", audio=True)
    try:
        status, answer = await page.connect(rig, session="vp8")
        assert status == 200, answer
        await page.until(lambda: len(page.pictures) > 10)
        record = {"stream_id": "vp8", "what": "in", "name": "came"}
        status, begun = await rig.post("/stream/record", record)
        assert (status, begun["files"]) == (201, ["came.webm"]), begun
        file = begun["recordings"][0]["files"][0]
        assert (file["container"], file["video"], file["audio"]) == ("webm", "vp8", "opus")
        shown = len(page.pictures)
        await page.until(lambda: len(page.pictures) > shown + 45)
    finally:
        await page.close()
    rig.worker.table.find("vp8").stop("enough")
    await gone(rig)
    found = contents(folder / "came.webm")
    assert found.size == SIZE
    assert len(found.video) > 20
    assert abs(found.audio[0] - found.video[0]) < 0.3


async def test_connections_are_sessions_of_their_own_up_to_the_capacity(rig):
    pages = [Page(), Page(), Page()]
    try:
        first = await pages[0].connect(rig, prompts=[INVERT])
        second = await pages[1].connect(rig)
        assert (first[0], second[0]) == (200, 200)
        assert first[1]["session"] != second[1]["session"]
        status, answer = await pages[2].connect(rig)
        assert (status, answer["code"]) == (503, "at_capacity")
        await pages[0].until(lambda: pages[0].pictures and inverted(pages[0].pictures[-1]))
        await pages[1].until(lambda: len(pages[1].pictures) > 5)
        # Without prompts the picture comes back as it is.
        await pages[1].until(lambda: pages[1].pictures[-1][2][1] > pages[1].pictures[-1][2][0] + 20)
        await pages[0].close()
        await gone(rig, 1)
        count = len(pages[1].pictures)
        await pages[1].until(lambda: len(pages[1].pictures) > count + 5)
    finally:
        await asyncio.gather(*(page.close() for page in pages))
    await gone(rig)


async def test_a_viewer_joins_a_named_session(rig):
    page, viewer, lost, other = Page(), Page(send=False), Page(send=False), Page()
    try:
        status, answer = await page.connect(rig, session="show", workflow=INVERT, receive=False)
        assert (status, answer["session"]) == (200, "show")
        status, answer = await viewer.connect(rig, session="show")
        assert status == 200, answer
        await viewer.until(lambda: viewer.pictures and inverted(viewer.pictures[-1]))
        assert page.pictures == []
        assert (await viewer.ask({"type": "get_status"}, "status"))["status"]["id"] == "show"
        assert (await lost.connect(rig, session="elsewhere"))[0] == 404
        assert (await lost.connect(rig))[1]["field"] == "session"
        # Another publisher takes over when it says so; the viewer stays, and so does the workflow.
        status, answer = await other.connect(rig, session="show")
        assert (status, answer["field"]) == (409, "takeover")
        assert (await other.connect(rig, session="show", takeover=True))[0] == 200
        await other.until(lambda: other.pictures and inverted(other.pictures[-1]))
        count = len(viewer.pictures)
        await viewer.until(lambda: len(viewer.pictures) > count + 5 and inverted(viewer.pictures[-1]))
    finally:
        await asyncio.gather(*(each.close() for each in (page, viewer, lost, other)))
    rig.worker.table.find("show").stop("enough")
    await gone(rig)


async def test_what_is_wrong_with_an_offer_is_said_and_leaves_nothing(rig):
    page = Page()
    broken = {"1": {"class_type": "Nope", "inputs": {}}, "2": {"class_type": "Neither", "inputs": {}}}
    cases = {
        "workflow": {"prompts": [broken]},
        "resolution": {"resolution": {"width": 5}},
        "width": {"resolution": {"width": 5, "height": 5}},
        "session": {"session": "../x"},
        "params": {"params": []},
        "send": {"send": "yes"},
        "takeover": {"takeover": 1},
    }
    try:
        for field, body in cases.items():
            status, answer = await page.connect(rig, **body)
            assert (status, answer["field"]) == (400, field), answer
        status, answer = await page.connect(rig, prompts=[broken])
        assert {each["class_type"] for each in answer["details"] if "class_type" in each} == {
            "Nope",
            "Neither",
        }
        for offer in (None, {}, {"sdp": 5}, {"sdp": "v=0", "type": "answer"}, {"sdp": "x" * 100}):
            status, answer = await rig.post("/offer", {"offer": offer})
            assert status == 400, answer
        assert (await rig.post("/offer", []))[0] == 400
        assert (await rig.post("/offer", {"offer": {"sdp": "v=0\n" + "a" * (1 << 20)}}))[0] == 413
    finally:
        await page.close()
    assert len(rig.worker.table) == 0
    assert len(rig.worker.webrtc.peers) == 0

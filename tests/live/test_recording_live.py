"""Recordings of a running stream, and its events, over HTTP."""

import asyncio
import json

import aiohttp
from live_rig import INVERT, Rig, clip, running

from tests.stream.recording.recorded_file import contents

LIMIT = 60


async def read_events(rig, session, told):
    """Follow a session's events to their end."""
    async with rig.http.get(f"{rig.base}/stream/events?stream_id={session}") as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        async for line in response.content:
            if line.startswith(b"event: "):
                kind = line[7:].decode().strip()
            elif line.startswith(b"data: "):
                told.append((kind, json.loads(line[6:])))


async def test_both_directions_are_recorded_fetched_in_ranges_and_removed(tmp_path):
    folder, told = tmp_path / "recordings", []
    async with running(tmp_path, recordings=folder, recording_reserve=0) as rig:
        feeding = asyncio.create_task(rig.play(clip(5)))
        status, answer = await rig.start(params={"width": 96, "height": 96, "workflow": INVERT})
        assert status == 200, answer
        reading = asyncio.create_task(read_events(rig, "one", told))
        await rig.until(lambda r: r["counts"]["frames_out"] > 10)
        status, begun = await rig.post("/stream/record", {"stream_id": "one", "what": "both", "name": "show"})
        assert status == 201, begun
        assert begun["files"] == ["show-in.mp4", "show-out.mp4"]
        assert [each["state"] for each in begun["recordings"]] == ["recording", "recording"]
        status, refused = await rig.post("/stream/record", {"stream_id": "one", "what": "out"})
        assert (status, refused["code"]) == (409, "conflict")
        async with rig.http.delete(f"{rig.base}/recordings/show-in.mp4") as response:
            assert response.status == 409
        await asyncio.sleep(1.7)
        # Another size goes to another file.
        rig.worker.table.find("one").pipeline.resize(64, 48)
        await asyncio.sleep(0.8)
        async with rig.http.delete(f"{rig.base}/stream/record?stream_id=one") as response:
            ended = await response.json()
        assert [each["state"] for each in ended["recordings"]] == ["ended", "ended"]
        listed = await rig.get("/recordings")
        names = sorted(each["file"] for each in listed["recordings"])
        assert names == ["show-in.mp4", "show-out-2.mp4", "show-out.mp4"]
        assert contents(folder / "show-out-2.mp4").size == (64, 48)
        assert not any(each["recording"] for each in listed["recordings"])
        await _fetch_in_ranges(rig, folder / "show-out.mp4")
        await _names_stay_in_the_folder(rig, tmp_path)
        await asyncio.wait_for(feeding, LIMIT)
        await asyncio.wait_for(reading, LIMIT)
        came, went = contents(folder / "show-in.mp4"), contents(folder / "show-out.mp4")
        async with rig.http.delete(f"{rig.base}/recordings/show-in.mp4") as response:
            assert response.status == 200
        assert not (folder / "show-in.mp4").exists()
    assert (came.size, went.size) == ((128, 128), (96, 96))
    assert (came.codecs["audio"], went.codecs["audio"]) == ("aac", "opus")
    for found in (came, went):
        assert found.first_is_key
        assert found.duration > 1.5
        assert abs(found.audio[0] - found.video[0]) < 0.1
        assert abs(found.audio[-1] - found.video[-1]) < 0.3
    kinds = [kind for kind, _ in told]
    assert kinds[0] == "state"
    assert "ONLINE" in [body["state"] for kind, body in told if kind == "state"]
    assert kinds[-1] == "ended"


async def _fetch_in_ranges(rig: Rig, path) -> None:
    url = f"{rig.base}/recordings/{path.name}"
    async with rig.http.get(url) as response:
        whole = await response.read()
        assert response.headers["Content-Disposition"].startswith("attachment")
    assert whole == path.read_bytes()
    async with rig.http.get(url, headers={"Range": "bytes=100-199"}) as response:
        assert response.status == 206
        assert await response.read() == whole[100:200]


async def _names_stay_in_the_folder(rig: Rig, outside) -> None:
    (outside / "secret.mp4").write_bytes(b"secret")
    for name in ("..%2fsecret.mp4", "%2e%2e%2fsecret.mp4", ".hidden.mp4", "nothing.mp4", "a.txt"):
        async with rig.http.get(
            aiohttp.client.URL(f"{rig.base}/recordings/{name}", encoded=True)
        ) as response:
            assert response.status == 404, name
    for name in ("../x", "/etc/x", "a/b", "", "x" * 200, 5):
        status, answer = await rig.post("/stream/record", {"stream_id": "one", "name": name})
        assert (status, answer["field"]) == (400, "name"), name

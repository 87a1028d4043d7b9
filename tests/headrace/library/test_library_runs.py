"""Workflows run over one picture or clip, and values saved from a running stream, with a real engine."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import aiohttp
import av
import numpy as np
import pytest
from PIL import Image

from headrace.batch.errors import UnsupportedMedia
from headrace.server.run_media import container_of, wanted_type
from stream.errors import InvalidInput
from tests.headrace.page.page_server import PageServer, page_server
from workflows import library

pytest.importorskip("torch")

LIMIT = aiohttp.ClientTimeout(total=90)
SLOW = {
    "1": {"class_type": "LoadTensor", "inputs": {}},
    **{
        str(number): {
            "class_type": "ImageBlur",
            "inputs": {"image": [str(number - 1), 0], "blur_radius": 31, "sigma": 10.0},
        }
        for number in range(2, 60)
    },
    "99": {"class_type": "SaveTensor", "inputs": {"images": ["59", 0]}},
}
"""Seconds for a large picture on any machine."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workflows")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[PageServer]:
    settings = {"HEADRACE_WORKFLOWS": str(folder), "HEADRACE_CLIP_SECONDS": "3", "HEADRACE_BATCH_QUEUE": "1"}
    with page_server(environment=settings) as running:
        yield running


@pytest.fixture
def showing(folder: Path) -> Iterator[PageServer]:
    """A worker with a stream that runs."""
    with page_server("--demo", "--workflow", "edges", environment={"HEADRACE_WORKFLOWS": str(folder)}) as it:
        yield it


@asynccontextmanager
async def client_of(server: PageServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.url, timeout=LIMIT) as client:
        yield client


def picture(width: int = 64, height: int = 48) -> bytes:
    """A PNG that is black on its left and yellow on its right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :, :2] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def clip(path: Path, frames: int, width: int = 64, height: int = 48) -> bytes:
    """An MP4 of so many frames at 30 fps, with a tone beside them."""
    with av.open(str(path), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=30)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        sound = container.add_stream("aac", rate=48_000)
        sound.layout = "mono"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), number * 5 % 256, np.uint8))
            frame.pts, frame.time_base = number, Fraction(1, 30)
            container.mux(video.encode(frame))
        for number in range(frames * 1600 // 1024):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            samples.rate, samples.pts = 48_000, number * 1024
            container.mux(sound.encode(samples))
        container.mux(video.encode())
        container.mux(sound.encode())
    return path.read_bytes()


def form(**fields: Any) -> aiohttp.FormData:
    data = aiohttp.FormData()
    for name, value in fields.items():
        if isinstance(value, bytes):
            data.add_field(name, value, filename=name)
        else:
            data.add_field(name, value if isinstance(value, str) else json.dumps(value))
    return data


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
async def test_a_picture_comes_back_in_the_format_that_is_accepted(server: PageServer, kind: str) -> None:
    accepted = f"image/{kind.lower()}"
    async with client_of(server) as client:
        body = form(image=picture(), params={"Edges.low_threshold": 0.1})
        async with client.post("/workflows/edges/run", data=body, headers={"Accept": accepted}) as answer:
            assert (answer.status, answer.content_type) == (200, accepted)
            made = Image.open(io.BytesIO(await answer.read()))
    assert (made.format, made.size) == (kind, (64, 48))
    pixels = np.asarray(made.convert("L")).astype(int)
    # An edge in the middle, and none beside it.
    assert pixels[24, 30:34].max() > 200
    assert pixels[24, :20].max() < 60


async def test_as_json_it_is_data_urls_both_ways(server: PageServer) -> None:
    sent = "data:image/png;base64," + base64.b64encode(picture()).decode()
    async with client_of(server) as client:
        body = {"image": sent}
        headers = {"Accept": "application/json"}
        async with client.post("/workflows/passthrough/run", json=body, headers=headers) as answer:
            made = await answer.json()
    assert answer.status == 200
    (image,) = made["images"]
    assert (image["width"], image["height"], made["texts"], made["frames"]) == (64, 48, [], 1)
    back = Image.open(io.BytesIO(base64.b64decode(image["url"].partition(",")[2])))
    assert np.array_equal(np.asarray(back), np.asarray(Image.open(io.BytesIO(picture()))))


async def test_every_frame_of_a_clip_is_worked_on_and_its_sound_stays(
    server: PageServer, tmp_path: Path
) -> None:
    sent = clip(tmp_path / "clip.mp4", 40)
    path = "/workflows/cartoon/run"
    async with client_of(server) as client, client.post(path, data=form(video=sent)) as answer:
        assert (answer.status, answer.content_type) == (200, "video/mp4")
        assert answer.headers["X-Headrace-Frames"] == "40"
        made = await answer.read()
    with av.open(io.BytesIO(made)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 40
        assert container.streams.audio[0].codec_context.name == "aac"


async def test_a_workflow_that_makes_its_picture_itself_takes_none(server: PageServer, folder: Path) -> None:
    unneeded = {"class_type": "RepeatImageBatch", "inputs": {"image": ["1", 0], "amount": 2}}
    drawing = {
        "0": unneeded,
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 72, "height": 40, "batch_size": 1, "color": 0xFF8000},
        },
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }
    (folder / "drawing.json").write_text(json.dumps(drawing))
    async with client_of(server) as client:
        # Without a body, and with parameters alone.
        for body, colour in ((None, (255, 128, 0)), ({"params": {"1.color": 255}}, (0, 0, 255))):
            async with client.post("/workflows/drawing/run", json=body) as answer:
                assert answer.status == 200, await answer.text()
                made = Image.open(io.BytesIO(await answer.read()))
            assert (made.size, made.getpixel((5, 5))) == ((72, 40), colour)
        async with client.post("/workflows/drawing/run", data=form(image=picture())) as answer:
            assert (answer.status, "takes none" in await answer.text()) == (400, True)


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({}, 400, "send an image or a video"),
        ({"image": b"nonsense"}, 415, "not a picture"),
        ({"video": b"#EXTM3U\nfile:///etc/passwd\n"}, 415, "no MP4, MOV"),
        ({"image": picture(), "video": b"x"}, 400, "not both"),
        ({"image": picture(), "params": {"nonsense": 1}}, 400, "no parameter nonsense"),
        ({"image": picture(), "params": {"2.low_threshold": 9}}, 400, "low_threshold"),
        ({"image": picture(), "params": "{"}, 400, "params"),
        ({"image": picture(), "width": "8", "height": "64"}, 400, "at least 16"),
        ({"image": picture(), "width": "64"}, 400, "together"),
    ],
)
async def test_what_cannot_be_run_is_refused_with_words(
    server: PageServer, fields: dict[str, Any], status: int, words: str
) -> None:
    path = "/workflows/edges/run"
    async with client_of(server) as client, client.post(path, data=form(**fields)) as answer:
        told = await answer.json()
    assert (answer.status, words in told["message"]) == (status, True), told


async def test_limits_are_told_with_413_and_unknown_names_with_404(
    server: PageServer, tmp_path: Path
) -> None:
    async with client_of(server) as client:
        body = form(video=clip(tmp_path / "long.mp4", 100))
        async with client.post("/workflows/edges/run", data=body) as answer:
            assert (answer.status, "3 s are the limit" in await answer.text()) == (413, True)
        async with client.post("/workflows/nothing/run", data=form(image=picture())) as answer:
            assert answer.status == 404
        body = form(image=picture(7000, 5000))
        async with client.post("/workflows/edges/run", data=body) as answer:
            assert (answer.status, "pixels are the limit" in await answer.text()) == (413, True)


async def test_who_leaves_gives_up_the_run_and_a_full_queue_says_when_to_come_again(
    server: PageServer, folder: Path
) -> None:
    (folder / "slow.json").write_text(json.dumps(SLOW))
    large = picture(1024, 1024)
    async with client_of(server) as client:

        async def run() -> tuple[int, str | None, Any]:
            async with client.post("/workflows/slow/run", data=form(image=large)) as answer:
                return answer.status, answer.headers.get("Retry-After"), await answer.json()

        # One runs, one waits, and there is no room for the third.
        running = {asyncio.create_task(run()) for _ in range(3)}
        done, running = await asyncio.wait(running, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        status, retry_after, told = done.pop().result()
        assert (status, told["code"], int(retry_after or 0) >= 1) == (429, "queue_full", True)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        # The engine that was at work on it is gone, and the next run has another.
        async with asyncio.timeout(60):
            while True:
                async with client.post("/workflows/edges/run", data=form(image=picture())) as answer:
                    if answer.status == 200:
                        break
                    assert answer.status == 429
                await asyncio.sleep(0.2)


async def test_what_was_tuned_on_a_stream_is_saved_into_the_file_it_came_from(
    showing: PageServer, folder: Path
) -> None:
    workflow = library.load("edges")
    workflow["2"]["_meta"]["note"] = "left alone"
    (folder / "night sky.json").write_text(json.dumps(workflow))
    async with client_of(showing) as client:

        async def post(path: str, body: Any, **headers: str) -> tuple[int, Any]:
            async with client.post(path, json=body, headers=headers) as answer:
                return answer.status, await answer.json()

        # A stream takes a kept workflow by its name, as it takes a bundled one.
        demo = {"X-Stream-Id": "demo"}
        async with asyncio.timeout(30):
            while True:
                status, _ = await post("/stream/params", {"workflow": "night sky"}, **demo)
                if status != 503:
                    break
                await asyncio.sleep(0.2)
        assert status == 200
        async with client.get("/api/page?session=demo") as answer:
            assert (await answer.json())["session"]["chosen"] == "night sky"
        tuned = {"Edges.low_threshold": 0.15}
        assert (await post("/stream/params", tuned, **demo))[0] == 200
        status, saved = await post("/workflows/night sky/save", {"session": "demo"})
        assert (status, saved["changed"], saved["created"]) == (200, ["2.low_threshold"], False)
        workflow["2"]["inputs"]["low_threshold"] = 0.15
        assert json.loads((folder / "night sky.json").read_text()) == workflow
        # Under a new name too; not over another workflow, unless that is meant.
        (folder / "other.json").write_text(json.dumps(library.load("cartoon")))
        assert (await post("/workflows/copy/save", {"session": "demo"}))[0] == 201
        assert (await post("/workflows/other/save", {"session": "demo"}))[0] == 409
        assert (await post("/workflows/other/save", {"session": "demo", "replace": True}))[0] == 200
        assert json.loads((folder / "other.json").read_text()) == workflow


@pytest.mark.parametrize(
    ("accept", "video", "kind"),
    [
        (None, False, "image/png"),
        ("*/*", True, "video/mp4"),
        ("image/*", False, "image/png"),
        ("image/avif,image/webp,*/*;q=0.8", False, "image/webp"),
        ("image/jpeg;q=0.5, application/json", False, "application/json"),
        ("application/json;q=0, */*", True, "video/mp4"),
    ],
)
def test_the_first_of_the_largest_weight_is_given(accept: str | None, video: bool, kind: str) -> None:
    assert wanted_type(accept, video=video) == kind


@pytest.mark.parametrize("accept", ["text/html", "image/png;q=0", "video/mp4", ""])
def test_what_nobody_can_give_is_refused(accept: str) -> None:
    if not accept:
        assert wanted_type(accept, video=False) == "image/png"
        return
    with pytest.raises(InvalidInput, match="Accept names none"):
        wanted_type(accept, video=False)


LISTS = (b"#EXTM3U", b"ffconcat version 1.0\nfile /etc/passwd", b"<?xml")


@pytest.mark.parametrize("data", [b"", *LISTS, b"\x89PNG\r\n\x1a\n", b"RIFF"])
def test_formats_that_lead_to_other_files_are_not_opened(data: bytes) -> None:
    with pytest.raises(UnsupportedMedia):
        container_of(data)

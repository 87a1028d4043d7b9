"""A worker's batch routes over a stand-in engine, on the test's own loop and a real port."""

from __future__ import annotations

import asyncio
import io
import json
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from headrace.batch import setup
from headrace.batch.contract import Progress, Result
from headrace.batch.errors import Interrupted
from headrace.models.errors import ModelNotFound
from headrace.models.refs import ModelRef
from headrace.models.store import Located
from headrace.settings import Settings
from stream.access import OPEN_ROUTES, guard

PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
HERE = {"stabilityai/sd-turbo", "acme/painter", "acme/talker", "ByteDance/SDXL-Lightning", "acme/x_Lightning"}

INDEX = {"acme/painter": "StableDiffusionPipeline"}


def wav(seconds: float = 0.2) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(24000)
        file.writeframes(bytes(2 * int(24000 * seconds)))
    return out.getvalue()


class StandInStore:
    """Knows a few models and every one of the demo."""

    def find(self, ref):
        parsed = ModelRef.parse(ref)
        if parsed.kind != "demo" and parsed.name not in HERE | {"stabilityai/stable-diffusion-xl-base-1.0"}:
            raise ModelNotFound(
                f"model {ref} is not on this machine; headrace models pull {ref}", field="model_id"
            )
        return Located(parsed, Path("/nowhere"), "diffusers", "1", 1, "folder", index=INDEX.get(parsed.name))

    def list(self):
        return [self.find(name) for name in sorted(HERE)]


class StandInEngine:
    """Answers every pipeline after ``steps`` steps of ``pause`` seconds; a ``gate`` holds all of them."""

    def __init__(self, *, steps: int = 1, pause: float = 0.0) -> None:
        self.steps, self.pause = steps, pause
        self.gate = asyncio.Event()
        self.gate.set()
        self.calls: list[tuple[str, str, dict, dict]] = []
        self.running = self.most = self.finished = self.cancelled = 0
        self.dies = False
        self.warm: list[str] = []
        self.raises: Exception | None = None
        self.started = self.stopped = 0

    async def start(self):
        self.started += 1

    async def stop(self):
        self.stopped += 1

    async def wait_ready(self, timeout):
        pass

    async def models(self):
        return [
            {"key": {"ref": model, "revision": "1", "dtype": "float32", "device": "cpu", "kind": "x"},
             "state": "loaded", "progress": 1.0, "what": "", "bytes": 10, "parts": {}, "leases": 0,
             "pinned": False, "last_used": 0.0, "weights": "real", "load_seconds": 0.1}
            for model in dict.fromkeys([*self.warm, *(call[1] for call in self.calls)])
        ]  # fmt: skip

    async def run(self, pipeline, model, inputs, blobs=None, *, on_progress, on_piece, timeout=600.0):
        self.calls.append((pipeline, model, dict(inputs), dict(blobs or {})))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for step in range(self.steps):
                await asyncio.sleep(self.pause)
                await self.gate.wait()
                if on_progress is not None:
                    on_progress(Progress("running", step + 1, self.steps))
            if self.dies:
                raise Interrupted("the engine was killed by SIGKILL", retry_after=3)
            if self.raises is not None:
                raise self.raises
            self.finished += 1
            return answer(pipeline, inputs, on_piece)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


def answer(pipeline, inputs, on_piece):
    """What the pipelines answer with, in small."""
    body = {"weights": "real"}
    if pipeline in ("text-to-image", "image-to-image", "upscale"):
        count = inputs.get("num_images_per_prompt", 1)
        body["images"] = [
            {"blob": f"{k}.png", "seed": inputs["seed"] + k, "nsfw": False} for k in range(count)
        ]
        return Result(body, {f"{k}.png": PNG + bytes([k]) for k in range(count)})
    if pipeline == "image-to-video":
        media = {"seed": inputs["seed"], "nsfw": False}
        body["images"] = [{"blob": "0.mp4", **media}]
        if inputs["frames"]:
            body["frames"] = [{"blob": f"{k}.png", **media} for k in range(2)]
        return Result(body, {"0.mp4": b"mp4", "0.png": PNG, "1.png": PNG})
    if pipeline == "image-to-text":
        return Result({**body, "text": "a cat"})
    if pipeline == "audio-to-text":
        words = [(" Hello", 0.0, 0.5), (" world.", 0.5, 1.2)]
        whole = [(" Hello world.", 0.0, 1.2)]
        wanted = {"segment": whole, "word": words, "none": []}[inputs["timestamps"]]
        chunks = [{"timestamp": [begin, end], "text": text} for text, begin, end in wanted]
        return Result({**body, "text": " Hello world.", "chunks": chunks, "language": "en", "duration": 1.2})
    if pipeline == "text-to-speech":
        return Result({**body, "audio": {"blob": "audio.wav"}}, {"audio.wav": wav()})
    if pipeline == "segment-anything-2":
        return masks(body, inputs)
    texts = ["Hel", "lo", " there"][: inputs["max_tokens"]]
    for count, text in enumerate(texts, 1):
        if on_piece is not None:
            on_piece({"text": text, "completion_tokens": count, "prompt_tokens": 7})
    usage = {"prompt_tokens": 7, "completion_tokens": len(texts)}
    reason = "length" if inputs["max_tokens"] < 3 else "stop"
    return Result({**body, "text": "".join(texts), "finish_reason": reason, "usage": usage})


def masks(body, inputs):
    count = 3 if inputs["multimask_output"] else 1
    scores = [0.9, 0.5, 0.1][:count]
    if inputs["mask_format"] == "rle":
        return Result({**body, "scores": scores, "masks": [{"size": [2, 2], "counts": "04"}] * count})
    if inputs["mask_format"] == "png":
        names = [f"mask{k}.png" for k in range(count)]
        return Result(
            {**body, "scores": scores, "masks": [{"blob": n} for n in names]}, dict.fromkeys(names, PNG)
        )
    value = 1.5 if inputs["return_logits"] else True
    text = json.dumps([[[value, value]]] * count).encode()
    both = {"masks": {"blob": "masks.json"}, "logits": {"blob": "logits.json"}}
    return Result({**body, "scores": scores, **both}, {"masks.json": text, "logits.json": b"[[[0.5]]]"})


@asynccontextmanager
async def batch_server(
    engine: StandInEngine, *, token: str | None = None, **settings
) -> AsyncIterator[Served]:
    """The routes on a free port; everything is closed at the end."""
    front = setup.make_front(
        Settings(**{"demo_weights": True, **settings}), engine=engine, store=StandInStore()
    )
    app = web.Application(middlewares=[guard(token, OPEN_ROUTES)])
    setup.register(front, app)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5, lingering_time=0.2)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    connector = aiohttp.TCPConnector(limit=0)
    try:
        async with aiohttp.ClientSession(url, connector=connector) as client:
            yield Served(url, client, front, engine)
    finally:
        await front.stop()
        await runner.cleanup()


class Served:
    """A running server and a client of it."""

    def __init__(self, url, client, front, engine) -> None:
        self.url, self.client, self.front, self.engine = url, client, front, engine

    async def json(self, path, body, **headers):
        """Status, JSON and headers of the answer to a JSON body."""
        async with self.client.post(path, json=body, headers=headers, allow_redirects=False) as response:
            return response.status, await response.json(), response.headers

    async def form(self, path, fields, **headers):
        """The same for a multipart body; bytes go as files."""
        form = aiohttp.FormData()
        for name, value in fields.items():
            if isinstance(value, bytes):
                form.add_field(name, value, filename="blob")
            else:
                form.add_field(name, str(value))
        async with self.client.post(path, data=form, headers=headers, allow_redirects=False) as response:
            return response.status, await response.json(), response.headers


async def until(condition, timeout: float = 10.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.01)


def unlike(number):
    """A request for a picture that is made together with that of no other number."""
    return {"prompt": "x", "height": 64 + 8 * number}

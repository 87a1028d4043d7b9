"""The paths of OpenAI's interface, over the same endpoints."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aiohttp import web

from headrace.batch.answers import BodyWriter, answering, in_base64, outcome_headers
from headrace.batch.bodies import UploadAccount
from headrace.batch.discovery import Catalogue
from headrace.batch.endpoints import ENDPOINTS, Endpoint
from headrace.batch.fields import Request
from headrace.batch.front import Front, base_url
from headrace.batch.llm_routes import LlmAnswers
from headrace.batch.media_types import content_type_of
from headrace.batch.routes import add
from headrace.batch.schemas_answers import Images, Speech, Transcript
from headrace.batch.schemas_openai import ImageGeneration, SpeechRequest, Transcription
from headrace.batch.service import Outcome
from headrace.batch.sound_files import convert_wav
from headrace.batch.subtitles import segments_of, srt, verbose, vtt
from headrace.models.errors import ModelNotFound

IMAGES = Endpoint(
    "text-to-image",
    ImageGeneration,
    Images,
    own_names={"model_id": "model", "height": "size", "width": "size", "num_images_per_prompt": "n"},
)
TRANSCRIPTIONS = Endpoint(
    "audio-to-text", Transcription, Transcript, "file", own_names={"model_id": "model", "audio": "file"}
)
SPEECH = Endpoint(
    "text-to-speech",
    SpeechRequest,
    Speech,
    own_names={"model_id": "model", "text": "input", "description": "instructions"},
)


class OpenAiRoutes:
    """Handlers over a `Front`."""

    def __init__(self, front: Front, catalogue: Catalogue) -> None:
        self._front = front
        self._catalogue = catalogue
        self._llm = LlmAnswers(front)

    def register(self, app: web.Application) -> None:
        for path, handler in (
            ("/v1/chat/completions", self._llm.chat),
            ("/v1/completions", self._llm.completion),
            ("/v1/images/generations", self.images),
            ("/v1/audio/transcriptions", self.transcribe),
            ("/v1/audio/translations", self.translate),
            ("/v1/audio/speech", self.speak),
        ):
            add(app, "POST", [path, f"{path}/"], handler)
        app.router.add_get("/v1/models", answering(self.models))
        app.router.add_get("/v1/models/{id:.+}", answering(self.model))

    # -- pictures --------------------------------------------------------------------------------------

    async def images(self, request: web.Request) -> web.StreamResponse:
        async def run(wanted: Request, account: UploadAccount) -> web.StreamResponse:
            assert isinstance(wanted, ImageGeneration)
            outcome = await self._run(request, "text-to-image", wanted.native())
            body = await asyncio.to_thread(self._image_body, outcome, wanted, base_url(request))
            headers = outcome_headers(outcome)
            return web.Response(body=body, content_type="application/json", headers=headers)

        return await self._front.with_body(request, IMAGES, run)

    def _image_body(self, outcome: Outcome, wanted: ImageGeneration, base: str) -> bytes:
        found = []
        writer = BodyWriter(outcome.result, {})
        for image in outcome.result.body["images"]:
            name = image["blob"]
            data = outcome.result.blobs[name]
            if wanted.response_format == "url":
                found.append({"url": base + self._front.media.put(name, data)})
            else:
                found.append({"b64_json": writer.later(in_base64(data))})
        return writer.dump({"created": int(time.time()), "data": found, "weights": outcome.weights})

    # -- sound -----------------------------------------------------------------------------------------

    async def transcribe(self, request: web.Request) -> web.StreamResponse:
        return await self._transcribe(request, "transcribe")

    async def translate(self, request: web.Request) -> web.StreamResponse:
        return await self._transcribe(request, "translate")

    async def _transcribe(self, request: web.Request, task: str) -> web.StreamResponse:
        async def run(wanted: Request, account: UploadAccount) -> web.StreamResponse:
            assert isinstance(wanted, Transcription)
            outcome = await self._run(request, "audio-to-text", {**wanted.native(), "task": task})
            return _transcript(outcome, wanted, task)

        return await self._front.with_body(request, TRANSCRIPTIONS, run)

    async def speak(self, request: web.Request) -> web.StreamResponse:
        async def run(wanted: Request, account: UploadAccount) -> web.StreamResponse:
            assert isinstance(wanted, SpeechRequest)
            outcome = await self._run(request, "text-to-speech", wanted.native())
            result = outcome.result
            sound = result.blobs[result.body["audio"]["blob"]]
            body = await asyncio.to_thread(convert_wav, sound, wanted.response_format)
            kind = content_type_of(f"speech.{wanted.response_format}")
            return web.Response(body=body, content_type=kind, headers=outcome_headers(outcome))

        return await self._front.with_body(request, SPEECH, run)

    # -- models ----------------------------------------------------------------------------------------

    async def models(self, request: web.Request) -> web.StreamResponse:
        found = [_model(name) for name in await self._catalogue.names()]
        return web.json_response({"object": "list", "data": found})

    async def model(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["id"]
        if name not in await self._catalogue.names():
            raise ModelNotFound(f"model {name[:200]!r} is not on this machine", field="model")
        return web.json_response(_model(name))

    async def _run(self, request: web.Request, pipeline: str, fields: dict[str, Any]) -> Outcome:
        """The outcome of a native endpoint, whose bounds hold here too."""
        endpoint = ENDPOINTS[pipeline]
        return await self._front.run(request, self._front.work(request, endpoint, endpoint.parse(fields)))


def _transcript(outcome: Outcome, wanted: Transcription, task: str) -> web.Response:
    body, headers = outcome.result.body, outcome_headers(outcome)
    if wanted.response_format == "text":
        return web.Response(text=body["text"].strip() + "\n", headers=headers)
    if wanted.response_format == "srt":
        return web.Response(text=srt(segments_of(body)), content_type="application/x-subrip", headers=headers)
    if wanted.response_format == "vtt":
        return web.Response(text=vtt(segments_of(body)), content_type="text/vtt", headers=headers)
    if wanted.response_format == "verbose_json":
        wishes = wanted.timestamp_granularities or ["segment"]
        told = verbose(body, words="word" in wishes, segments="segment" in wishes, task=task)
        return web.json_response(told, headers=headers)
    return web.json_response({"text": body["text"].strip()}, headers=headers)


def _model(name: str) -> dict[str, Any]:
    owner = "headrace" if name.startswith("demo:") or "/" not in name else name.partition("/")[0]
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}

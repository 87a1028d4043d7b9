"""The OpenAPI 3.1 document of the worker, made from the models that check the requests."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from aiohttp import web
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from headrace.batch import schemas_answers as answers
from headrace.batch.answers import answering
from headrace.batch.endpoints import ENDPOINTS
from headrace.batch.openapi_live import LIVE
from headrace.batch.schemas_openai import (
    ChatCompletion,
    ImageGeneration,
    SpeechRequest,
    TextCompletion,
    Transcription,
)
from headrace.batch.schemas_run import RunAnswer, WorkflowRun
from headrace.version import package_version

REF = "#/components/schemas/{model}"
JSON, FORM, EVENTS = "application/json", "multipart/form-data", "text/event-stream"
OPENAI: tuple[tuple[str, type[BaseModel], str, str], ...] = (
    ("/v1/chat/completions", ChatCompletion, JSON, "A conversation, continued (OpenAI)."),
    ("/v1/completions", TextCompletion, JSON, "A text, continued (OpenAI)."),
    ("/v1/images/generations", ImageGeneration, JSON, "Pictures from a text (OpenAI)."),
    ("/v1/audio/transcriptions", Transcription, FORM, "What is said in a recording (OpenAI)."),
    ("/v1/audio/translations", Transcription, FORM, "The same, in English (OpenAI)."),
    ("/v1/audio/speech", SpeechRequest, JSON, "A text, spoken (OpenAI)."),
)
JOBS_OF_OPENAI = ("/v1/chat/completions", "/v1/completions")
"""Those that take `Prefer: respond-async`."""
TOLD = (answers.Accepted, answers.Error, answers.ValidationError, answers.Event, RunAnswer)
ERRORS = {
    "400": "A value outside its bounds; the message names field, limit and value.",
    "401": "The bearer token is missing or wrong.",
    "404": "The model is not on this machine; the message says what brings it.",
    "413": "A file or body over its limit.",
    "415": "A picture or sound that cannot be read.",
    "429": "The queue is full; `Retry-After` says when there is likely room.",
    "500": "A fault of the worker or of a model.",
    "503": "The engine is not there, or died under the request; it may be sent again.",
    "504": "The request took longer than it may.",
}
HEADERS = {
    "x-headrace-model": "The model that answered.",
    "x-headrace-weights": "`real`, `random` or `substitute:NAME`.",
    "x-headrace-adjusted": "Values that were clamped to what the model can use, as `field=asked->used`.",
    "Server-Timing": "Milliseconds in the queue and in the engine.",
}

RUN_MEDIA = ("image/png", "image/jpeg", "image/webp", "video/mp4")
RUN_HEADERS = {
    "X-Headrace-Frames": "Frames that were worked on.",
    "X-Headrace-Pictures": "Pictures that the workflow made; the first is the answer.",
}


def document() -> dict[str, Any]:
    """The document as JSON data."""
    schemas, references = _schemas()
    paths: dict[str, Any] = {}
    for endpoint in ENDPOINTS.values():
        kind = JSON if endpoint.file is None else FORM
        body = references[endpoint.takes, "validation"]
        answer = {JSON: references[endpoint.answers, "serialization"]}
        if endpoint.pipeline == "llm":
            answer[EVENTS] = {"type": "string"}
        operation = _operation(_summary(endpoint.takes), kind, body, answer, "batch")
        _offer_job(operation, references)
        paths[endpoint.path] = {"post": operation}
    for path, model, kind, summary in OPENAI:
        body = references[model, "validation"]
        operation = _operation(summary, kind, body, {JSON: {"type": "object"}}, "openai")
        if path in JOBS_OF_OPENAI:
            _offer_job(operation, references)
        paths[path] = {"post": operation}
    paths |= dict(_jobs(references))
    paths["/workflows/{id}/run"] = _run(references)
    paths |= LIVE
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Headrace",
            "version": package_version(),
            "summary": "A real-time AI video worker.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"bearer": []}, {}],
    }


class OpenApiRoutes:
    """``GET /openapi.json``."""

    def __init__(self) -> None:
        self._text: str | None = None

    def register(self, app: web.Application) -> None:
        for slash in ("", "/"):
            app.router.add_get(f"/openapi.json{slash}", answering(self.answer))

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if self._text is None:
            self._text = json.dumps(document())
        return web.json_response(text=self._text)


def _offer_job(operation: dict[str, Any], references: References) -> None:
    operation["parameters"] = [_header("Prefer", "respond-async: answer 202 at once, the result later.")]
    operation["responses"]["202"] = _response("Taken; `Location` has the job.", references, answers.Accepted)


# -- parts ---------------------------------------------------------------------------------------------

References = Mapping[Any, dict[str, Any]]


def _schemas() -> tuple[dict[str, Any], References]:
    taken = [endpoint.takes for endpoint in ENDPOINTS.values()] + [model for _, model, _, _ in OPENAI]
    taken.append(WorkflowRun)
    given = [endpoint.answers for endpoint in ENDPOINTS.values()] + list(TOLD)
    wanted: list[tuple[type[BaseModel], JsonSchemaMode]] = [
        *((model, "validation") for model in dict.fromkeys(taken)),
        *((model, "serialization") for model in dict.fromkeys(given)),
    ]
    references, definitions = models_json_schema(wanted, ref_template=REF)
    # `$defs` with `title`s on every field; the names say as much.
    return _untitled(definitions["$defs"]), references


def _untitled(value: Any, *, names: bool = False) -> Any:
    """Without pydantic's titles; ``names``: the keys of ``value`` are names of ours."""
    if isinstance(value, list):
        return [_untitled(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _untitled(item, names=key in ("properties", "$defs"))
        for key, item in value.items()
        if names or key != "title" or not isinstance(item, str)
    }


def _operation(
    summary: str, kind: str, body: dict[str, Any], answer: dict[str, dict[str, Any]], tag: str
) -> dict[str, Any]:
    content = {media: {"schema": schema} for media, schema in answer.items()}
    headers = {name: {"description": text, "schema": {"type": "string"}} for name, text in HEADERS.items()}
    error = {JSON: {"schema": {"$ref": REF.format(model="Error")}}}
    invalid = {JSON: {"schema": {"$ref": REF.format(model="ValidationError")}}}
    responses = {code: {"description": text, "content": error} for code, text in ERRORS.items()}
    wrong = "Fields are missing or have the wrong type."
    return {
        "summary": summary,
        "tags": [tag],
        "requestBody": {"required": True, "content": {kind: {"schema": body}}},
        "responses": {
            "200": {"description": "The answer.", "headers": headers, "content": content},
            "422": {"description": wrong, "content": invalid},
            **responses,
        },
    }


def _run(references: References) -> dict[str, Any]:
    """A workflow as a request: what comes out has the type that Accept says."""
    body = references[WorkflowRun, "validation"]
    answer = {JSON: references[RunAnswer, "serialization"]}
    operation = _operation(_summary(WorkflowRun), FORM, body, answer, "workflows")
    operation["requestBody"]["required"] = False
    operation["requestBody"]["content"][JSON] = {"schema": body}
    binary = {"schema": {"type": "string", "format": "binary"}}
    done = operation["responses"]["200"]
    done["content"] = {**dict.fromkeys(RUN_MEDIA, binary), **done["content"]}
    done["headers"] = {
        name: {"description": text, "schema": {"type": "integer"}} for name, text in RUN_HEADERS.items()
    }
    operation["responses"]["404"]["description"] = "There is no workflow of that name."
    return {
        "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}],
        "post": operation,
    }


def _jobs(references: References) -> Iterator[tuple[str, Any]]:
    number = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    state = _response("The job, with `result` once it is complete.", references, answers.Event)
    gone = _response("There is no such job, or no longer.", references, answers.Error)
    found = {"200": state, "404": gone}
    yield (
        "/jobs/{id}",
        {
            "parameters": [number],
            "get": {"summary": "How far a job is, and its answer.", "tags": ["jobs"], "responses": found},
            "delete": {"summary": "Cancel a job.", "tags": ["jobs"], "responses": found},
        },
    )
    events = {"description": "progress, then complete, error or cancelled", "content": {EVENTS: {}}}
    told = {"200": events, "404": gone}
    yield (
        "/jobs/{id}/events",
        {
            "parameters": [number],
            "get": {
                "summary": "A job's progress as server-sent events.",
                "tags": ["jobs"],
                "responses": told,
            },
        },
    )


def _response(text: str, references: References, model: type[BaseModel]) -> dict[str, Any]:
    return {"description": text, "content": {JSON: {"schema": references[model, "serialization"]}}}


def _header(name: str, text: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": text,
        "schema": {"type": "string"},
    }


def _summary(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().partition("\n")[0]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(document(), indent=1) + "\n")

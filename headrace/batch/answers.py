"""How batch requests are answered: media, headers, and errors that every kind of client can read."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

from aiohttp import web

from headrace.batch.contract import Result
from headrace.batch.errors import ValidationFailed
from headrace.batch.media_store import MediaStore
from headrace.batch.media_types import content_type_of
from headrace.batch.service import Outcome
from stream.answers import openai_error
from stream.errors import HeadraceError

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Delivery = Literal["data_url", "url"]

IN_THREAD = 1 << 18
"""Bytes from which on an answer is put together in a thread."""
DIGITS = 6
PIECE = 3 << 18
"""Bytes that are encoded at once; a multiple of 3, so that base64 has no padding between pieces."""

# -- errors --------------------------------------------------------------------------------------------


def error_body(error: HeadraceError) -> dict[str, Any]:
    """The error in ai-runner's form (``detail``) and in OpenAI's (``error``)."""
    told = openai_error(error)
    if isinstance(error, ValidationFailed):
        return {"detail": error.details, "error": told}
    return {"detail": {"msg": error.message}, "error": told}


def error_headers(error: HeadraceError) -> dict[str, str]:
    seconds = getattr(error, "retry_after", None)
    headers = {} if seconds is None else {"Retry-After": str(seconds)}
    if error.status == 503:
        headers.setdefault("Retry-After", "5")
    return headers


def error_response(error: HeadraceError) -> web.Response:
    return web.json_response(error_body(error), status=error.status, headers=error_headers(error))


def answering(handler: Handler) -> Handler:
    """``handler`` with errors answered in both forms, none of them as text."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except HeadraceError as error:
            return error_response(error)
        except (web.HTTPException, ConnectionError):
            raise
        except Exception:  # a fault of ours must not close the connection without a word
            log.exception("%s %s failed", request.method, request.path)
            return error_response(HeadraceError("the request failed by a fault of the worker"))

    return answer


# -- answers -------------------------------------------------------------------------------------------


def outcome_headers(outcome: Outcome) -> dict[str, str]:
    """What an answer tells besides: the model and its weights, clamped values, times."""
    headers = {
        "x-headrace-model": _header(outcome.model),
        "x-headrace-weights": _header(outcome.weights),
        "Server-Timing": f"queue;dur={outcome.waited * 1000:.1f}, run;dur={outcome.ran * 1000:.1f}",
    }
    if outcome.adjusted:
        told = (f"{item.field}={item.asked:g}->{item.used:g}" for item in outcome.adjusted)
        headers["x-headrace-adjusted"] = ", ".join(told)
    return headers


async def outcome_body(
    outcome: Outcome, delivery: Delivery, media: MediaStore, base: str, kept: dict[str, str] | None = None
) -> bytes:
    """The answer's JSON, with files as data URLs or as URLs below ``base``.

    ``kept``: paths of the files, for answers that are given more than once; those that are not in it, or no
    longer there, are kept and put in.
    """
    size = sum(map(len, outcome.result.blobs.values()))
    urls: dict[str, str] = {}
    if delivery == "url":
        urls = await asyncio.to_thread(_keep, outcome.result, media, base, {} if kept is None else kept)
    if size < IN_THREAD or urls:
        return encode_outcome(outcome, urls)
    return await asyncio.to_thread(encode_outcome, outcome, urls)


def encode_outcome(outcome: Outcome, urls: Mapping[str, str]) -> bytes:
    """The answer in ai-runner's form as JSON in UTF-8."""
    result = outcome.result
    body = {**result.body, "weights": outcome.weights}
    if outcome.adjusted:
        body["adjusted"] = [item.as_dict() for item in outcome.adjusted]
    if outcome.pipeline == "image-to-video" and "frames" in body:
        # ai-runner: a list of videos, each a list of pictures.
        body["frames"] = [body["frames"]]
    if outcome.pipeline == "audio-to-text":
        body.setdefault("chunks", [])
    writer = BodyWriter(result, urls)
    if outcome.pipeline == "segment-anything-2":
        for key in ("masks", "scores", "logits"):
            body[key] = writer.in_string(body.get(key, []))
    return writer.dump(body)


class BodyWriter:
    """Writes bodies that refer to files. Long texts that no JSON string would escape (base64, and JSON of
    numbers) are put in last, as they are, so that no single call keeps the loop's thread waiting for long."""

    def __init__(self, result: Result, urls: Mapping[str, str]) -> None:
        self._blobs = result.blobs
        self._urls = urls
        self._mark = secrets.token_hex(16)
        self._texts: list[Iterable[bytes]] = []

    def dump(self, body: Any) -> bytes:
        """``body`` as JSON with every ``{"blob": name}`` as the file's URL."""
        first, *rest = _dump(self._with_urls(body)).split(self._mark.encode())
        parts = [first]
        for text in rest:
            parts += [*self._texts[int(text[:DIGITS])], text[DIGITS:]]
        return b"".join(parts)

    def in_string(self, value: Any) -> str:
        """``value`` as the JSON that a string holds; a file of JSON as what is in it."""
        if isinstance(value, dict):
            return self.later([self._blobs[value["blob"]]])
        items = self._with_urls(value)
        return _dump([item.get("url", item) if isinstance(item, dict) else item for item in items]).decode()

    def _with_urls(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._with_urls(item) for item in value]
        if not isinstance(value, dict):
            return value
        rest = {key: self._with_urls(item) for key, item in value.items() if key != "blob"}
        return {"url": self._url(value["blob"]), **rest} if "blob" in value else rest

    def _url(self, name: str) -> str:
        return self._urls.get(name) or self.later(data_url(name, self._blobs[name]))

    def later(self, text: Iterable[bytes]) -> str:
        """What stands for ``text`` in a string of the body until `dump`."""
        self._texts.append(text)
        return f"{self._mark}{len(self._texts) - 1:0{DIGITS}}"


def data_url(name: str, data: bytes) -> Iterator[bytes]:
    """RFC 2397, in base64 without line breaks, in pieces."""
    yield f"data:{content_type_of(name)};base64,".encode()
    yield from in_base64(data)


def in_base64(data: bytes) -> Iterator[bytes]:
    for begin in range(0, len(data), PIECE):
        yield base64.b64encode(data[begin : begin + PIECE])


def _keep(result: Result, media: MediaStore, base: str, kept: dict[str, str]) -> dict[str, str]:
    for name, data in result.blobs.items():
        if not name.endswith(".json") and not (name in kept and media.has(kept[name])):
            kept[name] = media.put(name, data)
    return {name: base + path for name, path in kept.items()}


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _header(text: str) -> str:
    """As a header may have it: printable ASCII."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)

"""How batch requests are answered: media, headers, and errors that every kind of client can read."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
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
    outcome: Outcome, delivery: Delivery, media: MediaStore, base: str, told: Mapping[str, Any] | None = None
) -> bytes:
    """The answer's JSON, with files as data URLs or as URLs below ``base``; ``told`` comes on top."""
    size = sum(map(len, outcome.result.blobs.values()))
    urls: dict[str, str] = {}
    if delivery == "url":
        urls = await asyncio.to_thread(_keep, outcome.result, media, base)
    if size < IN_THREAD or urls:
        return encode_outcome(outcome, urls, told)
    return await asyncio.to_thread(encode_outcome, outcome, urls, told)


def encode_outcome(outcome: Outcome, urls: Mapping[str, str], told: Mapping[str, Any] | None = None) -> bytes:
    """The answer in ai-runner's form as JSON in UTF-8."""
    result = outcome.result
    body = {**result.body, **(told or {})}
    body["weights"] = outcome.weights
    if outcome.adjusted:
        body["adjusted"] = [item.as_dict() for item in outcome.adjusted]
    if outcome.pipeline == "segment-anything-2":
        return _encode_masks(body, result, urls)
    if outcome.pipeline == "image-to-video" and "frames" in body:
        # ai-runner: a list of videos, each a list of pictures.
        body["frames"] = [body["frames"]]
    if outcome.pipeline == "audio-to-text":
        body.setdefault("chunks", [])
    return _dump(_with_urls(body, result, urls))


def _with_urls(value: Any, result: Result, urls: Mapping[str, str]) -> Any:
    """``value`` with every ``{"blob": name}`` as the file's URL."""
    if isinstance(value, list):
        return [_with_urls(item, result, urls) for item in value]
    if not isinstance(value, dict):
        return value
    rest = {key: _with_urls(item, result, urls) for key, item in value.items() if key != "blob"}
    if "blob" in value:
        name = value["blob"]
        return {"url": urls.get(name) or data_url(name, result.blobs[name]), **rest}
    return rest


def _encode_masks(body: dict[str, Any], result: Result, urls: Mapping[str, str]) -> bytes:
    """Masks, scores and logits are strings of JSON. The long ones came as such and are not read again."""
    parts = {}
    for key in ("masks", "scores", "logits"):
        value = body.pop(key, [])
        if isinstance(value, dict) and not value.get("blob", "").endswith(".png"):
            # Digits, brackets and words: nothing in it that a JSON string would escape.
            parts[key] = b'"' + result.blobs[value["blob"]] + b'"'
        else:
            items = _with_urls(value, result, urls)
            plain = [item.get("url", item) if isinstance(item, dict) else item for item in items]
            parts[key] = _dump(_dump(plain).decode())
    rest = _dump(body)
    return b"{" + b"".join(b'"%b":%b,' % (k.encode(), v) for k, v in parts.items()) + rest[1:]


def data_url(name: str, data: bytes) -> str:
    """RFC 2397, in base64 without line breaks."""
    return f"data:{content_type_of(name)};base64,{base64.b64encode(data).decode()}"


def _keep(result: Result, media: MediaStore, base: str) -> dict[str, str]:
    wanted = (name for name in result.blobs if not name.endswith(".json"))
    return {name: base + media.put(name, result.blobs[name]) for name in wanted}


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _header(text: str) -> str:
    """As a header may have it: printable ASCII."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)

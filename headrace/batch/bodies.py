"""Reads the bodies of batch requests: JSON (RFC 8259) and multipart/form-data (RFC 7578), with bounds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from typing import Any, TypeVar

from aiohttp import BodyPartReader, MultipartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from headrace.batch.errors import QueueFull, ValidationFailed
from headrace.batch.fields import MAX_UPLOAD
from stream.errors import InvalidInput, TooLarge

MAX_JSON = 10 << 20
"""Bytes of a JSON body."""
MAX_TEXT = 4 << 20
"""Bytes of one text part; a rough mask for SAM 2 needs over one MiB."""
MAX_TEXTS = 8 << 20
"""Bytes of all text parts of a body together."""
MAX_PARTS = 64
CHUNK = 1 << 16
STALL = 30.0
"""Seconds in which more of a body must come."""
BODY_TIME = 600.0
"""Seconds in which all of it must come."""

Fields = dict[str, Any]
T = TypeVar("T")


class UploadBudget:
    """Bytes of uploads that requests hold in memory together, from the first byte read to the answer."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    def open(self) -> UploadAccount:
        """An account for one request, to be closed at its end."""
        return UploadAccount(self)


class UploadAccount:
    """What one request holds of an `UploadBudget`."""

    def __init__(self, budget: UploadBudget, held: int = 0) -> None:
        self._budget = budget
        self.held = held

    def take(self, count: int) -> None:
        """Raises `QueueFull` when other requests' uploads leave no room."""
        budget = self._budget
        if budget.held + count > budget.limit:
            text = f"uploads of other requests take {budget.held} of {budget.limit} bytes; try again"
            raise QueueFull(text, retry_after=5)
        budget.held += count
        self.held += count

    def hand_over(self) -> UploadAccount:
        """A new account that holds what this one held."""
        held, self.held = self.held, 0
        return UploadAccount(self._budget, held)

    def close(self) -> None:
        """Give back what is held; safe to call twice."""
        self._budget.held -= self.held
        self.held = 0


async def read_body(request: web.Request, account: UploadAccount, files: frozenset[str]) -> Fields:
    """The fields of a body by name: JSON values, or the text of multipart parts, and the bytes of ``files``.

    Names that end in ``[]`` have lists. Raises `ValidationFailed` for another type of body, `TooLarge` over
    a limit, `InvalidInput` for what cannot be read or does not come in time.
    """
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise InvalidInput("bodies are taken as they are, in no encoding", field="Content-Encoding")
    kind = request.content_type if "Content-Type" in request.headers else "application/json"
    try:
        async with asyncio.timeout(BODY_TIME):
            if kind == "application/json" or kind.endswith("+json"):
                return await _read_json(request, account)
            if kind == "multipart/form-data":
                return await _read_parts(await request.multipart(), account, files)
    except TimeoutError:
        raise InvalidInput(f"the body did not come within {BODY_TIME:g} s", field="body") from None
    except (web.RequestPayloadError, HttpProcessingError, ValueError) as error:
        raise InvalidInput(f"the body cannot be read: {str(error)[:200]}", field="body") from None
    text = f"the body has the type {kind[:100]!r}; application/json or multipart/form-data is taken"
    detail = {"type": "content_type", "loc": ["body"], "msg": text, "input": kind[:100]}
    raise ValidationFailed(text, [detail], field="Content-Type")


# -- JSON ----------------------------------------------------------------------------------------------


async def _read_json(request: web.Request, account: UploadAccount) -> Fields:
    if request.content_length is not None and request.content_length > MAX_JSON:
        raise TooLarge(
            f"the body has {request.content_length} bytes; at most {MAX_JSON} are taken", field="body"
        )
    body = bytearray()
    while chunk := await _in_time(request.content.readany()):
        account.take(len(chunk))
        body += chunk
        if len(body) > MAX_JSON:
            raise TooLarge(f"the body has over {MAX_JSON} bytes", field="body")
    try:
        value = json.loads(bytes(body), parse_constant=_no_constant)
    except RecursionError:
        raise InvalidInput("the body is nested too deeply", field="body") from None
    except ValueError as error:
        text = f"the body is not JSON: {str(error)[:200]}"
        detail = {"type": "json_invalid", "loc": ["body", getattr(error, "pos", 0)], "msg": text, "input": {}}
        raise ValidationFailed(text, [detail], field="body") from None
    if not isinstance(value, dict):
        text = f"the body is a JSON {type(value).__name__}; it must be an object"
        detail = {"type": "dict_type", "loc": ["body"], "msg": text, "input": ""}
        raise ValidationFailed(text, [detail], field="body")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


# -- multipart -----------------------------------------------------------------------------------------


async def _read_parts(parts: MultipartReader, account: UploadAccount, files: frozenset[str]) -> Fields:
    fields: Fields = {}
    room = MAX_TEXTS
    count = 0
    while (part := await _in_time(parts.next())) is not None:
        count += 1
        if count > MAX_PARTS:
            raise TooLarge(f"the body has over {MAX_PARTS} parts", field="body")
        if not isinstance(part, BodyPartReader) or not part.name:
            raise InvalidInput("a part of the body has no name, or parts of its own", field="body")
        if part.name in files and (part.filename is not None or "Content-Type" in part.headers):
            fields[part.name] = await _read_part(part, account, MAX_UPLOAD, "File size exceeds limit: ")
            continue
        data = await _read_part(part, account, min(MAX_TEXT, room), "")
        room -= len(data)
        _put(fields, part.name, _text(part.name, data))
    return fields


async def _read_part(part: BodyPartReader, account: UploadAccount, limit: int, begin: str) -> bytes:
    data = bytearray()
    while not part.at_eof():
        chunk = await _in_time(part.read_chunk(CHUNK))
        if len(data) + len(chunk) > limit:
            raise TooLarge(f"{begin}{part.name} has over {limit} bytes.", field=part.name)
        account.take(len(chunk))
        data += chunk
    return bytes(data)


def _put(fields: Fields, name: str, text: str) -> None:
    if name.endswith("[]"):
        fields.setdefault(name, []).append(text)
    else:
        fields[name] = text


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        text = f"{name[:100]} is not text in UTF-8: {error.reason}"
        detail = {
            "type": "string_unicode",
            "loc": ["body", name[:100]],
            "msg": text,
            "input": f"{len(data)} bytes",
        }
        raise ValidationFailed(text, [detail], field=name[:100]) from None


async def _in_time(reading: Awaitable[T]) -> T:
    """What ``reading`` gives; `InvalidInput` when nothing comes."""
    try:
        async with asyncio.timeout(STALL):
            return await reading
    except TimeoutError:
        raise InvalidInput(f"nothing more of the body came within {STALL:g} s", field="body") from None

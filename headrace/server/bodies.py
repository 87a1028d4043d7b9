"""Bodies of requests as bytes, with a bound on their size and on the time in which they come."""

from __future__ import annotations

import asyncio

from aiohttp import web

from stream.errors import InvalidInput, TooLarge

BODY_TIME = 120.0
"""Seconds in which all of a body must come."""


async def read_bytes(request: web.Request, limit: int) -> bytes:
    """The body, which has at most ``limit`` bytes. Raises `InvalidInput` for none or one that does not come
    in time, `TooLarge`."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise InvalidInput("bodies are taken as they are, in no encoding", field="Content-Encoding")
    if request.content_length is not None and request.content_length > limit:
        raise TooLarge(
            f"the body has {request.content_length} bytes; at most {limit} are taken", field="body"
        )
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIME):
            while chunk := await request.content.readany():
                body += chunk
                if len(body) > limit:
                    raise TooLarge(f"the body has over {limit} bytes", field="body")
    except TimeoutError:
        raise InvalidInput(f"the body did not come within {BODY_TIME:g} s", field="body") from None
    except web.RequestPayloadError as error:
        raise InvalidInput(f"the body cannot be read: {error}", field="body") from None
    if not body:
        raise InvalidInput("the body is empty", field="body")
    return bytes(body)

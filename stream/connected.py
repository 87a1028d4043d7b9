"""Work for a client that may leave."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from aiohttp import web

from stream.errors import ClientLeft

T = TypeVar("T")

WATCH = 0.25
"""Seconds between two looks at the connection."""
GIVING_UP = 5.0
"""Seconds in which work that is cancelled must end."""


def is_gone(request: web.Request) -> bool:
    """Whether the connection that ``request`` came by is closed."""
    return request.transport is None or request.transport.is_closing()


async def while_connected(request: web.Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``; it is cancelled when the client closes its connection.

    Raises `ClientLeft` then, else what ``work`` raises.
    """
    # The server tells a handler of a closed connection for all routes or for none, hence the watching.
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=WATCH))[0]:
            if is_gone(request):
                raise ClientLeft("the client has closed its connection")
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=GIVING_UP)

"""Frames of several sessions in one call of the networks.

A frame never waits for others to come: whatever has arrived when the networks are free goes together, the
oldest first, up to `MAX_ROWS`. So alone a stream is as fast as it can be, and many share what a call costs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

import torch

from headrace.diffusion.frame import run
from headrace.diffusion.networks import Networks
from headrace.diffusion.stream import Stream

MAX_ROWS = 16
"""Rows of one call; a stream has one to eight. More wait for the next, whose first they are."""


@dataclass(slots=True)
class _Waiting:
    stream: Stream
    picture: torch.Tensor
    result: asyncio.Future[torch.Tensor]


def _kind(one: _Waiting) -> tuple[object, ...]:
    """What frames that go together have in common."""
    return one.picture.shape, one.stream.nets


class SharedCalls:
    """The calls of one set of networks. For the loop on which frames are worked on, and nobody else."""

    def __init__(self, networks: Networks) -> None:
        self.networks = networks
        self._waiting: deque[_Waiting] = deque()
        self._scheduled = False

    async def run(self, stream: Stream, picture: torch.Tensor) -> torch.Tensor:
        """As `headrace.diffusion.frame.run` for one stream. A stream has one frame at a time here.

        What the call raises is raised for every stream that was in it; each begins anew with its next frame.
        """
        loop = asyncio.get_running_loop()
        one = _Waiting(stream, picture, loop.create_future())
        self._waiting.append(one)
        self._schedule(loop)
        return await one.result

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._scheduled:
            self._scheduled = True
            # After every session whose frame is there already has said so.
            loop.call_soon(self._serve, loop)

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduled = False
        together = self._next()
        if not together:
            return
        try:
            results = run(self.networks, [one.stream for one in together], [one.picture for one in together])
        except Exception as error:  # noqa: BLE001 (the edge of a call: given to all who were in it)
            for one in together:
                one.stream.reset()
                if not one.result.done():
                    one.result.set_exception(error)
        else:
            for one, result in zip(together, results, strict=True):
                if not one.result.done():
                    one.result.set_result(result)
        if self._waiting:
            self._schedule(loop)

    def _next(self) -> list[_Waiting]:
        """Those that go together: the oldest, and the next ones of its size while there is room."""
        chosen: list[_Waiting] = []
        others: list[_Waiting] = []
        rows = 0
        while self._waiting:
            one = self._waiting.popleft()
            if one.result.done():  # its session has given up
                continue
            fits = rows + one.stream.row_count <= MAX_ROWS or not chosen
            alike = not chosen or _kind(one) == _kind(chosen[0])
            if not alike or not fits:
                others.append(one)
                continue
            chosen.append(one)
            rows += one.stream.row_count
        self._waiting.extend(others)
        return chosen

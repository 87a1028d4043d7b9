"""Frames of several sessions in one call of the networks.

Whatever has arrived when the networks are free goes together, the oldest first, up to `MAX_ROWS`. While the
networks have more to do than not, a call waits a moment for the streams that were in the one before, whose
next frames are on their way: else one of them would always go ahead alone and the others together. So alone a
stream is as fast as it can be, and many share what a call costs.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

import torch

from headrace.diffusion.frame import run
from headrace.diffusion.networks import Networks
from headrace.diffusion.stream import Stream

MAX_ROWS = 16
"""Rows of one call; a stream has one to eight. More wait for the next, whose first they are."""


class Gathering:
    """How long a call waits for streams that are not there yet. Pure; times in seconds."""

    SHARE = 0.25
    """Of what the last call took."""
    LONGEST = 0.003

    def __init__(self) -> None:
        self._latest: frozenset[int] = frozenset()
        self._expected: frozenset[int] = frozenset()
        self._took = self._ended = 0.0

    def called(self, streams: Collection[int], began: float, ended: float) -> None:
        """A call of ``streams`` is over. Those of the call before it are expected too, if it followed soon:
        they go by turns, and need not."""
        present = frozenset(streams)
        self._expected = present | self._latest if self._busy(began) else present
        self._latest = present
        self._took, self._ended = ended - began, ended

    def wait(self, here: Collection[int], since: float, now: float) -> float:
        """Seconds until the call of those ``here``, the first of which has waited since then."""
        if not self._busy(since) or self._expected <= frozenset(here):
            return 0.0
        return max(0.0, since + min(self.LONGEST, self.SHARE * self._took) - now)

    def _busy(self, now: float) -> bool:
        return now - self._ended < self._took


@dataclass(slots=True)
class _Waiting:
    stream: Stream
    picture: torch.Tensor
    result: asyncio.Future[torch.Tensor]
    since: float


def _kind(one: _Waiting) -> tuple[object, ...]:
    """What frames that go together have in common."""
    return one.picture.shape, one.stream.nets


class SharedCalls:
    """The calls of one set of networks. For the loop on which frames are worked on, and nobody else."""

    def __init__(self, networks: Networks) -> None:
        self.networks = networks
        self._waiting: deque[_Waiting] = deque()
        self._gathering = Gathering()
        self._scheduled: asyncio.Handle | None = None
        self._later: asyncio.TimerHandle | None = None

    async def run(self, stream: Stream, picture: torch.Tensor) -> torch.Tensor:
        """As `headrace.diffusion.frame.run` for one stream. A stream has one frame at a time here.

        What the call raises is raised for every stream that was in it; each begins anew with its next frame.
        """
        loop = asyncio.get_running_loop()
        one = _Waiting(stream, picture, loop.create_future(), time.monotonic())
        self._waiting.append(one)
        self._schedule(loop)
        return await one.result

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._scheduled is None:
            # After every session whose frame is there already has said so.
            self._scheduled = loop.call_soon(self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Call now, or see again when more may be there; whoever comes meanwhile looks too."""
        self._scheduled = None
        if self._later is not None:
            self._later.cancel()
            self._later = None
        here = [one for one in self._waiting if not one.result.done()]
        if not here:
            self._waiting.clear()
            return
        full = sum(one.stream.row_count for one in here) >= MAX_ROWS
        wait = self._gathering.wait([id(one.stream) for one in here], here[0].since, time.monotonic())
        if wait > 0 and not full:
            self._later = loop.call_later(wait, self._look, loop)
        else:
            self._serve(loop)

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        began = time.monotonic()
        together = self._next()
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
        self._gathering.called([id(one.stream) for one in together], began, time.monotonic())
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

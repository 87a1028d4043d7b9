"""What a processor of somebody else's may do to the session that it runs in."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from quiet_session import Quiet

from stream.processor import FrameProcessor
from stream.session import Session, SessionSettings
from stream.states import State


class EndsItsTask(FrameProcessor):
    """Cancels a task of its own and awaits it, as many do, without looking after what that raises."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    async def _end_task(self, where: str) -> None:
        if where == self.where:
            task = asyncio.create_task(asyncio.sleep(60))
            await asyncio.sleep(0)
            task.cancel()
            await task

    async def load_model(self, **kwargs: Any) -> None:
        await self._end_task("load")

    async def on_stream_stop(self) -> None:
        await self._end_task("stop")


@pytest.mark.parametrize("where", ["load", "stop"])
async def test_a_cancellation_from_within_is_the_processors_fault_and_ends_no_session_halfway(
    where: str,
) -> None:
    session = Session("s", None, EndsItsTask(where), Quiet(), SessionSettings())
    told: list[str] = []
    session.listen(lambda kind, _: told.append(kind))
    running = asyncio.create_task(session.run())
    for _ in range(10):
        await asyncio.sleep(0)
    failed = where == "load"
    assert (session.state is State.ERROR) == failed
    assert (session.fatal is not None and "cancelled from within" in session.fatal.message) == failed
    session.stop("enough")
    async with asyncio.timeout(10):
        await running
    assert told[-1] == "ended"
    assert session.ending is not None
    assert session.ending.reason == "enough"

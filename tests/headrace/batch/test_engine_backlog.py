"""A worker that does not read for a while loses nothing of an answer."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import torch
from batch_pipelines import TARGET

from headrace.engine.host_batch import MAX_BACKLOG, BatchHost
from headrace.engine.link import Link, LinkError, Message
from stream.errors import AtCapacity

WAIT = 20.0


async def test_the_last_pieces_of_an_answer_wait_until_the_worker_reads() -> None:
    ours, theirs = (Link(end) for end in Link.sockets())
    try:
        loop = asyncio.get_running_loop()
        ours.start(loop, lambda message: None, lambda error: None)
        host = BatchHost(ours, torch.device("cpu"), 1, lambda reason: None)
        host.deliver(Message({"op": "batch_set", "call": 1, "pipelines": {"echo": f"{TARGET}Echo"}}))
        inputs = {"steps": 1, "pause": 0.2, "pieces": 3}
        wish = {"op": "batch", "call": 2, "session": "b1", "pipeline": "echo", "model": "m", "inputs": inputs}
        host.deliver(Message(wish))
        try:
            while True:
                ours.send({"op": "filler", "text": "x" * 20_000})
        except LinkError:
            assert ours.backlog > MAX_BACKLOG
        async with asyncio.timeout(WAIT):
            await asyncio.sleep(0.5)
            told = await _until_answered(theirs, 2)
        assert [piece["number"] for words in told for piece in words.get("pieces", ())] == [0, 1, 2]
        assert told[-1]["body"]["inputs"] == inputs
        assert host.idle
    finally:
        ours.close()
        theirs.close()


async def test_a_request_that_gets_no_thread_is_refused_and_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = (Link(end) for end in Link.sockets())

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    try:
        host = BatchHost(ours, torch.device("cpu"), 1, lambda reason: None)
        wish = {"op": "batch", "call": 1, "session": "b1", "pipeline": "echo", "model": "m", "inputs": {}}
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises(AtCapacity, match="can't start new thread"):
                host.deliver(Message(wish))
        assert host.idle
    finally:
        ours.close()
        theirs.close()


async def _until_answered(link: Link, call: int) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    while not told or told[-1].get("op") != "answer" or told[-1].get("call") != call:
        message = link.receive()
        if message is None:
            await asyncio.sleep(0.01)
            continue
        told.append(message.body)
        message.close()
    return told

"""The thread of a processor, and what a pool does with one that does not come back."""

import asyncio
import contextvars
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from byoc import FrameProcessor, ProcessorError
from byoc import pool as pools
from byoc.plain import in_daemon_thread
from byoc.pool import ProcessorPool
from byoc.state import PipelineState, StreamState
from byoc.threads import LoopThread
from stream.errors import EngineError


@pytest.fixture
async def thread():
    thread = LoopThread("under test")
    thread.start()
    yield thread
    assert await thread.close()


async def test_a_call_that_is_cancelled_from_within_is_an_error_and_nothing_of_the_callers(thread):
    async def awaits_what_was_cancelled():
        inner = asyncio.create_task(asyncio.sleep(60))
        inner.cancel()
        await inner

    with pytest.raises(ProcessorError, match="CancelledError"):
        await thread.call(awaits_what_was_cancelled)
    assert thread.open_calls == 0
    assert await thread.responds(1)


async def test_a_caller_that_gives_up_cancels_the_call_and_is_told_so_itself(thread):
    ended = threading.Event()

    async def waits():
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await thread.call(waits)
    assert await thread.responds(5)
    assert ended.is_set()


async def test_what_runs_when_the_thread_ends_is_told():
    thread = LoopThread("ends")
    thread.start()
    call = asyncio.create_task(thread.call(asyncio.sleep, 60))
    await asyncio.sleep(0)
    assert await thread.close()
    with pytest.raises(ProcessorError):
        await call


async def test_a_loop_turns_while_a_call_is_open(thread):
    call = asyncio.create_task(thread.call(asyncio.sleep, 60))
    await asyncio.sleep(0)
    assert await thread.turns(5)
    assert not await thread.responds(0.05)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)


HANGS = """
import asyncio, threading, time
from byoc import video_handler
from byoc.threads import LoopThread

@video_handler
def hangs(frame):
    entered.set()
    time.sleep(600)

async def main():
    thread = LoopThread("hosts")
    thread.start()
    call = asyncio.create_task(thread.call(hangs, None))
    await asyncio.to_thread(entered.wait)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    print(await thread.close())

entered = threading.Event()
asyncio.run(main())
"""


def test_a_plain_handler_that_never_returns_does_not_keep_the_program_from_ending():
    done = subprocess.run(
        [sys.executable, "-c", HANGS],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


async def test_a_plain_function_has_its_callers_context_and_gives_its_error_on():
    who = contextvars.ContextVar("who")
    who.set("caller")
    assert await in_daemon_thread(lambda *, default: who.get(default), default="nobody") == "caller"
    with pytest.raises(ZeroDivisionError):
        await in_daemon_thread(divmod, 1, 0)
    # What is free is taken again; what is not, is not waited for.
    one = await in_daemon_thread(threading.get_ident)
    assert await in_daemon_thread(threading.get_ident) == one
    let_go = threading.Event()
    busy = asyncio.create_task(in_daemon_thread(let_go.wait, 30))
    await asyncio.sleep(0)
    assert await in_daemon_thread(threading.get_ident) != one
    let_go.set()
    assert await busy


# -- the pool ------------------------------------------------------------------------------------------


class Held(FrameProcessor):
    """Blocks its thread until it is let go."""

    let_go = threading.Event()

    async def load_model(self, **kwargs):
        self.weights = object()

    async def process_video_async(self, frame):
        Held.let_go.wait(30)
        return frame


class HeldTogether(Held):
    process_video_async = FrameProcessor.process_video_async

    async def process_video_batch(self, streams, frames):
        return frames


@pytest.fixture
def letting_go():
    Held.let_go.clear()
    yield Held.let_go.set
    Held.let_go.set()


async def begun(pool):
    await pool.start()
    await pool.wait_loaded()
    return pool


async def held_up(thread):
    """A call in the thread that blocks it; given up by its caller."""
    entered = threading.Event()

    def block():
        entered.set()
        Held.let_go.wait(30)

    call = asyncio.create_task(thread.call(block))
    assert await asyncio.to_thread(entered.wait, 10)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)


async def test_a_classs_next_stream_gets_another_object_while_the_first_is_held_up(letting_go):
    pool = await begun(ProcessorPool(Held, StreamState(), 1))
    try:
        first, thread = pool.take()
        await held_up(thread)
        await asyncio.wait_for(pool.give_back(first), 5)
        await pool.wait_free()
        second, other = pool.take()
        assert second is not first
        assert second.weights is first.weights
        assert await other.responds(5)
        await pool.give_back(second)
        letting_go()
        assert await thread.responds(5)
        assert pool.take()[0] is first
    finally:
        letting_go()
        await pool.close()


async def test_a_held_up_batch_keeps_neither_an_end_nor_a_start_waiting(letting_go, monkeypatch):
    monkeypatch.setattr(pools, "WAIT_FREE", 0.1)
    pool = await begun(ProcessorPool(HeldTogether, StreamState(), 2))
    try:
        one, thread = pool.take()
        await held_up(thread)
        await asyncio.wait_for(pool.give_back(one), 5)
        with pytest.raises(EngineError, match="has not come back"):
            await pool.wait_free()
        letting_go()
        monkeypatch.setattr(pools, "WAIT_FREE", 10.0)
        await pool.wait_free()
        assert pool.batcher._queue.streams == 0
    finally:
        letting_go()
        await pool.close()


async def test_what_fails_before_the_model_is_loaded_is_an_error_too(monkeypatch):
    async def no_torch(processor):
        raise ImportError("libtorch.so: cannot open shared object file")

    monkeypatch.setattr(pools, "_warm_up", no_torch)
    state = StreamState()
    pool = ProcessorPool(Held, state, 1)
    try:
        await pool.start()
        with pytest.raises(EngineError, match="libtorch"):
            await pool.wait_loaded()
        assert state.state is PipelineState.ERROR
    finally:
        await pool.close()

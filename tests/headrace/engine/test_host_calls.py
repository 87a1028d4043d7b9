"""Calls of several processors on one loop: their limits, and torch's modes."""

from __future__ import annotations

import asyncio
import time

import pytest

torch = pytest.importorskip("torch")

from headrace.engine.host_calls import HostCalls, NotReturned  # noqa: E402 (needs torch)
from stream.errors import EngineError, ProcessorError  # noqa: E402

KEEPS = 0.4


async def keeps_the_loop() -> str:
    await asyncio.sleep(0)
    time.sleep(KEEPS)  # noqa: ASYNC251 (what it is about)
    await asyncio.sleep(0.001)
    return "done"


async def test_the_time_in_which_others_keep_the_loop_does_not_count() -> None:
    """Each is over after three times `KEEPS`, more than its limit, of which one is its own."""
    calls = HostCalls()
    asked = [asyncio.create_task(calls.ask(keeps_the_loop, 2.5 * KEEPS)) for _ in range(3)]
    assert await asyncio.gather(*asked) == ["done"] * 3


async def test_work_is_told_and_waiting_is_not() -> None:
    told: list[float] = []
    calls = HostCalls(lambda: told.append(calls.seconds))
    await asyncio.gather(*(calls.ask(keeps_the_loop, 2.5 * KEEPS) for _ in range(4)))
    assert len(told) == 2
    with pytest.raises(NotReturned):
        await calls.ask(asyncio.sleep, 0.1, 5)
    assert len(told) == 2


async def test_a_call_that_awaits_for_too_long_is_given_up_and_says_so() -> None:
    async def waits() -> None:
        await asyncio.Event().wait()

    with pytest.raises(NotReturned, match=r"waits did not return within 0.05 s"):
        await HostCalls().ask(waits, 0.05)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_call_whose_task_is_cancelled_ends_as_cancelled() -> None:
    begun = asyncio.Event()

    async def waits() -> None:
        begun.set()
        await asyncio.Event().wait()

    asked = asyncio.create_task(HostCalls().ask(waits, 5))
    await begun.wait()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked


async def test_what_a_processor_raises_is_its_own_fault() -> None:
    async def cancels() -> None:
        raise asyncio.CancelledError

    async def no_engine() -> None:
        raise EngineError("mine")

    def plain() -> int:
        return 1

    for method, words in ((cancels, "cancelled from within"), (no_engine, "mine"), (plain, "async def")):
        with pytest.raises(ProcessorError, match=words):
            await HostCalls().ask(method, 5)  # type: ignore[arg-type]


async def test_modes_that_a_call_holds_across_an_await_are_not_those_of_others() -> None:
    seen: list[tuple[bool, bool]] = []
    calls, go_on = HostCalls(), asyncio.Event()

    def modes() -> tuple[bool, bool]:
        return torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")

    async def holds() -> None:
        with torch.inference_mode(), torch.autocast("cpu"):
            await go_on.wait()
            seen.append(modes())

    async def looks() -> None:
        seen.append(modes())
        go_on.set()

    holding = asyncio.create_task(calls.ask(holds, 5))
    await asyncio.sleep(0)
    await calls.ask(looks, 5)
    await holding
    assert seen == [(False, False), (True, True)]
    assert modes() == (False, False)

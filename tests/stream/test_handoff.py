import asyncio
import threading
import time
from dataclasses import dataclass

from stream.handoff import ToLoop, UnitsToThread


async def test_live_the_newest_wins_and_the_thread_never_waits():
    box: ToLoop[int] = ToLoop(asyncio.get_running_loop())
    thread = threading.Thread(target=lambda: [box.put(i) for i in range(1000)] and box.close())
    thread.start()
    await asyncio.to_thread(thread.join, 5)
    assert await box.take() == 999
    assert await box.take() is None
    assert box.dropped == 999


async def test_lossless_the_thread_waits_and_nothing_is_lost():
    box: ToLoop[int] = ToLoop(asyncio.get_running_loop(), limit=2, lossless=True)
    thread = threading.Thread(target=lambda: [box.put(i) for i in range(500)] and box.close())
    thread.start()
    got = []
    while (item := await asyncio.wait_for(box.take(), 5)) is not None:
        got.append(item)
    assert got == list(range(500))
    thread.join(5)


async def test_abort_frees_a_thread_that_waits_for_room():
    box: ToLoop[int] = ToLoop(asyncio.get_running_loop(), limit=1, lossless=True)
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.extend([box.put(1), box.put(2)]))
    thread.start()
    await asyncio.sleep(0.05)
    assert answers == []
    box.abort()
    await asyncio.to_thread(thread.join, 5)
    assert answers == [True, False]
    assert await box.take() is None


async def test_a_taker_that_waits_is_woken_by_the_close():
    box: ToLoop[int] = ToLoop(asyncio.get_running_loop())
    taking = asyncio.ensure_future(box.take())
    await asyncio.sleep(0.01)
    box.close()
    assert await asyncio.wait_for(taking, 1) is None


@dataclass
class U:
    received: int
    kind: str = "video"
    key: bool = True
    data: bytes = b""


def test_units_reach_the_thread_in_order_and_its_end_is_the_last():
    queue: UnitsToThread[U] = UnitsToThread()
    got: list[int] = []

    def read() -> None:
        while (unit := queue.take()) is not None:
            got.append(unit.received)

    thread = threading.Thread(target=read)
    thread.start()
    now = time.monotonic_ns()
    for i in range(200):
        queue.put(U(now + i))
    queue.close()
    thread.join(5)
    assert got == list(range(now, now + 200))


def test_abort_frees_a_thread_that_waits_for_units():
    queue: UnitsToThread[U] = UnitsToThread()
    got: list[U | None] = []
    thread = threading.Thread(target=lambda: got.append(queue.take()))
    thread.start()
    queue.abort()
    thread.join(5)
    assert got == [None]


async def test_a_loop_that_stands_still_holds_notes_and_no_items():
    notes: list[int] = []
    box: ToLoop[str] = ToLoop(asyncio.get_running_loop(), on_arrival=notes.append)
    thread = threading.Thread(target=lambda: [box.put(f"frame {i}", i) for i in range(50)])
    thread.start()
    thread.join(5)
    assert await box.take() == "frame 49"
    await asyncio.sleep(0)
    assert notes == list(range(50))

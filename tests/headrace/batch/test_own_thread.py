"""Threads that compute: one at a time for each owner, kept for a while, and nothing kept alive by them."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest
import torch

from headrace.batch.pipelines import own_thread
from headrace.batch.pipelines.own_thread import OwnThread

CPU = torch.device("cpu")


class Owner:
    """Each wake is one piece of work."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.modes: list[tuple[int, bool]] = []
        self.done = threading.Semaphore(0)
        self.thread = OwnThread("owner", CPU, self.work)
        self.waiting = 0

    def work(self) -> bool:
        if not self.waiting:
            return False
        self.waiting -= 1
        self.seen.append(threading.get_ident())
        self.modes.append((torch.get_num_threads(), torch.is_grad_enabled()))
        self.done.release()
        return True

    def ask(self) -> None:
        self.waiting += 1
        self.thread.wake()
        assert self.done.acquire(timeout=10)


def idle() -> list[own_thread._Kept]:
    return list(own_thread._Kept._idle)


def until(condition: object) -> None:
    end = time.monotonic() + 10
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_thread_is_used_again_whoever_asks_and_holds_nothing_meanwhile() -> None:
    first, second = Owner(), Owner()
    for owner in (first, second, first):
        owner.ask()
        until(idle)
    assert len({*first.seen, *second.seen}) == 1
    assert first.modes == [(torch.get_num_threads(), False)] * 2
    gone = weakref.ref(first)
    del first, owner
    gc.collect()
    assert gone() is None


def test_two_at_once_have_a_thread_each_and_idle_ones_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_thread, "KEPT", 0.05)
    meet = threading.Barrier(2)
    found: list[int] = []

    def work() -> bool:
        if threading.get_ident() in found:
            return False
        meet.wait(10)
        found.append(threading.get_ident())
        return True

    owners = [OwnThread(f"owner {number}", CPU, work) for number in range(2)]
    for owner in owners:
        owner.wake()
    until(lambda: len(found) == 2)
    # One that waits already has begun to do so for longer.
    until(lambda: len(idle()) < 2)

"""Threads that requests work in: one each, kept, and gone in the end."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator

import pytest

from headrace.engine import host_threads
from headrace.engine.host_threads import HostThreads

PATIENCE = 10.0


@pytest.fixture
def threads() -> Iterator[HostThreads]:
    made = HostThreads()
    yield made
    made.close()


class Held:
    """Work that goes on until it is let go."""

    def __init__(self, threads: HostThreads) -> None:
        self.free = threading.Event()
        self.thread: threading.Thread | None = None
        begun = threading.Event()

        def work() -> None:
            self.thread = threading.current_thread()
            begun.set()
            assert self.free.wait(PATIENCE)

        threads.start(work, "held")
        assert begun.wait(PATIENCE)

    def end(self) -> threading.Thread:
        self.free.set()
        assert self.thread is not None
        until(lambda: self.thread is not None and self.thread.name == "waits for work")
        return self.thread


def until(true: Callable[[], bool]) -> None:
    pause = threading.Event()
    assert any(true() or pause.wait(0.005) for _ in range(int(PATIENCE / 0.005)))


def test_work_at_once_has_threads_of_its_own_and_the_last_one_free_is_taken_next(
    threads: HostThreads,
) -> None:
    first, second = Held(threads), Held(threads)
    assert first.thread is not second.thread
    second.end()
    last = first.end()
    third = Held(threads)
    assert third.thread is last
    assert third.thread.name == "held"
    third.end()


def test_a_thread_that_waits_holds_nothing_of_its_work(threads: HostThreads) -> None:
    class Request:
        def __call__(self) -> None:
            pass

    request = Request()
    there = weakref.ref(request)
    threads.start(request, "request")
    del request
    until(lambda: there() is None)


def test_threads_without_work_end_after_a_while_and_on_closing(
    threads: HostThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, busy = Held(threads), Held(threads)
    idle = kept.end()
    threads.close()
    assert not idle.is_alive()
    assert busy.thread is not None
    busy.free.set()
    busy.thread.join(PATIENCE)
    assert not busy.thread.is_alive()
    monkeypatch.setattr(host_threads, "KEPT", 0.01)
    others = HostThreads()
    short = Held(others)
    thread = short.thread
    short.free.set()
    assert thread is not None
    thread.join(PATIENCE)
    assert not thread.is_alive()
    others.close()

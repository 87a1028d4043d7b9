"""The one load of those whose pictures go through a model together, seen by the threads that wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from headrace.engine.host_together import Company
from stream.errors import ProcessorError
from stream.processor import FrameProcessor


class Loading:
    """A load of two processors, in threads: the first does it, and the second waits from then on."""

    def __init__(self, threads: ThreadPoolExecutor, load: Callable[[Any], None]) -> None:
        self.first, self.second = FrameProcessor(), FrameProcessor()
        self.told: tuple[list[Any], list[Any]] = ([], [])
        self.second_is_wanted = True
        self.company = Company()
        self.free = threading.Event()
        begun = threading.Event()

        def held() -> None:
            begun.set()
            assert self.free.wait(10)
            load(self.first)

        self.first_done = threads.submit(
            self.company.load, self.first, held, self.told[0].append, lambda: True
        )
        assert begun.wait(10)
        self.second_done: Future[None] = threads.submit(
            self.company.load, self.second, held, self.told[1].append, lambda: self.second_is_wanted
        )
        while len(self.company._told) < 2:
            time.sleep(0.001)


def speaks(processor: Any) -> None:
    processor.emit("event", {"type": "progress", "percent": 50})
    processor.emit("text", "mine")
    processor.model = object()


def test_all_who_wait_for_a_load_are_told_of_its_progress_and_get_what_it_made() -> None:
    with ThreadPoolExecutor(2) as threads:
        loading = Loading(threads, speaks)
        loading.free.set()
        loading.first_done.result(10)
        loading.second_done.result(10)
    progress = {"type": "progress", "percent": 50}
    assert [[emission.data for emission in told] for told in loading.told] == [[progress, "mine"], [progress]]
    assert vars(loading.second)["model"] is vars(loading.first)["model"]


def test_who_gives_up_waiting_leaves_no_thread_behind_a_load_that_hangs() -> None:
    with ThreadPoolExecutor(2) as threads:
        loading = Loading(threads, speaks)
        loading.second_is_wanted = False
        with pytest.raises(ProcessorError, match="nobody waits"):
            loading.second_done.result(10)
        assert not loading.first_done.done()
        loading.free.set()
        loading.first_done.result(10)
    assert not hasattr(loading.second, "model")

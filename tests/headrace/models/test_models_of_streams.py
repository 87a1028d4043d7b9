"""What an engine's streams hold of its models: leases that are dropped, and loads that the loop waits for."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from headrace.models import engine_side
from headrace.models.cache import Loaded, LoadProgress, ModelCache
from headrace.models.engine_side import EngineSide
from headrace.models.live_cache import Held
from headrace.models.refs import ModelKey

KEY = ModelKey("owner/model", "1", "float32", "cpu", "test")
PATIENCE = 20.0


def load(_: LoadProgress) -> Loaded:
    return Loaded(object(), {"weights": 10})


class Worker:
    """Hears what an engine says; what is to be done later waits until it is asked for."""

    def __init__(self, taken: Callable[[], int]) -> None:
        self.said: list[dict[str, Any]] = []
        self.admission = threading.Event()
        self.later: list[Callable[[], None]] = []
        self.side = EngineSide(self._hear, lambda _, work: self.later.append(work), taken=taken)
        self.side.listened_to = False
        self.cache = ModelCache("cpu", gate=self.side, on_change=self.side.changed)
        self.side.serve(self.cache)

    def _hear(self, body: dict[str, Any]) -> None:
        self.said.append(body)
        if body["kind"] == "admit":
            self.admission.set()

    @property
    def leases(self) -> int:
        return sum(entry.leases for entry in self.cache.entries())


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(lambda: gc.collect() * 0)
    engine_side.use(worker.side)
    yield worker
    engine_side.use(None)


def in_time(work: Callable[[], object]) -> bool:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE / 2)
    return not thread.is_alive()


def test_a_lease_that_the_collector_frees_in_the_middle_of_a_report_goes_back(worker: Worker) -> None:
    held = Held(worker.cache.acquire(KEY, load))
    circle: list[Any] = [held]
    circle.append(circle)
    worker.side.listened_to = True
    del held, circle
    assert in_time(worker.side.report)
    for work in worker.later:
        work()
    assert worker.leases == 0


def test_a_lease_is_given_back_at_once_when_that_is_asked_for_and_once_only(worker: Worker) -> None:
    held, other = (Held(worker.cache.acquire(KEY, load)) for _ in range(2))
    held.release()
    held.release()
    del held
    assert worker.leases == 1
    other.release()
    assert worker.leases == 0


def test_a_load_that_waits_for_leave_goes_on_when_the_loop_itself_wants_it(worker: Worker) -> None:
    worker.side.listened_to = True
    first = threading.Thread(target=worker.cache.acquire, args=(KEY, load), daemon=True)
    first.start()
    assert worker.admission.wait(PATIENCE)

    def loop() -> None:
        worker.side.loop_thread = threading.get_ident()
        worker.side.excuse(KEY)
        worker.cache.acquire(KEY, load).release()

    assert in_time(loop)
    first.join(PATIENCE)
    assert [entry.state for entry in worker.cache.entries()] == ["loaded"]

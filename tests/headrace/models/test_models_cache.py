"""The engine's cache under many threads: one load, leases, eviction, faults that leave nothing."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from headrace.models.cache import Loaded, LoadProgress, ModelCache
from headrace.models.errors import LoadFailed, ModelTooLarge, NoRoom, OutOfMemory
from headrace.models.refs import ModelKey
from stream.errors import Conflict, InvalidInput, NotFound

WAIT = 20.0


def key(name: str = "m") -> ModelKey:
    return ModelKey(name, "1", "float32", "cpu", "test")


class Model:
    """Something that a weak reference can watch."""


def giving(model: Any, size: int = 10) -> Callable[[LoadProgress], Loaded]:
    return lambda progress: Loaded(model, {f"x{id(model)}": size})


def expiring() -> Callable[[], None]:
    """For a wait that should not have begun."""
    end = time.monotonic() + WAIT

    def look() -> None:
        if time.monotonic() > end:
            raise TimeoutError

    return look


def test_ten_callers_are_one_load_and_all_see_its_progress() -> None:
    cache, loads, everybody = ModelCache("cpu"), [], threading.Event()
    told: list[list[tuple[float, str]]] = [[] for _ in range(10)]

    def load(progress: LoadProgress) -> Loaded:
        loads.append(1)
        progress(0.5, "half of it")
        assert everybody.wait(WAIT)
        return Loaded("model", {"x": 1})

    def caller(number: int) -> Any:
        def on_progress(fraction: float, what: str) -> None:
            told[number].append((fraction, what))
            if all((0.5, "half of it") in one for one in told):
                everybody.set()

        with cache.acquire(key(), load, on_progress=on_progress) as lease:
            return lease.model

    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(caller, range(10))) == ["model"] * 10
    assert len(loads) == 1
    (entry,) = cache.entries()
    assert (entry.state, entry.leases) == ("loaded", 0)


def test_a_waiter_may_leave_and_the_load_is_finished() -> None:
    cache, begun, go_on = ModelCache("cpu"), threading.Event(), threading.Event()

    def load(progress: LoadProgress) -> Loaded:
        begun.set()
        assert go_on.wait(WAIT)
        return Loaded("model", {"x": 1})

    def leave() -> None:
        if begun.is_set():
            raise InvalidInput("I have left")

    with pytest.raises(InvalidInput, match="I have left"):
        cache.acquire(key(), load, cancel=leave)
    assert [entry.state for entry in cache.entries()] == ["loading"]
    with pytest.raises(Conflict, match="on its way"):
        cache.unload(key())
    go_on.set()
    lease = cache.acquire(key(), giving("another"))
    assert lease.model == "model"
    assert [entry.leases for entry in cache.entries()] == [1]
    lease.release()
    lease.release()
    assert [entry.leases for entry in cache.entries()] == [0]


def test_a_failed_load_is_told_to_all_and_not_kept() -> None:
    cache, go_on = ModelCache("cpu"), threading.Event()
    remains: list[weakref.ref[Model]] = []

    def load(progress: LoadProgress) -> Loaded:
        model = Model()
        remains.append(weakref.ref(model))
        assert go_on.wait(WAIT)
        raise ValueError("a bad file")

    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(cache.acquire, key(), load) for _ in range(3)]
        go_on.set()
        errors = [one.exception(WAIT) for one in waiting]
    assert all(isinstance(error, LoadFailed) and "a bad file" in error.message for error in errors)
    assert len({id(error) for error in errors}) == 3
    del errors, waiting
    assert cache.entries() == []
    assert [one() for one in remains] == [None] * len(remains)
    assert cache.acquire(key(), giving("again")).model == "again"


def test_a_load_that_gets_no_thread_fails_and_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ModelCache("cpu")

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(LoadFailed, match="can't start new thread"):
            cache.acquire(key(), giving("never"), cancel=expiring())
    assert cache.entries() == []
    assert cache.acquire(key(), giving("again")).model == "again"


def test_our_own_errors_come_as_they_are() -> None:
    def load(progress: LoadProgress) -> Loaded:
        raise NotFound("no such model", field="model_id")

    with pytest.raises(NotFound, match="no such model"):
        ModelCache("cpu").acquire(key(), load)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), "cpu"])
def test_out_of_memory_evicts_and_tries_once_more(error: BaseException | str) -> None:
    cache, attempts = ModelCache("cpu"), []
    idle = Model()
    gone = weakref.ref(idle)
    cache.acquire(key("idle"), giving(idle)).release()
    del idle

    def load(progress: LoadProgress) -> Loaded:
        ballast = Model()
        attempts.append(weakref.ref(ballast))
        if len(attempts) == 1:
            if isinstance(error, str):
                torch.empty(1 << 60)
            else:
                raise error
        # What the first attempt had is gone before the second begins, and so is everything idle.
        assert attempts[0]() is None
        assert gone() is None
        return Loaded("model", {"x": 1})

    with cache.acquire(key(), load) as lease:
        assert lease.model == "model"
    assert len(attempts) == 2


def test_out_of_memory_twice_is_said_in_words() -> None:
    def load(progress: LoadProgress) -> Loaded:
        raise MemoryError

    with pytest.raises(OutOfMemory, match="cpu has no memory left for model m") as error:
        ModelCache("cpu").acquire(key(), load)
    assert error.value.status == 503


def test_work_that_runs_out_of_memory_is_tried_again_without_the_idle_models() -> None:
    cache, tries = ModelCache("cpu"), []
    cache.acquire(key("idle"), giving(Model())).release()
    kept = cache.acquire(key("used"), giving(Model()))

    def work() -> str:
        tries.append(len(cache.entries()))
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    assert cache.guarded(work) == "done"
    assert tries == [2, 1]

    def never() -> str:
        raise MemoryError

    with pytest.raises(OutOfMemory):
        cache.guarded(never)
    with pytest.raises(ZeroDivisionError):
        cache.guarded(lambda: 1 // 0)
    kept.release()


def test_the_budget_sends_the_right_one_away() -> None:
    cache = ModelCache("cpu", 100)
    for name in "abc":
        cache.acquire(key(name), giving(Model(), 30), size=30).release()
    cache.acquire(key("a"), giving(Model())).release()
    live = cache.acquire(key("b"), giving(Model()))
    cache.acquire(key("d"), giving(Model(), 30), size=30).release()
    assert {entry.key.ref for entry in cache.entries()} == {"a", "b", "d"}
    cache.pin(key("a"))
    with pytest.raises(NoRoom):
        cache.acquire(key("e"), giving(Model(), 80), size=80)
    with pytest.raises(ModelTooLarge, match="model f needs 101 B"):
        cache.acquire(key("f"), giving(Model(), 101), size=101)
    assert {entry.key.ref for entry in cache.entries()} == {"a", "b", "d"}
    live.release()


def test_an_entry_that_leaves_is_loaded_anew_and_not_leased() -> None:
    cache, closing, go_on = ModelCache("cpu", 100), threading.Event(), threading.Event()

    def close() -> None:
        closing.set()
        assert go_on.wait(WAIT)

    cache.acquire(key("a"), lambda progress: Loaded("old", {"x": 60}, close=close), size=60).release()
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(cache.acquire, key("b"), giving("b", 60), size=60)
        assert closing.wait(WAIT)
        back = pool.submit(cache.acquire, key("a"), giving("new", 40), size=40)
        go_on.set()
        assert other.result(WAIT).model == "b"
        assert back.result(WAIT).model == "new"


def test_what_is_in_use_is_not_unloaded() -> None:
    cache = ModelCache("cpu")
    lease = cache.acquire(key(), giving(Model()), pin=True)
    with pytest.raises(Conflict, match="in use"):
        cache.unload(key())
    assert cache.release([key()]) == []
    lease.release()
    assert cache.release([key()]) == []
    cache.unload(key())
    with pytest.raises(NotFound):
        cache.unload(key())


def test_a_lease_outlives_everything_else() -> None:
    cache = ModelCache("cpu", 100)
    lease = cache.acquire(key("a"), giving(torch.ones(3), 50), size=50)
    cache.close()
    assert float(lease.model.sum()) == 3.0
    lease.release()
    assert lease.model is None
    cache.close()
    assert cache.entries() == []
    assert cache.used == 0


def test_unloading_lets_go_of_the_model() -> None:
    cache = ModelCache("cpu")
    model = Model()
    gone = weakref.ref(model)
    with cache.acquire(key(), giving(model)):
        pass
    del model
    gc.collect()
    assert gone() is not None
    cache.unload(key())
    assert gone() is None


def test_many_threads_on_few_models_keep_to_the_budget() -> None:
    cache = ModelCache("cpu", 100)
    now, most, lock = [0], [0], threading.Lock()

    def count(change: int) -> None:
        with lock:
            now[0] += change
            most[0] = max(most[0], now[0])

    def load(progress: LoadProgress) -> Loaded:
        count(40)
        return Loaded(Model(), {str(id(progress)): 40}, close=lambda: count(-40))

    def use(number: int) -> bool:
        try:
            with cache.acquire(key(str(number % 5)), load, size=40) as lease:
                return lease.model is not None
        except NoRoom:
            return False

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(use, range(60)))
    assert any(results)
    assert 40 <= most[0] <= 100
    assert cache.used == now[0] <= 100
    assert all(entry.leases == 0 for entry in cache.entries())

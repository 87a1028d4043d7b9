"""The engine's cache of models: one load however many ask, leases while in use, eviction under a budget.

No torch is needed to import this module; `headrace.models.memory` measures and frees where it is there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from headrace.models import memory
from headrace.models.building import building
from headrace.models.entry import Gate as Gate
from headrace.models.entry import Lease as Lease
from headrace.models.entry import Loaded as Loaded
from headrace.models.entry import LoadProgress as LoadProgress
from headrace.models.entry import Slot
from headrace.models.errors import OutOfMemory
from headrace.models.ledger import Ledger
from headrace.models.load_faults import described, fresh, let_go
from headrace.models.refs import ModelKey
from headrace.models.reports import EntryReport as EntryReport
from stream.errors import Conflict, NotFound

log = logging.getLogger(__name__)

T = TypeVar("T")

Progress = Callable[[float, str], None]
"""Called with a fraction of 0 to 1 and what is being done."""

_POLL = 0.1
"""Seconds between two looks at whether a waiter still wants what it waits for."""


class ModelCache:
    """Models of one device in one process. Every method may be called from any thread.

    ``budget``: bytes (None: no limit of our own; then ``gate`` decides). ``on_change`` is called after every
    change, in the thread that made it, and must not wait. ``on_thread`` is called first in every thread that
    loads (torch has settings that hold for one thread).
    """

    def __init__(
        self,
        device: str = "cpu",
        budget: int | None = None,
        *,
        gate: Gate | None = None,
        on_change: Callable[[], None] | None = None,
        on_thread: Callable[[], None] | None = None,
    ) -> None:
        self.device = device
        self._gate = gate
        self._on_thread = on_thread or (lambda: None)
        self._on_change = on_change or (lambda: None)
        self._changed = threading.Condition(threading.RLock())
        self._ledger: Ledger[ModelKey] = Ledger(budget)
        self._slots: dict[ModelKey, Slot] = {}

    # -- use -------------------------------------------------------------------------------------------

    def acquire(
        self,
        key: ModelKey,
        load: Callable[[LoadProgress], Loaded],
        *,
        size: int | Callable[[], int] = 0,
        cancel: Callable[[], None] | None = None,
        on_progress: Progress | None = None,
        pin: bool = False,
    ) -> Lease:
        """A lease on the model of ``key``; loads it where it is not there, and waits while it is loading.

        ``size``: bytes that the load will take, as far as that is known before; a function is called before a
        load alone, in its thread. ``load`` runs in a thread of
        its own and is finished even when everybody has left. ``cancel`` is called some ten times a second
        while this call waits, and leaves it by raising. Raises `ModelTooLarge`, `NoRoom`, `OutOfMemory`,
        what ``load`` raised of our own errors, and `LoadFailed` for the rest.
        """
        slot = self._join(key, load, size, cancel)
        try:
            loaded = self._wait(slot, cancel, on_progress)
        except BaseException:
            self._give_back(slot)
            raise
        if pin:
            self.pin(key)
        return Lease(self._give_back, slot, loaded)

    def _join(
        self,
        key: ModelKey,
        load: Callable[[LoadProgress], Loaded],
        size: int | Callable[[], int],
        cancel: Callable[[], None] | None,
    ) -> Slot:
        """The slot of ``key``, with one more who wants it; begins the load where there is none."""
        while True:
            with self._changed:
                slot = self._slots.get(key)
                if slot is None:
                    slot = self._slots[key] = Slot(key, size, self._progressed)
                    slot.wanted = 1
                    thread = threading.Thread(
                        target=self._load, args=(slot, load), name=f"load {key.ref}", daemon=True
                    )
                    break
                leaving = key in self._ledger and self._ledger[key].leaving
                if not leaving:
                    self._want(slot)
                    return slot
                self._changed.wait(_POLL)
            if cancel is not None:
                cancel()
        self._on_change()
        try:
            thread.start()
        except RuntimeError as error:  # no more threads are to be had
            self._failed(slot, error)
        return slot

    def _want(self, slot: Slot) -> None:
        slot.wanted += 1
        slot.last_used = time.time()
        if slot.loaded is not None:
            self._ledger.lease(slot.key)

    def _wait(self, slot: Slot, cancel: Callable[[], None] | None, on_progress: Progress | None) -> Loaded:
        told: tuple[float, str] | None = None
        while True:
            with self._changed:
                if slot.error is not None:
                    raise fresh(slot.error)
                if slot.loaded is not None:
                    break
                self._changed.wait(_POLL)
                now = (slot.progress.fraction, slot.progress.what)
            if cancel is not None:
                cancel()
            if on_progress is not None and now != told:
                told = now
                on_progress(*now)
        self._on_change()
        return slot.loaded

    def _give_back(self, slot: Slot) -> None:
        with self._changed:
            slot.wanted -= 1
            slot.last_used = time.time()
            if slot.loaded is not None:
                self._ledger.release(slot.key)
            idle = slot.loaded is not None and not slot.wanted
            self._changed.notify_all()
        if idle and self._gate is not None:
            self._gate.settled(slot.key)
        self._on_change()

    def guarded(self, call: Callable[[], T]) -> T:
        """The result of ``call``; when it runs out of memory, once more after all that is idle was unloaded.

        Raises `OutOfMemory` when that does not help. For the work on a model, which takes memory too.
        """
        try:
            return call()
        except Exception as error:
            if not memory.is_out_of_memory(error):
                raise
        # Outside the except block: the error's traceback keeps the tensors of its frames alive.
        self.unload_idle()
        try:
            return call()
        except Exception as error:
            if not memory.is_out_of_memory(error):
                raise
            message = str(error).partition("\n")[0]
        memory.trim(self.device)
        raise OutOfMemory(f"{self.device} has no memory left for this request: {message}")

    # -- loading ---------------------------------------------------------------------------------------

    def _load(self, slot: Slot, load: Callable[[LoadProgress], Loaded]) -> None:
        """The thread of one load."""
        error = self._try(slot, load)
        if error is not None and memory.is_out_of_memory(error):
            # Whoever else holds the error does not hold the tensors of its frames.
            let_go(error)
            error = None
            self.unload_idle()
            error = self._try(slot, load)
        if error is None:
            with self._changed:
                self._changed.notify_all()
        else:
            self._failed(slot, error)
        if self._gate is not None:
            self._gate.settled(slot.key)
        self._on_change()

    def _failed(self, slot: Slot, error: BaseException) -> None:
        """Nothing of a failed load stays, least of all through the frames of its traceback."""
        failure = described(slot.key, error)
        let_go(error)
        memory.trim(self.device)
        with self._changed:
            self._ledger.drop(slot.key)
            self._slots.pop(slot.key, None)
            slot.error = failure
            self._changed.notify_all()

    def _try(self, slot: Slot, load: Callable[[LoadProgress], Loaded]) -> BaseException | None:
        try:
            self._on_thread()
            self._make_room(slot)
            slot.progress(0.0, "waiting for another load")
            with building():
                slot.progress(0.0, "loading")
                loaded = load(slot.progress)
            parts = dict(loaded.parts) or memory.parts_of(loaded.model, name=str(slot.key))
        except BaseException as error:  # noqa: BLE001 (the edge of a thread: given to all who wait)
            return error
        with self._changed:
            self._ledger.loaded(slot.key, parts)
            for _ in range(slot.wanted):
                self._ledger.lease(slot.key)
            self._ledger.pin(slot.key, slot.pinned)
            slot.loaded = loaded
            slot.seconds = time.monotonic() - slot.begun
        return None

    def _make_room(self, slot: Slot) -> None:
        if slot.key not in self._ledger:
            size = slot.size() if callable(slot.size) else slot.size
            with self._changed:
                out = self._ledger.admit(slot.key, {str(slot.key): size}, name=slot.key.ref)
            for key in out:
                self._evict(key)
            if self._gate is not None:
                self._gate.admit(slot.key, size)

    # -- leaving ---------------------------------------------------------------------------------------

    def _evict(self, key: ModelKey) -> None:
        """Unload an entry that is marked as leaving; returns when its memory is free."""
        with self._changed:
            slot = self._slots.get(key)
            if slot is None or key not in self._ledger or not self._ledger[key].leaving:
                return
            loaded, slot.loaded = slot.loaded, None
            if loaded is None:  # another thread is at it
                while self._slots.get(key) is slot:
                    self._changed.wait(_POLL)
                return
        log.info("unloading %s", key)
        try:
            if loaded.close is not None:
                loaded.close()
        except Exception:  # a model that cannot say goodbye still goes
            log.exception("closing %s failed", key)
        del loaded
        try:
            memory.trim(self.device)
        finally:
            with self._changed:
                self._slots.pop(key, None)
                self._ledger.drop(key)
                self._changed.notify_all()
        if self._gate is not None:
            self._gate.settled(key)
        self._on_change()

    def unload(self, key: ModelKey) -> None:
        """Unload one entry, pinned or not. Raises `NotFound`, and `Conflict` while it is in use."""
        with self._changed:
            if key not in self._slots:
                raise NotFound(f"model {key} is not loaded", field="model_id")
            slot = self._slots[key]
            if slot.wanted or slot.loaded is None:
                what = "in use" if slot.wanted else "on its way in or out"
                raise Conflict(f"model {key} is {what}", field="model_id")
            self._ledger[key].leaving = True
        self._evict(key)

    def unload_idle(self) -> int:
        """Unload everything that is neither leased nor pinned; how many went. Frees what can be freed."""
        with self._changed:
            idle = self._ledger.idle()
            for key in idle:
                self._ledger[key].leaving = True
        for key in idle:
            self._evict(key)
        memory.trim(self.device)
        return len(idle)

    def release(self, keys: list[ModelKey]) -> list[ModelKey]:
        """Unload those of ``keys`` that are idle, as another process needs the memory; which went."""
        with self._changed:
            out = [key for key in keys if key in self._ledger and self._ledger[key].evictable]
            for key in out:
                self._ledger[key].leaving = True
        for key in out:
            self._evict(key)
        return out

    def close(self) -> None:
        """Unload everything that is not in use, pinned or not."""
        for entry in self.entries():
            self.pin(entry.key, False)
        self.unload_idle()

    # -- what is there ---------------------------------------------------------------------------------

    def pin(self, key: ModelKey, pinned: bool = True) -> None:
        """Keep an entry in memory (warm) or no longer. Raises `NotFound` for what is not there."""
        with self._changed:
            slot = self._slots.get(key)
            if slot is None:
                raise NotFound(f"model {key} is not loaded", field="model_id")
            slot.pinned = pinned
            if key in self._ledger:
                self._ledger.pin(key, pinned)
        self._on_change()

    def entries(self) -> list[EntryReport]:
        with self._changed:
            return [self._report(slot) for slot in self._slots.values()]

    @property
    def used(self) -> int:
        """Bytes of what is loaded and of what is reserved for loads under way."""
        with self._changed:
            return self._ledger.used

    @property
    def reclaimable(self) -> int:
        """Bytes that `unload_idle` would free."""
        with self._changed:
            return self._ledger.reclaimable

    def _report(self, slot: Slot) -> EntryReport:
        known = slot.key in self._ledger
        leaving = known and self._ledger[slot.key].leaving
        state = "leaving" if leaving else "loading" if slot.loaded is None else "loaded"
        return EntryReport(
            key=slot.key,
            state=state,
            progress=round(slot.progress.fraction, 3) if state == "loading" else 1.0,
            what=slot.progress.what if state == "loading" else "",
            parts=dict(self._ledger[slot.key].parts) if known else {},
            leases=slot.wanted if state != "loading" else 0,
            pinned=slot.pinned,
            last_used=slot.last_used,
            weights=slot.loaded.weights if slot.loaded is not None else "",
            load_seconds=round(slot.seconds, 3),
        )

    def _progressed(self) -> None:
        with self._changed:
            self._changed.notify_all()
        self._on_change()

"""The threads that compute what several requests have put together.

They are kept for a while when there is nothing to do: what torch's libraries prepare for a thread (plans of
convolutions, above all) is gone with it, and a new one takes milliseconds longer over its first picture.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import torch

KEPT = 30.0
"""Seconds for which a thread waits for other work."""


class OwnThread:
    """Runs ``work`` again and again until it says that there is no more, in one thread at a time.

    ``work`` must not raise. What torch sets for one thread is set as in the thread that made this.
    """

    def __init__(self, name: str, device: torch.device, work: Callable[[], bool]) -> None:
        self._name, self._device, self._work = name, device, work
        self._threads = torch.get_num_threads()
        self._lock = threading.Lock()
        self._running = self._again = False

    def wake(self) -> None:
        """There is something to do. From any thread, after it can be found."""
        with self._lock:
            self._again = True
            if not self._running:
                self._running = True
                _Kept.run(self._name, self._run)

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        try:
            with torch.no_grad():
                while self._wanted():
                    while self._work():
                        pass
        except BaseException:
            with self._lock:
                self._running = False  # the next one who wakes it gets another thread
            raise

    def _wanted(self) -> bool:
        with self._lock:
            self._running, self._again = self._again, False
            return self._running


class _Kept:
    """A thread that takes one call after another, of whomever. While it waits it holds nobody's model."""

    _idle: list[_Kept] = []  # noqa: RUF012 (all of this process, with the lock)
    _lock = threading.Lock()

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[str, Callable[[], None]]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)

    @classmethod
    def run(cls, name: str, call: Callable[[], None]) -> None:
        """In the thread that was the last to be used, or in a new one."""
        with cls._lock:
            kept = cls._idle.pop() if cls._idle else None
        kept = kept or cls()
        kept._calls.put((name, call))
        if not kept._thread.is_alive():
            kept._thread.start()

    def _work(self) -> None:
        while True:
            try:
                name, call = self._calls.get(timeout=KEPT)
            except queue.Empty:
                with self._lock:
                    if self in self._idle:
                        self._idle.remove(self)
                        return
                continue  # it was chosen just now
            self._thread.name = name
            call()
            del call
            self._thread.name = "waits for work"
            with self._lock:
                self._idle.append(self)

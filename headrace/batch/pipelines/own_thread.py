"""The thread that computes what several requests have put together."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch


class OwnThread:
    """Runs ``work`` again and again until it says that there is no more, in a thread that ends then.

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
                threading.Thread(target=self._run, name=self._name, daemon=True).start()

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

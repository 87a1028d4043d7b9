"""An engine's part in sharing a device: it asks before it loads, reports what it holds, releases on request.

No loop and no link in here. What the engine says goes through a callback, as plain dictionaries; what the
worker asks comes in by `EngineSide.ask`:

    engine to worker   {"kind": "report", "device", "total", "entries": [...], "sharing", "live", "taken"}
                       {"kind": "admit", "device", "request", "key", "size", "live"}
    worker to engine   {"what": "admitted", "request", "error": {...} or absent}
                       {"what": "release", "keys": [...]}         answered with {"released": [...]}
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from headrace.engine.host_errors import rebuild
from headrace.models import memory, sharing
from headrace.models.cache import ModelCache
from headrace.models.errors import NoRoom
from headrace.models.refs import ModelKey
from stream.errors import InvalidInput

QUESTIONS = ("admitted", "release")
"""Values of ``what`` that `EngineSide.ask` answers."""
REPORT_EVERY = 0.2
"""Seconds between two reports; changes in between go into the next."""


class Say(Protocol):
    """Sends a message to the worker, from any thread; what cannot be sent is lost, and the link with it."""

    def __call__(self, body: dict[str, Any]) -> None: ...


Later = Callable[[float, Callable[[], None]], None]
"""Runs a function after so many seconds, in any thread."""

_of_streams: EngineSide | None = None


def use(side: EngineSide | None) -> None:
    """From now on what loads for streams in this process (`headrace.models.live_cache`) asks by ``side``."""
    global _of_streams
    _of_streams = side


def of_streams() -> EngineSide | None:
    """What `use` was told."""
    return _of_streams


class EngineSide:
    """A `headrace.models.cache.Gate` that asks the worker. ``patience``: seconds that a load may wait.

    ``taken``: what this process has of the device for itself, in bytes, told with every report.
    """

    def __init__(
        self, say: Say, later: Later, *, patience: float = 120.0, taken: Callable[[], int] | None = None
    ) -> None:
        self._say = say
        self._later = later
        self._patience = patience
        self._taken = taken
        self.listened_to = True
        """Whether there is a ledger; without one nothing is asked and nothing said."""
        self.live = False
        """Whether loads are for live streams."""
        self.streams = 0
        """Live streams that are open; what is loaded is kept for them."""
        self.loop_thread: int | None = None
        """By which the worker's words come in: a load that it waits for cannot wait for them."""
        self._cache: ModelCache | None = None
        self._total = 0
        self._changed = threading.Condition()
        self._reporting = threading.Lock()
        self._numbers = itertools.count(1)
        self._answers: dict[int, dict[str, Any] | None] = {}
        self._scheduled = False
        self._excused: set[ModelKey] = set()

    def serve(self, cache: ModelCache) -> None:
        """The cache to speak for; made with this object as its gate and `changed` as its ``on_change``."""
        self._cache, self._total = cache, memory.total(cache.device)
        self.report()

    # -- for the cache ---------------------------------------------------------------------------------

    def admit(self, key: ModelKey, size: int) -> None:
        """Wait for the worker's leave. Raises what it answers, or `NoRoom` when it does not.

        A load that the loop waits for (`excuse`) is not asked for, or is no longer waited with.
        """
        if not self.listened_to or key in self._excused:
            return
        number = next(self._numbers)
        with self._changed:
            self._answers[number] = None
        self.report()  # so that the worker knows of the load before it is asked
        device = key.device if self._cache is None else self._cache.device
        asked = {"request": number, "key": key.as_dict(), "size": size, "device": device}
        self._say({"kind": "admit", "live": self.live, **asked})
        deadline = time.monotonic() + self._patience + 5.0
        with self._changed:
            while self._answers[number] is None and key not in self._excused and time.monotonic() < deadline:
                self._changed.wait(1.0)
            answer = self._answers.pop(number)
            excused = key in self._excused
        if excused:
            return
        if answer is None:
            raise NoRoom(f"no word from the worker on whether model {key.ref} may be loaded")
        if answer.get("error") is not None:
            raise rebuild(answer["error"])

    def settled(self, key: ModelKey) -> None:
        self._excused.discard(key)
        self.report()

    def excuse(self, key: ModelKey) -> None:
        """Call before a load: where the loop's own thread wants it, it needs no leave, though another thread
        has begun it and waits for one."""
        if threading.get_ident() == self.loop_thread:
            with self._changed:
                self._excused.add(key)
                self._changed.notify_all()

    def soon(self, work: Callable[[], None]) -> None:
        """Have ``work`` done apart from what goes on now: for what is freed, which the collector may do in
        the middle of anything, whatever locks are held."""
        self._later(0.0, work)

    def changed(self) -> None:
        """Something of the cache has changed: a report follows within `REPORT_EVERY`."""
        with self._changed:
            if self._scheduled or not self.listened_to:
                return
            self._scheduled = True
        self._later(REPORT_EVERY, self._report_scheduled)

    def _report_scheduled(self) -> None:
        with self._changed:
            self._scheduled = False
        self.report()

    def report(self) -> None:
        """Tell the worker at once what the cache holds."""
        cache = self._cache
        if cache is None or not self.listened_to:
            return
        with self._reporting:  # so that the last report is the latest
            self._report(cache)

    def _report(self, cache: ModelCache) -> None:
        entries = [entry.as_dict() for entry in cache.entries()]
        holder = sharing.current()
        state = "" if holder is None else holder.state
        report = {"device": cache.device, "total": self._total, "entries": entries, "sharing": state}
        if self._taken is not None:
            report["taken"] = self._taken()
        self._say({"kind": "report", "live": self.live and self.streams > 0, **report})

    # -- for the worker --------------------------------------------------------------------------------

    def ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one of `QUESTIONS`; may take as long as unloading does. Raises `InvalidInput`."""
        what = body.get("what")
        if what == "admitted":
            with self._changed:
                number = body.get("request")
                if isinstance(number, int) and number in self._answers:
                    self._answers[number] = dict(body)
                self._changed.notify_all()
            return {}
        if what == "release" and self._cache is not None:
            gone = self._cache.release([ModelKey.from_dict(key) for key in body.get("keys", ())])
            self.report()  # what was not released is in use, and the worker has to know until when
            return {"released": [key.as_dict() for key in gone]}
        raise InvalidInput(f"{what!r} is no question to an engine's models", field="what")

"""Calls to an engine that have not been answered yet."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

from headrace.engine.host_errors import rebuild
from headrace.engine.link import Message
from headrace.engine.policy import CallKind, Watch
from stream.errors import EngineError, HeadraceError

OnAnswer = Callable[[Message | HeadraceError], None]
"""Is told the answer, or the error that stands for it, exactly once. Descriptors that it does not take from
the message are closed."""


class Calls:
    """Gives numbers to calls, hands out their answers and tells the `Watch` about both."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self._numbers = itertools.count(1)
        self._waiting: dict[int, OnAnswer] = {}

    def __len__(self) -> int:
        """Calls that have not been answered."""
        return len(self._waiting)

    def begin(self, on_answer: OnAnswer, kind: CallKind) -> int:
        call = next(self._numbers)
        self._waiting[call] = on_answer
        self.watch.sent(call, kind, time.monotonic())
        return call

    def forget(self, call: int) -> None:
        """The call was not sent after all."""
        self._waiting.pop(call, None)
        self.watch.answered(call, time.monotonic())

    def deferred(self, call: Any) -> None:
        """The engine has begun what was asked, beside its other work: it does not owe the answer any more."""
        if type(call) is int and call in self._waiting:
            self.watch.answered(call, time.monotonic())

    def answered(self, message: Message) -> None:
        call: Any = message.body.get("call")
        on_answer = self._waiting.pop(call, None) if type(call) is int else None
        if on_answer is None:
            return
        self.watch.answered(call, time.monotonic())
        error = message.body.get("error")
        on_answer(message if error is None else rebuild(error))

    def fail(self, reason: str) -> None:
        """The engine is gone: nobody will answer any more."""
        waiting, self._waiting = self._waiting, {}
        for on_answer in waiting.values():
            on_answer(EngineError(reason))

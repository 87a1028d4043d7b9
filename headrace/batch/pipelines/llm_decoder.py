"""Runs the requests of one language model together, a token at a time.

A request joins between two tokens and leaves with its last. Its prompt is worked through in chunks of its
own, so that its results do not depend on who else is there, and so that others go on meanwhile.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from headrace.batch.contract import Job, Turns
from headrace.batch.pipelines.llm_rows import Rows
from headrace.batch.pipelines.llm_sampling import Sampler
from headrace.batch.pipelines.llm_text import Decode, Detokenizer, StopScanner
from headrace.batch.pipelines.own_thread import OwnThread

log = logging.getLogger(__name__)

Finish = Literal["stop", "length"]

_CHUNK = 256
"""Tokens of a prompt that are worked through at once."""
_SAY_EVERY = 0.05
"""Seconds between two words to a request that is answered whole: each wakes its thread in between tokens."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a request gets: further text, and at the end why it ended."""

    text: str
    finish: Finish | None = None
    tokens: int = 0
    """Tokens that the model made so far, the one that ended it with them."""


@dataclass(eq=False)
class Generation:
    """One request from its prompt to its end. ``events`` are for the thread that asked."""

    job: Job
    prompt: Sequence[int]
    max_tokens: int
    sampler: Sampler
    ends: frozenset[int]
    """Tokens that end an answer."""
    detokenizer: Detokenizer
    scanner: StopScanner
    events: queue.SimpleQueue[Said | BaseException] = field(default_factory=queue.SimpleQueue)
    read: int = 0
    """Tokens of the prompt that were worked through."""
    made: int = 0
    unsaid: str = ""
    """Text that the request has not been told yet."""
    said_at: float = field(default_factory=time.monotonic)
    gone: bool = False
    """Nobody listens any more."""
    rows: Rows | None = None

    @property
    def given_up(self) -> bool:
        return self.gone or self.job.cancelled

    def take(self, logits: torch.Tensor) -> int | None:
        """Choose the next token and tell its text; None when it was the last."""
        token = self.sampler.choose(logits)
        self.made += 1
        finish: Finish | None = None
        if token in self.ends:
            text, finish = self.scanner.push(self.detokenizer.finish()), "stop"
        else:
            text = self.scanner.push(self.detokenizer.push(token))
            if not self.scanner.stopped and self.made >= self.max_tokens:
                text += self.scanner.push(self.detokenizer.finish())
                finish = "length"
        if self.scanner.stopped:
            finish = "stop"
        elif finish is not None:
            text += self.scanner.finish()
        self.unsaid += text
        self._say(finish)
        return token if finish is None else None

    def _say(self, finish: Finish | None) -> None:
        now = time.monotonic()
        if finish is None and not (self.unsaid if self.job.streams else now - self.said_at >= _SAY_EVERY):
            return
        self.events.put(Said(self.unsaid, finish, self.made))
        self.unsaid, self.said_at = "", now


class Decoder:
    """The one thread of a model that computes, while there is something to compute.

    ``limit``: requests that run together; further ones wait. ``turns``: the device's.
    """

    def __init__(self, model: Any, turns: Turns | None, *, limit: int, decode: Decode) -> None:
        self._model = model
        self._device: torch.device = model.device
        self._turns = turns
        self._limit = limit
        self.decode = decode
        self._lock = threading.Lock()
        self._waiting: list[Generation] = []
        self._reading: list[Generation] = []
        """Those whose prompt is not worked through yet, in the order of arrival."""
        self._groups: list[tuple[Rows, list[Generation], list[int]]] = []
        """Rows that are computed at once, whose they are, and the last token of each."""
        self._thread = OwnThread("llm", self._device, self._work)

    @property
    def device(self) -> torch.device:
        return self._device

    def submit(self, generation: Generation) -> None:
        """Have it run; what it says comes to its ``events``."""
        with self._lock:
            self._waiting.append(generation)
        self._thread.wake()

    # -- the thread ------------------------------------------------------------------------------------

    def _work(self) -> bool:
        if not self._admit():
            return False
        try:
            self._step()
        except BaseException as error:  # noqa: BLE001 (told to all whose work it ended)
            self._fail(error)
        return True

    def _admit(self) -> bool:
        """Take in those that wait; False when there is nobody left."""
        with self._lock:
            self._waiting = [one for one in self._waiting if not one.given_up]
            self._reading = [one for one in self._reading if not one.given_up]
            running = len(self._reading) + sum(len(group[1]) for group in self._groups)
            taken = self._waiting[: max(0, self._limit - running)]
            del self._waiting[: len(taken)]
            self._reading += taken
            return bool(self._reading or self._groups)

    def _drop(self) -> None:
        """Let go of the rows of those that were given up."""
        for number, (rows, owners, last) in enumerate(self._groups):
            stay = [row for row, one in enumerate(owners) if not one.given_up]
            if len(stay) < len(owners):
                rows.keep(stay)
                self._groups[number] = (rows, [owners[row] for row in stay], [last[row] for row in stay])
        self._groups = [group for group in self._groups if group[1]]

    def _step(self) -> None:
        """A chunk of one prompt, and a token for everybody else; each is a slice of the device's time."""
        if any(one.given_up for _, owners, _ in self._groups for one in owners):
            self._slice(self._drop)
        if self._reading:
            self._slice(self._read)
        for number in range(len(self._groups)):
            self._slice(lambda number=number: self._advance(number))  # type: ignore[misc]
        self._groups = [group for group in self._groups if group[1]]

    def _slice(self, work: Callable[[], None]) -> None:
        if self._turns is None:
            work()
            return
        with self._turns.slice():
            work()

    def _read(self) -> None:
        """The next chunk of the oldest prompt; after its last the request joins the others."""
        one = self._reading[0]
        if one.rows is None:
            one.rows = Rows(self._model)
        chunk = one.prompt[one.read : one.read + _CHUNK]
        logits = one.rows.extend([list(chunk)])
        one.read += len(chunk)
        if one.read < len(one.prompt):
            return
        self._reading.pop(0)
        token = one.take(logits[0])
        if token is not None:
            self._join(one, one.rows, token)

    def _join(self, one: Generation, rows: Rows, token: int) -> None:
        for others, owners, last in self._groups:
            if others.can_join(rows):
                others.join(rows)
                owners.append(one)
                last.append(token)
                return
        self._groups.append((rows, [one], [token]))

    def _advance(self, number: int) -> None:
        rows, owners, last = self._groups[number]
        logits = rows.extend([[token] for token in last])
        tokens = [one.take(logits[row]) for row, one in enumerate(owners)]
        stay = [row for row, token in enumerate(tokens) if token is not None]
        if len(stay) < len(owners):
            rows.keep(stay)
        self._groups[number] = (
            rows,
            [owners[row] for row in stay],
            [token for token in tokens if token is not None],
        )

    def _fail(self, error: BaseException) -> None:
        """Whoever was in the middle of something is told; those who wait get their chance."""
        failed = self._reading + [one for group in self._groups for one in group[1]]
        self._reading, self._groups = [], []
        log.error("%d requests of a language model failed: %r", len(failed), error)
        message, memory = str(error), isinstance(error, (MemoryError, torch.OutOfMemoryError))
        error.__traceback__ = None
        for one in failed:
            one.rows = None
            # One object raised in several threads would gather their tracebacks.
            one.events.put(
                MemoryError(message) if memory else RuntimeError(f"{type(error).__name__}: {message}")
            )
        # A fault that comes with every step must not turn into a loop without a pause.
        time.sleep(0.01)

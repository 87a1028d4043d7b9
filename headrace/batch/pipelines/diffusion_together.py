"""Makes the pictures of several requests to one model together, where they ask for the same but for text,
picture and seed.

Nobody is waited for: what is waiting when the device is free is made at once, and what comes meanwhile is
next. A request whose client leaves does not stop the others; one that fails does not fail them.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.batch.contract import Cancelled, Job, Turns
from headrace.batch.pipelines.diffusion_run import at_once, call, generators, steps_of, to_pixels
from headrace.batch.pipelines.pictures import Pixels
from headrace.engine.device import poisons
from headrace.models import memory
from stream.errors import HeadraceError

log = logging.getLogger(__name__)

_OWN = ("prompt", "negative_prompt", "image")
"""Beginnings of the arguments that each picture of a batch may have for itself."""


@dataclass(eq=False)
class Wish:
    """``count`` pictures for one request, number k with ``seed`` + k.

    ``pipe`` is a pipeline of the request's own. ``arguments`` of the call that it does not take are left out.
    ``pixels``: of one picture. ``like``: what must be equal in requests that are computed together beside the
    class of the pipeline and the arguments (the scheduler, LoRAs).
    """

    job: Job
    pipe: Any
    arguments: Mapping[str, Any]
    seed: int
    count: int
    pixels: int
    like: Hashable = None
    made: list[Pixels] = field(default_factory=list)
    error: BaseException | None = None
    over: threading.Event = field(default_factory=threading.Event)
    called: threading.Event = field(default_factory=threading.Event)
    """It is over, or the next to make pictures."""
    free: threading.Event = field(default_factory=threading.Event)
    """No call of the pipeline has it."""

    def __post_init__(self) -> None:
        self.free.set()
        self.arguments = {name: value for name, value in self.arguments.items() if value is not None}
        own = {name: value for name, value in self.arguments.items() if name.startswith(_OWN)}
        shared = {name: value for name, value in self.arguments.items() if name not in own}
        size = getattr(own.get("image"), "size", None)
        self.own, self.shared = own, shared
        kind = type(self.pipe).__name__
        alone = id(self) if "InstructPix2Pix" in kind else 0  # these take one text alone for several pictures
        self.key = (kind, alone, self.like, frozenset(shared.items()), frozenset(own), size)

    def end(self, error: BaseException | None = None) -> None:
        if error is not None:
            # Its frames hold tensors, and whoever waits adds its own.
            error.__traceback__ = None
        self.error = error
        self.over.set()
        self.called.set()


Row = tuple[Wish, int]
"""One picture: whose it is, and its number there."""


class Studio:
    """Makes the pictures of one model. ``turns``: the device's; None: each request is made in its thread.

    One of the requests makes its own pictures in its thread, and with them those of the others that go
    together with it; when it is over, the next does.
    """

    def __init__(self, turns: Turns | None, device: str) -> None:
        self._turns, self._device = turns, device
        self._lock = threading.RLock()
        self._waiting: list[Wish] = []
        self._maker: Wish | None = None

    def make(self, wish: Wish) -> list[Pixels]:
        """The pictures; those made together are what they would be one by one, but for rounding.

        Takes the device when it is free. Raises `Cancelled` and what the pipeline raised. Where memory runs
        out the rest is made fewer at once.
        """
        wish.job.check()
        if self._turns is None:
            while not wish.over.is_set():
                _make(_next_rows([wish]), self._device, contextlib.nullcontext)
        else:
            with self._lined_up(wish), wish.job.waking(wish.end):
                wish.job.check()
                wish.called.wait()
                while not wish.over.is_set():
                    with self._turns.hold(wish.job):
                        if waiting := self._left():
                            _make(_next_rows(waiting), self._device, self._turns.breathe)
            # One that was given up may be in another's call still, which needs what this request has leased.
            wish.free.wait()
        error, wish.error = wish.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # which its traceback would hold, and it this frame
        wish.job.check()
        return wish.made

    @contextlib.contextmanager
    def _lined_up(self, wish: Wish) -> Iterator[None]:
        """Inside, ``wish`` waits until it is over or called, and makes pictures from then on."""
        with self._lock:
            self._waiting.append(wish)
            self._call_next()
        try:
            yield
        finally:
            with self._lock:
                wish.over.set()
                if self._maker is wish:
                    self._maker = None
                self._call_next()

    def _call_next(self) -> None:
        """Have the one that waits longest make pictures, where nobody does."""
        waiting = self._left()
        if self._maker is None and waiting:
            self._maker = waiting[0]
            self._maker.called.set()

    def _left(self) -> list[Wish]:
        with self._lock:
            self._waiting = [wish for wish in self._waiting if not wish.over.is_set()]
            return list(self._waiting)


def _next_rows(waiting: Sequence[Wish]) -> list[Row]:
    """Pictures of the one that waits longest, and of those that are like it."""
    first = waiting[0]
    rows = [
        (wish, number)
        for wish in waiting
        if wish.key == first.key
        for number in range(len(wish.made), wish.count)
    ]
    return rows[: at_once(first.job.device, first.pixels, len(rows))]


def _make(rows: Sequence[Row], device: str, breathe: Callable[[], Any]) -> None:
    """Make those pictures, fewer at once where memory runs out; whoever has all of his is told."""
    together = len(rows)
    while rows := [(wish, number) for wish, number in rows if not wish.over.is_set()]:
        part = rows[:together]
        wishes = list(dict.fromkeys(wish for wish, _ in part))
        try:
            with _taken(wishes):
                pictures = _call(part, breathe)
        except _Left:
            continue
        except Cancelled:
            for wish in wishes:
                wish.end()  # its own thread knows why
            continue
        except BaseException as error:  # noqa: BLE001 (told to all whose work it ended)
            failure = error
        else:
            for (wish, _), picture in zip(part, pictures, strict=True):
                wish.made.append(picture)
                if len(wish.made) == wish.count:
                    wish.end()
            rows = rows[together:]
            continue
        # Outside the except block: what is raised holds the tensors of its frames.
        if memory.is_out_of_memory(failure) and len(part) > 1:
            together = max(1, len(part) // 2)
            del failure
            memory.trim(device)
        elif len(wishes) > 1 and not poisons(failure):
            # Whose fault it is shows when each is alone.
            log.warning("pictures of %d requests failed together: %r", len(wishes), failure)
            del failure
            for wish in wishes:
                _make([row for row in part if row[0] is wish], device, breathe)
            rows = rows[len(part) :]
        else:
            if not isinstance(failure, HeadraceError):
                log.error("a picture failed:\n%s", "".join(traceback.format_exception(failure)))
            for wish in wishes:
                wish.end(failure)


class _Left(Exception):
    """A request was given up just before its pictures were to be made."""


@contextlib.contextmanager
def _taken(wishes: Sequence[Wish]) -> Iterator[None]:
    """Keep those who are given up inside this block waiting for its end. Raises `_Left`."""
    try:
        for wish in wishes:
            wish.free.clear()
        # In this order: who left before has not waited, who leaves from now on will.
        if any(wish.over.is_set() for wish in wishes):
            raise _Left
        yield
    finally:
        for wish in wishes:
            wish.free.set()


def _call(rows: Sequence[Row], breathe: Callable[[], Any]) -> list[Pixels]:
    first = rows[0][0]
    counts = Counter(wish for wish, _ in rows)
    begun = {wish: len(wish.made) for wish in counts}
    given = dict(first.shared)
    if len(counts) == 1:
        # Each picture of the batch draws its own noise for the one that it comes from.
        given |= {name: [own] * len(rows) if name == "image" else own for name, own in first.own.items()}
        given["num_images_per_prompt"] = len(rows)
    else:
        given |= {name: [wish.own[name] for wish, _ in rows] for name in first.own}
    given["generator"] = [generators(wish.seed + number, 1)[0] for wish, number in rows]

    def step(pipe: Any, done: int) -> None:
        steps = steps_of(pipe)
        for wish, number in counts.items():
            try:
                wish.job.progress(begun[wish] * steps + (done + 1) * number, wish.count * steps, "steps")
            except Cancelled:  # its own thread knows, and waits for the end
                wish.job.beat()
        if all(wish.job.cancelled for wish in counts):
            raise Cancelled("nobody waits for these pictures any more")
        breathe()

    made = call(first.pipe, given, step)
    return [to_pixels(picture) for picture in made.images]

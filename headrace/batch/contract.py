"""What a batch pipeline is, and what it is given: the contract between the engine and the nine pipelines.

A request is a `Job` in a thread of its own in the batch engine. Its pipeline takes the model from the cache,
asks for the device with `Job.turn` for as long as it computes, tells how far it is, and returns a `Result`.

Standard library only besides `stream.errors`: the worker and foreign interpreters load this module.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from stream.errors import AtCapacity, HeadraceError

if TYPE_CHECKING:
    from headrace.models.cache import ModelCache
    from headrace.models.store import ModelStore

Weights = str
"""``real``, ``random`` or ``substitute:NAME``: what the answer was made with."""


class Cancelled(HeadraceError):
    """The request was given up: its client left, or its time is over. Raised inside pipelines."""

    code = "cancelled"
    status = 499


class TimedOut(HeadraceError):
    """A request took longer than it may; the message says how long that is."""

    code = "timed_out"
    status = 504


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a request is.

    ``phase`` ``loading``: ``step`` of ``of`` is the share of the model that is there; ``running``: steps of
    the pipeline, or tokens. ``of`` is 0 where the end is not known. ``note`` is for people.
    """

    phase: Literal["loading", "running"]
    step: float
    of: float
    note: str = ""


class Listener(Protocol):
    """Whoever hears what a job says; called in the job's thread, must not wait long."""

    def progress(self, progress: Progress) -> None: ...

    def piece(self, piece: dict[str, Any]) -> None: ...


class Turns(Protocol):
    """Hands the device to one job after the other."""

    def hold(self, job: Job | None = None) -> contextlib.AbstractContextManager[None]:
        """Wait for the device (in order of asking) and keep it. Raises `Cancelled` while waiting."""

    def slice(self, job: Job | None = None) -> contextlib.AbstractContextManager[None]:
        """Wait for a short use of the device, which comes between two steps of whoever holds it."""

    def breathe(self) -> None:
        """Between two steps of the holder: let waiting slices through."""


class Job:
    """One request inside the engine. Its methods are for the job's thread, `cancel` for any.

    ``inputs`` are the checked fields of the request as JSON, ``blobs`` what it uploaded, read-only and only
    valid until ``run`` returns (copy what outlives it). ``device`` is torch's name of the engine's device.
    With nothing but the first five arguments a job runs alone: nobody listens, the device is always free.
    ``streams``: whether the listener wants pieces of the answer.
    """

    def __init__(
        self,
        id: str,  # noqa: A002 (the word of the protocol)
        pipeline: str,
        model: str,
        inputs: dict[str, Any],
        blobs: Mapping[str, memoryview | bytes] | None = None,
        *,
        device: str = "cpu",
        listener: Listener | None = None,
        streams: bool = True,
    ) -> None:
        self.id = id
        self.pipeline = pipeline
        self.model = model
        self.inputs = inputs
        self.blobs: dict[str, memoryview] = {name: memoryview(blob) for name, blob in (blobs or {}).items()}
        self.device = device
        self._listener = listener
        self._streams = streams
        self.turns: Turns | None = None
        """Set by the runner; for pipelines that put requests together and take the device for themselves."""
        self.store: ModelStore | None = None
        """Where the files of models are; set by the runner."""
        self._cancelled = threading.Event()
        self._reason = ""
        self._wakers: list[Callable[[], None]] = []
        self._holds = False
        self._streamed = False

    # -- what the job says -----------------------------------------------------------------------------

    @property
    def streams(self) -> bool:
        """Whether pieces of the answer are wanted, so that each is worth saying at once."""
        return self._listener is not None and self._streams

    def progress(self, step: float, of: float, note: str = "") -> None:
        """Step ``step`` of ``of`` is done; call it in step callbacks.

        Raises `Cancelled`. Between the steps of a job that holds the device short work of others goes first.
        """
        self.check()
        if self._listener is not None:
            self._listener.progress(Progress("running", step, of, note))
        if self._holds and self.turns is not None:
            self.turns.breathe()

    def beat(self) -> None:
        """A sign of life, also of a job that was given up and whose share of common work is not over."""
        if self._listener is not None:
            self._listener.progress(Progress("running", 0, 0))

    def loading(self, fraction: float, what: str = "") -> None:
        """The model is loaded to ``fraction`` (0 to 1). Never raises: a load is finished, not cancelled."""
        if self._listener is not None:
            self._listener.progress(Progress("loading", min(max(fraction, 0.0), 1.0), 1.0, what))

    def emit(self, piece: dict[str, Any]) -> None:
        """Stream a piece (JSON) to the client, if it wants any; waits while that is behind.

        Raises `Cancelled`.
        """
        self.check()
        if self._listener is not None and self._streams:
            self._streamed = True
            self._listener.piece(piece)

    def once(self) -> Job:
        """The job itself, to be run (again). Raises `AtCapacity` when a part of its answer is out already."""
        if self._streamed:
            raise AtCapacity("out of memory in the middle of an answer")
        return self

    # -- giving up -------------------------------------------------------------------------------------

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def check(self) -> None:
        """Raise `Cancelled` when the request was given up."""
        if self._cancelled.is_set():
            raise Cancelled(self._reason or "the request was given up")

    def cancel(self, reason: str = "") -> None:
        """Give the request up; safe to call twice, from any thread."""
        if not self._cancelled.is_set():
            self._reason = reason
            self._cancelled.set()
        for wake in tuple(self._wakers):
            wake()

    @contextlib.contextmanager
    def waking(self, wake: Callable[[], None]) -> Iterator[None]:
        """While inside, ``wake`` is called when the request is given up, so that a wait can end."""
        self._wakers.append(wake)
        try:
            yield
        finally:
            self._wakers.remove(wake)

    # -- the device ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """The device, for this job alone, until the block ends; taken after the model is there.

        Not to be taken twice. Raises `Cancelled`, also while it waits.
        """
        self.check()
        with contextlib.nullcontext() if self.turns is None else self.turns.hold(self):
            self._holds = True
            try:
                yield
            finally:
                self._holds = False

    def short_turn(self) -> contextlib.AbstractContextManager[None]:
        """The device for something short, between two steps of whoever holds it. Raises as `turn` does."""
        return contextlib.nullcontext() if self.turns is None else self.turns.slice(self)


@dataclass(slots=True)
class Result:
    """What a pipeline answers.

    ``body`` is JSON and has ``weights``; ``blobs`` are files (PNG, WAV, MP4) to whose names the body refers.
    """

    body: dict[str, Any]
    blobs: dict[str, bytes] = field(default_factory=dict)


class BatchPipeline(Protocol):
    """One endpoint's work, in a module of its own. One object serves all requests, in several threads."""

    name: ClassVar[str]
    """The endpoint without its slash: ``text-to-image``."""

    def run(self, job: Job, models: ModelCache) -> Result:
        """Answer one request. Raises `Cancelled`, `InvalidInput` and other errors with a status."""

    def warm(self, job: Job, models: ModelCache) -> None:
        """Have the model of ``job`` loaded into the cache and leave it there, without a lease."""

"""Takes checked requests through the queue to the batch engine."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from headrace.batch.choice import Choice, ModelChooser
from headrace.batch.contract import Cancelled, Progress, Result, TimedOut
from headrace.batch.defaults import Adjustment, adjust, merged
from headrace.batch.errors import Interrupted
from headrace.batch.figures import BatchFigures
from headrace.batch.line import Line
from headrace.batch.queue import BatchQueue, Ticket
from stream.errors import EngineError

log = logging.getLogger(__name__)

TOGETHER = frozenset({"llm"})
"""Pipelines whose requests to one model the engine computes together."""
ALIKE = frozenset({"text-to-image", "image-to-image"})
"""Those where it does so with requests that differ in `OWN_FIELDS` alone."""
OWN_FIELDS = frozenset(
    {"prompt", "negative_prompt", "seed", "num_images_per_prompt", "safety_check", "withhold"}
)
SEEDED = frozenset({"text-to-image", "image-to-image", "image-to-video", "upscale", "text-to-speech"})
ENGINE_START = 120.0
"""Seconds in which an engine must be ready for a request that waits for it."""
ASK_TIME = 1.0
"""Seconds for the engine to say what is loaded."""
RETRY_SOON = 2
"""Least seconds after which a request may come again whose engine died."""

OnProgress = Callable[[Progress], None]
OnPiece = Callable[[dict[str, Any]], None]


def _nothing(*_: Any) -> None:
    """For who does not want to know."""


@dataclass(frozen=True, slots=True)
class Ears:
    """Who hears of a request, on the loop and without waiting: ``queued`` once it lines up, ``started`` once
    it has a place, with the model that answers, ``progress`` and ``piece`` of the engine's (None: it need not
    tell, the answer is wanted whole)."""

    queued: Callable[[], None] = _nothing
    started: Callable[[Choice], None] = _nothing
    progress: OnProgress | None = None
    piece: OnPiece | None = None


class Engine(Protocol):
    """What is needed of `headrace.batch.client.BatchEngine`."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def wait_ready(self, timeout: float) -> None: ...
    async def run(
        self,
        pipeline: str,
        model: str,
        inputs: Mapping[str, Any],
        blobs: Mapping[str, bytes] | None = None,
        *,
        on_progress: OnProgress | None = None,
        on_piece: OnPiece | None = None,
        timeout: float = 600.0,
    ) -> Result: ...
    async def models(self) -> list[dict[str, Any]]: ...


DEAF = Ears()


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """``queue``: requests that may wait; ``places``: that run at once; ``together``: of one model in one
    place, where the pipeline computes them together; ``timeout``: seconds from queueing to the answer."""

    queue: int = 20
    places: int = 2
    together: int = 8
    timeout: float = 600.0


@dataclass(frozen=True, slots=True)
class Work:
    """A checked request. ``given``: the fields that it named; ``client``: in whose turn it is taken."""

    pipeline: str
    model: str
    inputs: dict[str, Any]
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    given: frozenset[str] = frozenset()
    client: str = ""
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answer, and how it came about. Times are in seconds."""

    pipeline: str
    model: str
    result: Result
    weights: str
    adjusted: tuple[Adjustment, ...]
    waited: float
    ran: float


class BatchService:
    """One queue, one engine. Belongs to the loop."""

    def __init__(
        self, engine: Engine, chooser: ModelChooser, settings: ServiceSettings | None = None
    ) -> None:
        self.settings = settings or ServiceSettings()
        self.engine = engine
        self.chooser = chooser
        self.queue = BatchQueue(self.settings.queue, self.settings.places, self.settings.together)
        self.figures = BatchFigures()
        self._line = Line(self.queue)
        self._starting = asyncio.Lock()
        self._started = self._stopped = False

    async def stop(self) -> None:
        """End the engine; whoever waits for it gets an error."""
        self._stopped = True
        self._line.refuse(EngineError("the worker is shutting down"))
        async with self._starting:
            if self._started:
                self._started = False
                await self.engine.stop()

    # -- a request -------------------------------------------------------------------------------------

    async def run(self, work: Work, ears: Ears = DEAF) -> Outcome:
        """The answer to ``work``; cancel the task to give it up.

        Raises `QueueFull` (429), `ModelNotFound`, `TimedOut` (504), `Interrupted` (503: the engine died, try
        again), and what the pipeline raised.
        """
        timeout = min(work.timeout or self.settings.timeout, self.settings.timeout)
        try:
            async with asyncio.timeout(timeout):
                outcome = await self._run(work, timeout, ears)
        except TimeoutError:
            self.figures.ended(work.pipeline, TimedOut.code)
            raise TimedOut(f"the request took longer than {timeout:g} s") from None
        except asyncio.CancelledError:
            self.figures.ended(work.pipeline, "cancelled")
            raise
        except Exception as error:
            self.figures.ended(work.pipeline, getattr(error, "code", "internal"))
            raise
        self.figures.answered(outcome.pipeline, outcome.waited, outcome.ran)
        return outcome

    async def _run(self, work: Work, timeout: float, ears: Ears) -> Outcome:
        choice = await self.choose(work.pipeline, work.model)
        inputs, adjusted = adjust(choice.model, work.inputs, work.given)
        if work.pipeline in SEEDED and inputs.get("seed") is None:
            inputs = {**inputs, "seed": secrets.randbelow(1 << 32)}
        queued = time.monotonic()
        async with self._line.place(self._ticket(work, choice, inputs), ears.queued) as ticket:
            began = time.monotonic()
            ears.started(choice)
            result = await self._ask_engine(work, choice, inputs, timeout - (began - queued), ears)
            ended = time.monotonic()
            self.queue.done(ticket, ended)
        self.chooser.used(work.pipeline, choice.model)
        weights = str(result.body.get("weights", choice.weights))
        return Outcome(
            work.pipeline,
            choice.model,
            result,
            choice.weights if weights == "real" else weights,
            merged(adjusted, result.body.pop("adjusted", ())),
            began - queued,
            ended - began,
        )

    async def choose(self, pipeline: str, asked: str) -> Choice:
        """The model that a request for ``asked`` gets; see `ModelChooser.choose`."""
        return await self.chooser.choose(pipeline, asked, () if asked else await self.loaded())

    def _ticket(self, work: Work, choice: Choice, inputs: Mapping[str, Any]) -> Ticket:
        lane = lane_of(work.pipeline, choice.model)
        return Ticket(lane, work.client, group_of(work.pipeline, choice.model, inputs))

    # -- the engine ------------------------------------------------------------------------------------

    async def _ask_engine(
        self, work: Work, choice: Choice, inputs: Mapping[str, Any], timeout: float, ears: Ears
    ) -> Result:
        try:
            await self.ready()
            return await self.engine.run(
                work.pipeline,
                choice.model,
                inputs,
                work.blobs,
                on_progress=ears.progress,
                on_piece=ears.piece,
                timeout=max(timeout, 0.001),
            )
        except Cancelled as error:
            raise Interrupted(
                f"the engine gave the request up: {error.message}", retry_after=RETRY_SOON
            ) from error
        except Interrupted:
            raise
        except EngineError as error:
            seconds = max(RETRY_SOON, self.queue.retry_after(time.monotonic()))
            text = f"{error.message}; the request may be sent again in {seconds} s"
            raise Interrupted(text, retry_after=seconds) from error

    async def ready(self) -> None:
        """Have the engine started; return when it is ready. Raises `EngineError` or `NotInstalled`."""
        async with self._starting:
            if self._stopped:
                raise EngineError("the worker is shutting down")
            if not self._started:
                await self.engine.start()
                self._started = True
        await self.engine.wait_ready(ENGINE_START)

    async def models(self) -> list[dict[str, Any]]:
        """What the engine holds, entry by entry; nothing while there is no engine."""
        if not self._started:
            return []
        try:
            async with asyncio.timeout(ASK_TIME):
                return await self.engine.models()
        except (EngineError, TimeoutError) as error:
            log.debug("the batch engine does not say what it holds: %s", error)
            return []

    async def loaded(self) -> list[str]:
        """Models that are in the engine's memory, the one that was used last first."""
        entries = [entry for entry in await self.models() if entry["state"] == "loaded"]
        entries.sort(key=lambda entry: entry["last_used"], reverse=True)
        return list(dict.fromkeys(entry["key"]["ref"] for entry in entries))


def group_of(pipeline: str, model: str, inputs: Mapping[str, Any]) -> Hashable | None:
    """Equal for requests that the engine computes together; None for those that it computes alone."""
    if pipeline in TOGETHER:
        return pipeline, model
    if pipeline not in ALIKE:
        return None
    shared = {name: value for name, value in inputs.items() if name not in OWN_FIELDS}
    return pipeline, model, json.dumps(shared, sort_keys=True, default=str)


def lane_of(pipeline: str, model: str) -> str:
    return f"{pipeline} {model}"

"""Which model answers a request: the one that is named, else a warm one, else the default, else a small one
that says so."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from headrace.batch.defaults import DEFAULT_MODELS, SUBSTITUTES
from headrace.models.demos import DEMOS
from headrace.models.errors import ModelNotFound
from headrace.models.purpose import pipeline_of
from headrace.models.refs import ModelRef
from headrace.models.store import Located
from stream.errors import HeadraceError, InvalidInput, NotFound

SEEN_FOR = 10.0
"""Seconds for which a model that was found on disk is taken to be there."""
MOST_SEEN = 256
SDXL_BASE = "stabilityai/stable-diffusion-xl-base-1.0"


class Store(Protocol):
    """What is needed of `headrace.models.store.ModelStore`; may read disks."""

    def find(self, ref: str) -> Located: ...
    def list(self) -> list[Located]: ...


@dataclass(frozen=True, slots=True)
class Choice:
    """A model. ``substitute``: the name of one that stands in for what should have answered."""

    model: str
    substitute: str | None = None

    @property
    def weights(self) -> str:
        """What answers are made with, as far as the name tells; see `headrace.batch.contract.Weights`."""
        demo = DEMOS.get(self.model.removeprefix("demo:")) if self.model.startswith("demo:") else None
        if demo is not None and demo.weights == "random":
            return "random"
        return "real" if self.substitute is None else f"substitute:{self.substitute}"


class ModelChooser:
    """Chooses models and remembers which were used for which pipeline."""

    def __init__(
        self, store: Store, *, demo_weights: bool, defaults: Mapping[str, str] | None = None
    ) -> None:
        self.store = store
        self.demo_weights = demo_weights
        self._defaults = {**DEFAULT_MODELS, **(defaults or {})}
        self._used: dict[str, OrderedDict[str, None]] = {}
        self._seen: OrderedDict[str, float] = OrderedDict()
        self._purposes: OrderedDict[str, tuple[str, ...]] = OrderedDict()

    # -- choosing --------------------------------------------------------------------------------------

    async def choose(self, pipeline: str, asked: str, loaded: Collection[str]) -> Choice:
        """``asked`` is what the request names, ``loaded`` what is in memory.

        Raises `InvalidInput` for what is no name of a model, `ModelNotFound` with what to run to get it.
        """
        if asked:
            await self.check(asked)
            return Choice(asked)
        default, substitute = self._defaults[pipeline], self.substitute(pipeline)
        if (warm := await self._warm(pipeline, loaded)) is not None:
            return Choice(warm)
        try:
            await self.check(default)
        except ModelNotFound as missing:
            if substitute is None:
                raise ModelNotFound(_advice(pipeline, default, missing), field="model_id") from None
            await self.check(substitute)
            return Choice(substitute, substitute.removeprefix("demo:"))
        return Choice(default)

    async def _warm(self, pipeline: str, loaded: Collection[str]) -> str | None:
        """A loaded model of the pipeline, the one that answered last first; none of the demo's."""
        for model in dict.fromkeys([*self.known(pipeline), *loaded]):
            if model in loaded and not model.startswith("demo:") and pipeline in await self.purposes(model):
                return model
        return None

    async def purposes(self, model: str) -> tuple[str, ...]:
        """The endpoints that a model is for: those that it answered for, and what its files say."""
        used = [pipeline for pipeline, models in self._used.items() if model in models]
        if model not in self._purposes:
            try:
                self._purposes[model] = await asyncio.to_thread(lambda: purposes_of(self.store.find(model)))
            except (NotFound, InvalidInput):
                # Loaded under another name than its files have.
                self._purposes[model] = ()
            if len(self._purposes) > MOST_SEEN:
                self._purposes.popitem(last=False)
        return tuple(dict.fromkeys([*used, *self._purposes[model]]))

    async def check(self, model: str) -> None:
        """Raise as `choose` does for a model that is not there."""
        now = time.monotonic()
        for ref in files_of(model):
            if now - self._seen.get(ref, -SEEN_FOR) < SEEN_FOR:
                continue
            parsed = ModelRef.parse(ref)
            if parsed.kind == "demo" and not self.demo_weights:
                raise ModelNotFound(
                    f"model {ref} is one of the demo, which is not switched on (HEADRACE_DEMO_WEIGHTS)",
                    field="model_id",
                )
            try:
                await asyncio.to_thread(self.store.find, ref)
            except (ModelNotFound, InvalidInput):
                raise
            except NotFound as error:
                raise ModelNotFound(error.message, field="model_id") from None
            self._seen[ref] = now
            if len(self._seen) > MOST_SEEN:
                self._seen.popitem(last=False)

    # -- what is known ---------------------------------------------------------------------------------

    def default(self, pipeline: str) -> str:
        return self._defaults[pipeline]

    def substitute(self, pipeline: str) -> str | None:
        """The small model that may stand in, where the operator allows it."""
        return SUBSTITUTES.get(pipeline) if self.demo_weights else None

    def used(self, pipeline: str, model: str) -> None:
        """A request of ``pipeline`` was answered with ``model``."""
        models = self._used.setdefault(pipeline, OrderedDict())
        models[model] = None
        models.move_to_end(model)
        if len(models) > MOST_SEEN:
            models.popitem(last=False)

    def known(self, pipeline: str) -> list[str]:
        """Models that answered for ``pipeline``, the last one first."""
        return list(reversed(self._used.get(pipeline, ())))

    async def there(self, model: str) -> bool:
        """Whether `check` finds it."""
        try:
            await self.check(model)
        except HeadraceError:
            return False
        return True


def purposes_of(found: Located) -> tuple[str, ...]:
    """The endpoints that a model is for as its files say; none where they do not."""
    try:
        pipeline = pipeline_of(found)
    except InvalidInput:
        return ()
    # What makes pictures from text makes them from pictures too.
    return ("text-to-image", "image-to-image") if pipeline == "text-to-image" else (pipeline,)


def files_of(model: str) -> tuple[str, ...]:
    """The repositories that a model's name stands for; one name of ai-runner's stands for two."""
    if "ByteDance/SDXL-Lightning" in model:
        return (SDXL_BASE, "ByteDance/SDXL-Lightning")
    return (model,)


def _advice(pipeline: str, default: str, missing: ModelNotFound) -> str:
    return (
        f"{pipeline} has no model here: the request names none, none is loaded, and the default is missing "
        f"({missing.message}). Name one as model_id, or start the worker with --demo"
    )

"""Sessions of one class whose pictures go to `FrameProcessor.process_video_batch` together."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import WeakValueDictionary

from stream.batching import Ask, Batcher, shared_of
from stream.errors import ProcessorError
from stream.processor import Emission, EmitSink, FrameProcessor

_LOOK = 1.0
"""Seconds between two looks whether somebody still wants what a thread waits for."""


class Company:
    """Those with one specification. The first of them loads the model, and what loading sets on it the others
    get; what ``__init__`` sets is each one's own. `load` is for threads, `batcher` for the engine's loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: dict[str, Any] | None = None
        self._told: list[EmitSink] = []
        """Who is told how far loading is: all who wait for it."""
        self._batcher: Batcher | None = None

    def load(
        self, processor: FrameProcessor, load: Callable[[], None], emit: EmitSink, wanted: Callable[[], bool]
    ) -> None:
        """``emit``: where ``processor`` speaks. Raises what ``load`` raises; the next one then loads.

        Raises `ProcessorError` when the load of another goes on and ``processor`` is not ``wanted`` any more.
        """
        self._told.append(emit)
        try:
            with self._turn(wanted):
                if self._loaded is None:
                    before = dict(vars(processor))
                    processor.bind(lambda emission: self._said(emission, emit))
                    load()
                    self._loaded = shared_of(processor, before)
                else:
                    vars(processor).update(self._loaded)
        finally:
            self._told.remove(emit)
        processor.bind(emit)

    @contextlib.contextmanager
    def _turn(self, wanted: Callable[[], bool]) -> Iterator[None]:
        # A load may hang for good; no thread of those who have given it up stays behind it.
        while not self._lock.acquire(timeout=_LOOK):
            if not wanted():
                raise ProcessorError("nobody waits for this stream's model any more")
        try:
            yield
        finally:
            self._lock.release()

    def _said(self, emission: Emission, own: EmitSink) -> None:
        progress = (
            emission.kind == "event"
            and isinstance(emission.data, dict)
            and emission.data.get("type") == "progress"
        )
        for emit in tuple(self._told) if progress else (own,):
            emit(emission)

    def batcher(self, processor: FrameProcessor, ask: Ask) -> Batcher:
        """Who calls ``processor`` and the others for pictures, by ``ask``."""
        if self._batcher is None:
            self._batcher = Batcher(processor.batch_size, processor.batch_wait, ask)
        return self._batcher


class Companies:
    """Each lives as long as somebody holds it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: WeakValueDictionary[str, Company] = WeakValueDictionary()

    def of(self, spec: Mapping[str, Any], kwargs: Mapping[str, Any]) -> Company:
        """That of what is made of ``spec`` and loaded with ``kwargs``, both JSON."""
        name = json.dumps([spec, kwargs], sort_keys=True)
        with self._lock:
            company = self._known.get(name)
            if company is None:
                company = self._known[name] = Company()
            return company

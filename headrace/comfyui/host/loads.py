"""Models that ComfyUI is about to load are asked for in the worker's ledger, and which are in use is known.

Two of its functions are wrapped in this process: the one that brings models to their device, and, where that
is the machine's own memory, the one that reads their files. Its own memory management goes on as it is: what
the ledger has no room for, it finds room for among its own models, or loads in part.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds that a load waits for the ledger's word. Meanwhile no other node runs."""

Say = Callable[[Mapping[str, Any]], None]


class Loads:
    """``keep``: seconds after its last use for which a model is in use. `connect` before anything loads."""

    def __init__(self, keep: float) -> None:
        self._keep = keep
        self._say: Say | None = None
        self._tell_memory: Callable[[], None] = lambda: None
        self._loop_thread = threading.get_ident()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, threading.Event] = {}
        self._used: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
        self._left: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        """Bytes of models that were not brought to the device when they were loaded last."""
        self._loading = 0

    def connect(self, say: Say, tell_memory: Callable[[], None]) -> None:
        """From now on ``say`` sends what is asked, ``tell_memory`` what is held; from any thread. The present
        one is that of the frames, by which answers come in."""
        self._say, self._tell_memory = say, tell_memory
        self._loop_thread = threading.get_ident()

    # -- in ComfyUI's place ------------------------------------------------------------------------------

    def wrap_reading(self, utils: Any, device: Callable[[], Any]) -> None:
        """``utils``: ComfyUI's module of that name, before others take functions from it."""
        real = utils.load_torch_file

        @functools.wraps(real)
        def load_torch_file(ckpt: Any, *arguments: Any, **named: Any) -> Any:
            with self._asked(_file_size(ckpt) if _is_cpu(device()) else 0, os.path.basename(str(ckpt))):
                return real(ckpt, *arguments, **named)

        utils.load_torch_file = load_torch_file

    def wrap_loading(self, memory: Any, device: Any) -> None:
        """``memory``: ComfyUI's ``model_management``."""
        real = memory.load_models_gpu

        @functools.wraps(real)
        def load_models_gpu(models: Iterable[Any], *arguments: Any, **named: Any) -> Any:
            models = list(models)
            patchers = _with_patches(models)
            self._use(patchers)
            missing = _missing(patchers, device)
            more = sum(max(0, size - self._left.get(model, 0)) for model, size in missing.items())
            with self._asked(more, _names(models)):
                made = real(models, *arguments, **named)
            # What it has loaded in part stays so, and is not asked for with each frame.
            self._left.update(_missing(patchers, device))
            self._use(patchers)
            return made

        memory.load_models_gpu = load_models_gpu

    # -- what is known -----------------------------------------------------------------------------------

    @property
    def is_loading(self) -> bool:
        return self._loading > 0

    def in_use(self, patcher: Any) -> bool:
        """Whether a model was asked for within the last seconds."""
        used = self._used.get(getattr(patcher, "model", None))
        return used is not None and time.monotonic() - used < self._keep

    def admitted(self, body: Mapping[str, Any]) -> None:
        """The ledger's word for a request, from any thread."""
        if body.get("error"):
            log.info("the ledger has no room; ComfyUI makes do: %s", body["error"])
        waiting = self._waiting.get(body.get("request", 0))
        if waiting is not None:
            waiting.set()
        elif not self._loading:
            # Nobody waits any more: what was reserved is given back by what is told.
            self._tell_memory()

    def _use(self, patchers: Iterable[Any]) -> None:
        now = time.monotonic()
        for patcher in patchers:
            with contextlib.suppress(AttributeError, TypeError):  # of a kind that another version has
                self._used[patcher.model] = now

    # -- asking ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _asked(self, size: int, name: str) -> Iterator[None]:
        """Around a load of ``size`` bytes. One within another is part of it."""
        if size <= 0 or self._say is None or self._loading:
            yield
            return
        self._loading += 1
        try:
            self._ask(self._say, size, name)
            yield
        finally:
            self._loading -= 1
            self._tell_memory()

    def _ask(self, say: Say, size: int, name: str) -> None:
        number = next(self._numbers)
        waiting = self._waiting[number] = threading.Event()
        try:
            self._tell_memory()  # in use from now on, so that nothing of it is released for it
            say({"what": "admit", "request": number, "size": size, "name": name, "patience": PATIENCE})
            # A frame cannot wait: the answer would come in by its own thread. Room is made meanwhile.
            if threading.get_ident() != self._loop_thread and not waiting.wait(PATIENCE + 1.0):
                log.info("the ledger does not answer; ComfyUI loads %s", name)
        finally:
            del self._waiting[number]


def _file_size(path: Any) -> int:
    try:
        return os.path.getsize(path)
    except (OSError, TypeError):
        return 0


def _is_cpu(device: Any) -> bool:
    return getattr(device, "type", None) == "cpu"


def _with_patches(models: Iterable[Any]) -> list[Any]:
    """Each model patcher with those that its patches bring."""
    found: list[Any] = []
    for patcher in models:
        more = getattr(patcher, "model_patches_models", None)
        found += [patcher, *(more() if callable(more) else ())]
    return found


def _missing(patchers: Iterable[Any], device: Any) -> dict[Any, int]:
    """Bytes of their models that are not on ``device`` yet; of those that share weights, once."""
    sizes: dict[Any, int] = {}
    for patcher in patchers:
        try:
            # Where both are one memory it was taken when the file was read.
            if patcher.load_device == device and patcher.offload_device != device:
                sizes[patcher.model] = max(0, int(patcher.model_size()) - int(patcher.loaded_size()))
        except (AttributeError, TypeError) as error:
            log.debug("the size of a model is not known: %s", error)
    return sizes


def _names(models: Iterable[Any]) -> str:
    return ", ".join(type(getattr(patcher, "model", patcher)).__name__ for patcher in models)[:200]

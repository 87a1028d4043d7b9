"""The constant part of graphs, shared by all sessions of a process.

A constant result is known by its content: the class, the literals, and the same of everything that feeds it.
While anybody holds it, whoever needs the same gets it; with the last holder it is freed. What is shared is
read-only: tensors are kept as such that count the writes to them, so that a node that writes in place is
noticed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from workflows.binding import BoundNode
from workflows.graph import Link
from workflows.results import Outcome
from workflows.world import Keeper, Run

Key = bytes

_MAX_DEPTH = 6


class Entry:
    """Results of one constant node; held by the programs that use them."""

    def __init__(self, key: Key | None, outcomes: list[Outcome]) -> None:
        self.key = key
        self.tensors: list[tuple[Any, int]] = []
        """Tensors of the results, each with the number of writes that it had."""
        self.outcomes = [
            Outcome(tuple(self._counting(value, 0) for value in outcome.values), outcome.shown)
            for outcome in outcomes
        ]

    def is_written(self) -> bool:
        """Whether anybody has written into a tensor of it."""
        return any(tensor._version != version for tensor, version in self.tensors)

    def _counting(self, value: Any, depth: int) -> Any:
        """``value`` with tensors that count writes: those made in inference mode do not, and are copied."""
        kind = type(value)
        if kind in (list, tuple) and depth < _MAX_DEPTH:
            return kind(self._counting(item, depth + 1) for item in value)
        if kind is dict and depth < _MAX_DEPTH:
            return {key: self._counting(item, depth + 1) for key, item in value.items()}
        if not _is_tensor(value):
            return value
        if value.is_inference():
            import torch

            with torch.inference_mode(False):
                value = value.clone()
        self.tensors.append((value, value._version))
        return value


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "is_inference") and hasattr(value, "data_ptr") and hasattr(value, "clone")


def copied(value: Any) -> Any:
    """``value`` with copies of the tensors in it, for a node that writes into what it is given."""
    kind = type(value)
    if kind in (list, tuple):
        return kind(copied(item) for item in value)
    if kind is dict:
        return {key: copied(item) for key, item in value.items()}
    return value.clone() if _is_tensor(value) else value


class SharedConstants:
    """Entries by content. May be asked from any thread; a result that another computes is waited for."""

    def __init__(self) -> None:
        self._entries: WeakValueDictionary[Key, Entry] = WeakValueDictionary()
        self._pending: dict[Key, Future[None]] = {}
        self._lock = threading.Lock()
        self._classes: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._entries)

    async def get(self, key: Key, run: Run) -> Entry | list[Outcome]:
        """The entry of that content, or one made of what ``run`` gives; its bare result when that expands."""
        while True:
            with self._lock:
                entry = self._entries.get(key)
                if entry is not None and not entry.is_written():
                    return entry
                other = self._pending.get(key)
                if other is None:
                    mine = self._pending[key] = Future()
                    mine.set_running_or_notify_cancel()  # so that no waiter can cancel it
            if other is None:
                return await self._compute(key, run, mine)
            await asyncio.wrap_future(other)

    async def _compute(self, key: Key, run: Run, mine: Future[None]) -> Entry | list[Outcome]:
        try:
            outcomes = await run()
            if any(outcome.expand is not None for outcome in outcomes):
                return outcomes
            entry = Entry(key, outcomes)
            with self._lock:
                self._entries[key] = entry
            return entry
        finally:
            with self._lock:
                del self._pending[key]
            mine.set_result(None)

    def number_of(self, node_class: Any) -> int:
        """A number for the class, its own while it lives."""
        with self._lock:
            found = self._classes.get(node_class)
            if found is None:
                found = self._classes[node_class] = next(self._numbers)
            return found


SHARED = SharedConstants()


class GraphConstants:
    """What one program keeps: a `Keeper` for `Evaluation`. ``entries`` holds it by node."""

    def __init__(
        self,
        fingerprints: Mapping[str, str],
        entries: Mapping[str, Entry],
        keys: Mapping[str, Key | None],
        shared: SharedConstants = SHARED,
    ) -> None:
        self.entries: dict[str, Entry] = dict(entries)
        self.keys: dict[str, Key | None] = dict(keys)
        self.counts: dict[str, int] = {}
        self._fingerprints = fingerprints
        self._shared = shared

    async def outcomes(
        self, item: BoundNode, links: Iterable[tuple[str, Link]], unasked: Iterable[str], run: Run
    ) -> list[Outcome]:
        """See `Keeper`."""
        node_id = item.node.id
        key = self.keys[node_id] = self._key(item, links, unasked)
        if key is None:
            made = await run()
            if any(outcome.expand is not None for outcome in made):
                return made
            entry = Entry(None, made)
        else:
            # The guard comes first: whoever computes a constant has it, so that nobody who has it waits for
            # one who does not.
            with item.guard():
                found = await self._shared.get(key, run)
            if isinstance(found, list):
                self.keys[node_id] = None
                return found
            entry = found
        self.entries[node_id] = entry
        return entry.outcomes

    def _key(self, item: BoundNode, links: Iterable[tuple[str, Link]], unasked: Iterable[str]) -> Key | None:
        """What the result of a node depends on; None for what has no such description."""
        feeds: list[list[Any]] = []
        for name, link in links:
            key = self.keys.get(link.node_id)
            if key is None:
                return None
            feeds.append([name, key.hex(), link.output])
        hidden = item.definition.hidden.values()
        if "DYNPROMPT" in hidden or item.has_raw_links:
            return None
        content = [
            self._shared.number_of(item.node_class),
            item.literals(),
            [item.node.id if "UNIQUE_ID" in hidden else "", item.is_schema and "PROMPT" in hidden],
            item.prompt.get_original_prompt() if item.is_schema and "PROMPT" in hidden else None,
            sorted(feeds),
            sorted(unasked),
            self._fingerprints.get(item.node.id),
        ]
        try:
            text = json.dumps(content, sort_keys=True)
        except (TypeError, ValueError):
            return None
        return hashlib.blake2b(text.encode(), digest_size=20).digest()


class Counted:
    """A `Keeper` that tells after each node how much of ``total`` is made, 0 to 1."""

    def __init__(self, kept: Keeper, total: int, report: Callable[[float], None]) -> None:
        self._kept = kept
        self._total = total
        self._report = report
        self._made = 0

    async def outcomes(
        self, item: BoundNode, links: Iterable[tuple[str, Link]], unasked: Iterable[str], run: Run
    ) -> list[Outcome]:
        """See `Keeper`."""
        found = await self._kept.outcomes(item, links, unasked, run)
        self._made += 1
        self._report(min(1.0, self._made / max(1, self._total)))
        return found

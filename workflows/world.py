"""What an evaluation works on, and what it says of nodes that wait."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from workflows.binding import BoundNode
from workflows.graph import Link
from workflows.protocol import DynamicPrompt
from workflows.registry import NodeRegistry
from workflows.results import Outcome

Outputs = tuple[list[Any], ...]
"""Of a node: a list of values for each."""
Sources = frozenset[str]
"""Kinds of what changes from run to run."""


@dataclass(frozen=True, slots=True)
class Residual:
    """A node that waits for ``sources``: the links that it needs, and the lazy ones that it did not ask
    for."""

    sources: Sources
    links: tuple[tuple[str, Link], ...]
    unasked: frozenset[str] = frozenset()
    is_settled: bool = False
    """Whether it has lazy inputs of which it has said what it wants."""


@dataclass
class World:
    """What an evaluation works on. ``expanded`` keeps the instances of nodes that others expand into."""

    bound: Mapping[str, BoundNode]
    registry: NodeRegistry
    prompt: DynamicPrompt
    widths: Mapping[str, int]
    source_values: Mapping[str, Outputs] = field(default_factory=dict)
    """Outputs of source nodes by class; without one the sources are not known."""
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    expanded: dict[str, BoundNode] = field(default_factory=dict)


Run = Callable[[], Coroutine[Any, Any, list[Outcome]]]


class Keeper(Protocol):
    """Where the results of constant nodes are kept."""

    def outcomes(
        self, item: BoundNode, links: Iterable[tuple[str, Link]], unasked: Iterable[str], run: Run
    ) -> Coroutine[Any, Any, list[Outcome]]:
        """Those of a node: kept ones, or what ``run`` gives."""

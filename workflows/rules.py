"""Literals that change by themselves from frame to frame: what the editor calls control after generate."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from workflows.definitions import InputDefinition, NodeDefinition
from workflows.graph import Graph, Link, Node

FIXED = "fixed"

_SEEDS = frozenset({"seed", "noise_seed"})
# Beyond this a number is not exact in JSON as browsers read it.
_HIGHEST = 2**53 - 1
_SPAN = 2**31


class Rule:
    """One literal and its rule; `next` gives its value for a frame and goes on to the one after.

    Numbers stay within what the class declares and wrap at its ends; of a list of choices, the next or
    another.
    """

    def __init__(self, kind: str, declared: InputDefinition | None, value: Any) -> None:
        self.kind = kind
        self.start = value
        self._value = value
        self._declared = declared
        self._random = random.Random()

    def rewind(self) -> None:
        """Begin again with the value of the graph."""
        self._value = self.start

    def next(self) -> Any:
        value = self._value
        self._value = self._after(value)
        return value

    def _after(self, value: Any) -> Any:
        declared = self._declared
        if declared is not None and declared.choices:
            choices = declared.choices
            index = choices.index(value) if value in choices else 0
            return choices[self._moved(index, 0, len(choices) - 1, 1)]
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value
        low, high = _limits(declared, value)
        step = (declared.step if declared is not None else None) or 1
        if isinstance(value, int):
            return self._moved(value, int(low), int(high), max(1, int(step)))
        if self.kind == "randomize":
            return self._random.uniform(low, high)
        moved = value + (step if self.kind.startswith("increment") else -step)
        return low if moved > high else high if moved < low else moved

    def _moved(self, value: int, low: int, high: int, step: int) -> int:
        if self.kind == "randomize":
            return self._random.randint(low, high)
        moved = value + (step if self.kind.startswith("increment") else -step)
        return low if moved > high else high if moved < low else moved


def _limits(declared: InputDefinition | None, value: float) -> tuple[float, float]:
    low = declared.minimum if declared is not None else None
    high = declared.maximum if declared is not None else None
    low = 0 if low is None else low
    high = max(low + _SPAN, value) if high is None else high
    return max(low, -_HIGHEST), max(min(high, _HIGHEST), min(value, high))


def can_have_rule(declared: InputDefinition | None, name: str) -> bool:
    """Whether the editor offers a rule for this input."""
    if declared is None:
        return False
    return bool(declared.options.get("control_after_generate")) or (declared.type == "INT" and name in _SEEDS)


def active_rules(node: Node, definition: NodeDefinition) -> dict[str, str]:
    """The rules of a node's literals that change something."""
    return {
        name: kind
        for name, kind in node.after_generate.items()
        if kind != FIXED
        and name in node.inputs
        and not isinstance(node.inputs[name], Link)
        and (name in definition.inputs or definition.open_inputs)
    }


Rules = Mapping[tuple[str, str], Rule]


def rules_of(
    graph: Graph, definitions: Mapping[str, NodeDefinition], previous: Rules
) -> dict[tuple[str, str], Rule]:
    """The active rules by node and input, one for all inputs that share a value; one that was there before,
    of the same value, goes on where it is."""
    found: dict[tuple[str, str], Rule] = {}
    for one in _ruled(graph, definitions):
        olds = [previous.get(place) for place in one.places]
        old = olds[0]
        same = old is not None and (old.kind, old.start) == (one.kind, one.value)
        if old is None or not same or any(other is not old for other in olds):
            old = Rule(one.kind, one.declared, one.value)
        found.update(dict.fromkeys(one.places, old))
    return found


@dataclass(slots=True)
class _Ruled:
    """A value with an active rule, and the inputs that have it."""

    kind: str
    value: Any
    declared: InputDefinition | None
    places: list[tuple[str, str]]


def _ruled(graph: Graph, definitions: Mapping[str, NodeDefinition]) -> Iterable[_Ruled]:
    found: list[_Ruled] = []
    shared: dict[tuple[str, str, str], _Ruled] = {}
    for node_id, definition in definitions.items():
        node = graph.nodes[node_id]
        for name, kind in active_rules(node, definition).items():
            value, declared = node.inputs[name], definition.inputs.get(name)
            known = shared.get(key := (node.shared.get(name, ""), kind, repr(value)))
            together = None if known is None else _common(known.declared, declared)
            if known is not None and together is not None:
                known.declared = together
                known.places.append((node_id, name))
                continue
            found.append(_Ruled(kind, value, declared, [(node_id, name)]))
            if name in node.shared:
                shared.setdefault(key, found[-1])
    return found


def _common(one: InputDefinition | None, other: InputDefinition | None) -> InputDefinition | None:
    """What both take, as an input; None where there is no such thing."""
    if one is None or other is None or (one.type, one.choices) != (other.type, other.choices):
        return None
    lows = [item.minimum for item in (one, other) if item.minimum is not None]
    highs = [item.maximum for item in (one, other) if item.maximum is not None]
    low, high = max(lows, default=None), min(highs, default=None)
    if low is not None and high is not None and low > high:
        return None
    return replace(one, minimum=low, maximum=high)


def by_rule(rules: Rules) -> list[tuple[Rule, list[tuple[str, str]]]]:
    """Each rule with its inputs: it acts once a run, however many they are."""
    places: dict[int, list[tuple[str, str]]] = {}
    for place, rule in rules.items():
        places.setdefault(id(rule), []).append(place)
    return [(rules[found[0]], found) for found in places.values()]
